"""Searches with groups of sources, of hundreds of sources, and from another run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.start.from_run import start_from
from tests.conftest import synthetic_documents, write_dataset
from tests.distributed.searches import load, run_search

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 sources: 20 topics of 10 qualities; `t00` counts up as the target does, others do not."""
    folder = tmp_path_factory.mktemp("cells")
    vocab_size = load_tokenizer("ByteLevelTokenizer").vocab_size
    for topic in range(20):
        kind = ("forward", "backward", "noise")[0 if topic == 0 else 1 + topic % 2]
        documents = synthetic_documents(kind, 40, topic)
        for quality in range(10):
            write_dataset(
                folder / f"t{topic:02d}_q{quality}",
                documents[4 * quality : 4 * quality + 4],
                vocab_size,
            )
    write_dataset(folder / "target", synthetic_documents("forward", 60, 99), vocab_size)
    return folder


@pytest.mark.parametrize("learn", ["groups", "sources"])
def test_a_planted_topic_is_found_among_200_cells_by_a_small_probe(
    search_values: dict, cells: Path, learn: str, capfd: pytest.CaptureFixture[str]
) -> None:
    names = [f"t{topic:02d}_q{quality}" for topic in range(20) for quality in range(10)]
    search_values["sources"] = [
        {"name": name, "path": str(cells / name), "group": name[:3]} for name in names
    ]
    search_values["targets"][0]["path"] = str(cells / "target")
    search_values["training"] |= {"train_iters": 40, "lr": 1e-2, "min_lr": 1e-3}
    search_values["mixture"] |= {"learn": learn, "weighting": "sampling", "lr": 0.5}
    search_values["mixture"] |= {"optimizer": "scaled_mirror_descent", "averaging_fraction": 0.3}
    search_values["hypergradient"] = {"target_samples": 12, "probe_samples": 40}
    search_values["output"]["save_interval"] = 40
    run_ranks(1, run_search, load(search_values))

    mixture = read_mixture(search_values["run_dir"])
    weights = mixture.group_weights(mixture.members)
    assert max(weights, key=lambda name: weights[name]) == "t00"
    assert weights["t00"] > (0.5 if learn == "groups" else 0.15)
    lines = read_metrics(Path(search_values["run_dir"]) / "metrics.jsonl")
    outer = [line for line in lines if line["kind"] == "outer"]
    previous = dict.fromkeys(names, 1 / 200)
    for line in outer:
        counts = line["probe_samples"]
        assert sum(counts.values()) == 40
        if learn == "sources":  # what has no sample keeps its logit: it moves as all such do
            unseen = [name for name in names if not counts[name]]
            ratios = [line["weights"][name] / previous[name] for name in unseen]
            np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
        previous = line["weights"]
    if learn == "groups":
        sizes = {source.name: source.size.loss_tokens for source in mixture.sources}
        topic = [name for name in names if name.startswith("t00")]
        inside = [mixture.weights[name] / sizes[name] for name in topic]
        np.testing.assert_allclose(inside, inside[0], rtol=1e-9)
        assert mixture.groups[0].advantage is not None
        assert mixture.sources[0].advantage is None
    else:
        said = capfd.readouterr().out
        assert said.count("a probe of 40 samples has none of 160 of 200 in a step") == 1


def test_a_search_of_groups_resumes_bitwise(search_values: dict, tmp_path: Path) -> None:
    for source in search_values["sources"][:2]:
        source["group"] = "runs"
    search_values["mixture"]["learn"] = "groups"
    search_values["hypergradient"] = {"target_samples": 10, "probe_samples": 7}
    run_ranks(1, run_search, load(search_values))
    straight = read_mixture(search_values["run_dir"])
    search_values["run_dir"] = str(tmp_path / "stopped")
    run_ranks(1, run_search, load(search_values), 3)
    run_ranks(1, run_search, load(search_values))
    resumed = read_mixture(search_values["run_dir"])
    assert resumed.sources == straight.sources
    assert resumed.groups == straight.groups


def test_groups_learn_the_same_under_zero_3(search_values: dict, tmp_path: Path) -> None:
    for source in search_values["sources"][:2]:
        source["group"] = "runs"
    search_values["groups"] = [{"name": "runs", "max_weight": 0.6}]
    search_values["mixture"]["learn"] = "groups"
    search_values["hypergradient"] = {"target_samples": 10, "probe_samples": 8}
    found = []
    for stage in (1, 3):
        search_values["run_dir"] = str(tmp_path / f"stage{stage}")
        config = load(search_values, **{"engine.zero_stage": stage})
        first, second = run_ranks(2, run_search, config)
        assert first["logits"].tobytes() == second["logits"].tobytes()
        found.append(first["history"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    shares = found[1][:, 0] / found[1][:, 1]
    np.testing.assert_allclose(shares, shares[0], rtol=1e-12)
    assert (found[1][:, :2].sum(axis=1) <= 0.6 + 1e-9).all()
    assert not np.allclose(found[1][0], found[1][-1])
    lines = read_metrics(tmp_path / "stage3/metrics.jsonl")
    outer = [line for line in lines if line["kind"] == "outer"]
    assert outer[-1]["group_weights"]["runs"] == pytest.approx(found[1][-1, :2].sum())


def test_a_search_from_a_run_keeps_the_known_and_learns_the_new(
    search_values: dict, tmp_path: Path
) -> None:
    forward, backward, noise = search_values["sources"]
    search_values["sources"] = [backward, noise]
    run_ranks(1, run_search, load(search_values))
    before = read_mixture(search_values["run_dir"]).weights
    search_values["sources"] = [backward, forward, noise]
    search_values["run_dir"] = str(tmp_path / "second")
    search_values["mixture"]["lr"] = 0.3
    found = start_from(load(search_values), tmp_path / "run")
    assert (found.known, found.new) == (("backward", "noise"), ("forward",))
    run_ranks(1, run_search, found.config)
    after = read_mixture(search_values["run_dir"])
    assert after.initial["forward"] == pytest.approx(1 / 3)
    assert after.weights["forward"] > 0.34
    ratio = before["backward"] / before["noise"]
    assert after.weights["backward"] / after.weights["noise"] == pytest.approx(ratio, rel=1e-9)
    assert [group.sources for group in after.groups] == [("backward", "noise"), ("forward",)]
