"""The token budget of the final run enters the search: sources repeat in it as they will."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_fastmix.batch.batches import Batches
from megatron_fastmix.batch.sources import build_source_blend
from megatron_fastmix.cli.main import main
from megatron_fastmix.config import SearchConfig, dump_config, load_config
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.search.budget import offered_shares
from megatron_fastmix.search.inputs import check_inputs
from tests.conftest import SEQ_LENGTH, SOURCES, write_rows
from tests.distributed.searches import load, run_search

pytestmark = pytest.mark.slow

SEARCHED = 6 * 12 * SEQ_LENGTH
"""Loss tokens of the small search."""


@pytest.fixture
def sampling(search_values: dict) -> dict:
    search_values["mixture"]["weighting"] = "sampling"
    return search_values


@pytest.mark.parametrize("text", ["20K", "2e4", "20_000", 20000, 2.0e4, "0.02M"])
def test_a_budget_is_written_as_people_write_it(sampling: dict, tmp_path: Path, text) -> None:
    sampling["data"]["token_budget"] = text
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(sampling))
    config = load_config(file)
    assert config.token_budget == config.data.budget == 20_000
    file.write_text(dump_config(config))
    assert load_config(file) == config


def test_one_key_holds_it(sampling: dict) -> None:
    assert load(sampling).token_budget is None
    assert load(sampling, **{"output.token_budget": "300B"}).token_budget == 300_000_000_000
    assert load(sampling, **{"output.token_budget": "300B"}).data.budget is None
    both = {"data.token_budget": "30K", "output.token_budget": "300B"}
    with pytest.raises(ConfigError, match=r"older name of data.token_budget, which is 30000"):
        load(sampling, **both)
    with pytest.raises(ConfigError, match=r"mixture.weighting: found 'loss'.*use sampling"):
        load(sampling, **{"data.token_budget": "30K", "mixture.weighting": "loss"})
    for wrong in ("x", "-3", "0", "nan"):
        with pytest.raises(ConfigError, match=r"data.token_budget: found"):
            load(sampling, **{"data.token_budget": wrong})


def test_the_share_is_that_of_the_tokens_and_its_limits_are_named(sampling: dict) -> None:
    config = load(sampling, **{"data.token_budget": 4 * SEARCHED})
    inputs = check_inputs(config, 1)
    assert offered_shares(config, inputs) == pytest.approx(dict.fromkeys(SOURCES, 0.25))
    with pytest.raises(ConfigError, match=r"use at most training.train_iters 3,"):
        offered_shares(load(sampling, **{"data.token_budget": SEARCHED // 2}), inputs)
    with pytest.raises(ConfigError, match=r"trains on; give the run's own budget"):
        offered_shares(load(sampling, **{"data.token_budget": 1}), inputs)
    long = {"data.token_budget": "10M"}
    with pytest.raises(ConfigError, match=r"of forward, .* less than one sample is left") as found:
        offered_shares(load(sampling, **long), inputs)
    least = re.search(r"train_iters ([\d,]+)", str(found.value))
    assert least is not None
    steps = int(least[1].replace(",", ""))
    assert offered_shares(load(sampling, **long, **{"training.train_iters": steps}), inputs)
    with pytest.raises(ConfigError, match="less than one sample"):
        offered_shares(load(sampling, **long, **{"training.train_iters": steps - 1}), inputs)


def test_text_and_rows_are_each_repeated_as_in_the_run(
    sampling: dict, answer_corpora: Path
) -> None:
    sampling["sources"][1]["path"] = str(answer_corpora / "backward")
    config = load(sampling, **{"data.token_budget": 4 * SEARCHED})
    inputs = check_inputs(config, 1)
    shares = offered_shares(config, inputs)
    assert shares is not None
    samples = config.training.train_iters * config.training.global_batch_size
    for source, found in zip(config.sources, inputs.sources, strict=True):
        held = float(found.size.count("samples", config.data.seq_length))
        in_search = samples / (shares[source.name] * held)  # times the weight
        assert in_search == pytest.approx(4 * SEARCHED / found.size.loss_tokens, rel=0.05)
    assert shares["backward"] < shares["forward"] == pytest.approx(0.25)


def test_no_length_is_advised_that_is_refused(sampling: dict, answer_corpora: Path) -> None:
    # A few rows beside much text: what would leave one of them is longer than the run.
    rows = answer_corpora.parent / "few"
    write_rows(rows, [([1] * 5, [2])] * 3, 256)
    sampling["sources"][1]["path"] = str(rows)
    config = load(sampling, **{"data.token_budget": 2 * SEARCHED})
    with pytest.raises(ConfigError, match="less than one sample is left") as found:
        offered_shares(config, check_inputs(config, 1))
    assert "train_iters" not in str(found.value)
    assert "merge these sources with others" in str(found.value)


def batches_of(config: SearchConfig, share: float | None) -> Batches:
    mixture = Mixture(config.source_names, config.mixture)
    cache = str(config.data.data_cache_path)
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    shares = None if share is None else dict.fromkeys(config.source_names, share)
    blend = build_source_blend(config, mixture, tokenizer, cache, shares)
    return Batches(config, blend, [], DataParallelGroup())


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("answers", [False, True])
def test_training_and_probe_read_the_same_share_as_often_as_the_run(
    sampling: dict, corpora: Path, answer_corpora: Path, shards: bool, answers: bool
) -> None:
    folder = answer_corpora if answers else corpora
    for name, source in zip(SOURCES, sampling["sources"], strict=True):
        source["path"] = str(folder / name)
    if shards:
        others = [str(folder / "target")] if answers else [str(corpora / "noise_too")]
        sampling["sources"][2]["path"] = [str(folder / "noise"), *others]
        sampling["targets"][0]["path"] = str(corpora / "target_backward")
    weights = [0.6, 0.3, 0.1]
    changes = {"mixture.initial_weights": weights, "training.train_iters": 30}
    config = load(sampling, **changes)
    share = 0.2
    blend = batches_of(config, share).blend
    whole = batches_of(config, None).blend
    for k, (size, of) in enumerate(zip(blend.epoch_sizes, whole.epoch_sizes, strict=True)):
        assert size == pytest.approx(share * of, abs=1)
        tokens = {bytes(blend.sample("probe", k, i)["tokens"].numpy()) for i in range(3 * size)}
        offered = {bytes(blend.datasets[k][i]["tokens"].numpy()) for i in range(size)}
        assert tokens == offered
        whole_source = whole.datasets[k]
        assert offered <= {bytes(whole_source[i]["tokens"].numpy()) for i in range(of)}
    draws = len(blend)
    usage = blend.usage()
    for k, name in enumerate(SOURCES):
        # α·D/U with D = T/share, T the draws.
        expected = weights[k] * draws / share / whole.epoch_sizes[k]
        assert usage[name].epochs == pytest.approx(expected, rel=0.1)
    seen: dict[int, set[bytes]] = {k: set() for k in range(3)}
    for index in range(draws):
        sample = blend[index]
        seen[int(sample["dataset_id"])].add(bytes(sample["tokens"].numpy()))
    for k, size in enumerate(blend.epoch_sizes):
        assert len(seen[k]) <= size


def test_a_larger_share_holds_a_smaller_one(sampling: dict) -> None:
    config = load(sampling)
    sets = []
    for share in (0.1, 0.4, 1.0):
        source = batches_of(config, share).blend.datasets[0]
        sets.append({bytes(source[i]["tokens"].numpy()) for i in range(len(source))})
    assert sets[0] < sets[1] < sets[2]


def test_a_search_with_a_budget_runs_and_its_result_counts_with_it(
    sampling: dict, tmp_path: Path, capsys
) -> None:
    config = load(sampling, **{"data.token_budget": 4 * SEARCHED})
    histories = [found["history"] for found in run_ranks(2, run_search, config)]
    np.testing.assert_array_equal(*histories)
    found = read_mixture(config.run_dir)
    assert found.token_budget == 4 * SEARCHED
    for source in found.sources:
        expected = source.weight * 4 * SEARCHED / source.size.tokens
        assert found.epochs[source.name] == pytest.approx(expected)
    file = tmp_path / "plan.yaml"
    file.write_text(dump_config(config))
    assert main(["plan", "--config", str(file), "--gpus-per-node", "1"]) == 0
    out = capsys.readouterr().out
    assert "the search reads 0.25 of every source's samples" in out
