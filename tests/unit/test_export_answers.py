"""Exports of fine-tuning mixtures count rows, and drawing rows gives the learned token shares."""

import dataclasses
import json
from fractions import Fraction

import numpy as np
import pytest
import yaml

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.adjustment import Adjustment
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.blend_weights import read_blend_weights
from megatron_fastmix.export.notes import notes
from megatron_fastmix.export.paths import mapped
from megatron_fastmix.export.registry import FORMATS
from megatron_fastmix.result.learned_mixture import OptimalityResult
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.mixture_keys import ANSWER_UNIT, values_of
from megatron_fastmix.result.over_seeds import average
from megatron_fastmix.result.sizes import Shard, Size

ROWS = {"long": (100, 40_000), "short": (1_000, 10_000), "rare": (50, 3_000)}
"""Rows and answer tokens; there are four times as many tokens in all."""


@pytest.fixture
def mixture(make_mixture, with_sizes):
    sizes = {
        name: {"tokens": 4 * answers, "loss_tokens": answers, "rows": rows}
        for name, (rows, answers) in ROWS.items()
    }
    weights = {"long": 0.5, "short": 0.3, "rare": 0.2}
    return with_sizes(make_mixture(weights, token_budget=100_000), **sizes)


def text_of(name, mixture, rows=None, **changes):
    return FORMATS[name].render(make_blend(mixture, FORMATS[name].unit(rows), **changes))


def drawn_token_shares(mixture, shares, draws=200_000):
    """Answer-token shares of rows that are drawn at random by `shares`."""
    generator = np.random.default_rng(0)
    names = list(shares)
    probabilities = np.array([shares[name] for name in names])
    rows = generator.multinomial(draws, probabilities / probabilities.sum())
    mean = {name: size.loss_tokens / size.rows for name, size in mixture.sizes.items()}
    tokens = rows * np.array([mean[name] for name in names])
    return dict(zip(names, tokens / tokens.sum(), strict=True))


@pytest.mark.parametrize("form", ["llama-factory", "megatron-data-args", "hf-datasets"])
def test_drawing_rows_as_exported_gives_the_learned_token_shares(mixture, form):
    text = text_of(form, mixture, decimals=6)
    if form == "llama-factory":
        section = yaml.safe_load(text)
        values = map(float, section["interleave_probs"].split(","))
        shares = dict(zip(section["dataset"].split(","), values, strict=True))
    elif form == "megatron-data-args":
        words = text.split()
        paths = {s.prefixes[0]: s.name for s in mixture.sources}
        shares = {paths[p]: float(w) for w, p in zip(words[::2], words[1::2], strict=True)}
    else:
        scope = {}
        exec(text.replace("from datasets import interleave_datasets", ""), scope)
        shares = {name: source["probability"] for name, source in scope["SOURCES"].items()}
    found = drawn_token_shares(mixture, shares)
    for source in mixture.sources:
        assert found[source.name] == pytest.approx(source.weight, abs=0.01)


def test_what_megatrons_pretraining_would_make_of_rows_is_said(mixture, make_mixture):
    said = notes(mixture, make_blend(mixture, "samples"))
    assert any("with --sft; its pretraining draws samples of --seq-length" in n for n in said)
    assert not any("--sft" in n for n in notes(mixture, make_blend(mixture, "rows")))
    text = make_mixture({"a": 0.9, "b": 0.1})
    assert not any("--sft" in n for n in notes(text, make_blend(text, "samples")))


def test_epochs_and_caps_are_those_of_answer_tokens(mixture):
    blend = make_blend(mixture, "rows", decimals=9)
    for entry in blend.sources:
        expected = mixture.weights[entry.name] * 100_000 / ROWS[entry.name][1]
        assert float(blend.epochs(entry)) == pytest.approx(expected, rel=1e-3)
    capped = make_blend(
        mixture, "rows", decimals=9, adjustment=Adjustment(fixed={}, groups={}, max_epochs=3)
    )
    # What is taken from `rare` would give `short` more than 3 epochs too.
    assert capped.capped == ("short", "rare")
    tokens = {name: capped.shares[name] * answers / rows for name, (rows, answers) in ROWS.items()}
    assert tokens["rare"] / sum(tokens.values()) == pytest.approx(3 * 3_000 / 100_000, rel=1e-3)


def test_tools_that_count_all_tokens_get_shares_of_all_tokens(make_mixture, with_sizes):
    """Half of the answer tokens from each; `wordy` has nine questions' tokens for one of them."""
    mixture = with_sizes(
        make_mixture({"terse": 0.5, "wordy": 0.5}, token_budget=3_000),
        terse={"tokens": 2_000, "loss_tokens": 1_000, "rows": 100},
        wordy={"tokens": 10_000, "loss_tokens": 1_000, "rows": 100},
    )
    text = text_of("olmo-core", mixture)
    sources = {s["source_name"]: s for s in yaml.safe_load(text)["sources"]}
    assert {name: s["target_ratio"] for name, s in sources.items()} == {
        "terse": 0.1667,
        "wordy": 0.8333,
    }
    # 1.5 epochs of both, 18,000 tokens.
    assert text.startswith("# for requested_tokens up to 18000\n")
    assert [s["max_repetition_ratio"] for s in sources.values()] == pytest.approx(
        [1.5, 1.5], abs=0.03
    )
    weights = yaml.safe_load(text_of("nanotron", mixture))["dataset"]["dataset_weights"]
    assert weights == [0.1667, 0.8333]
    # Rows that a tool packs into sequences of one length are drawn as tokens are.
    packed = yaml.safe_load(text_of("mosaicml-streaming", mixture, "sequences"))["streams"]
    assert [stream["proportion"] for stream in packed.values()] == [0.1667, 0.8333]
    rows = yaml.safe_load(text_of("mosaicml-streaming", mixture))["streams"]
    assert [stream["proportion"] for stream in rows.values()] == [0.5, 0.5]


def test_a_source_of_several_datasets_has_an_entry_for_each(make_mixture, tmp_path):
    first, second = make_mixture({"a": 0.6, "b": 0.4}).sources
    shards = tuple(
        dataclasses.replace(first.shards[0], path=path, tokens=tokens, loss_tokens=tokens)
        for path, tokens in (("/data/a-0", 1_000), ("/data/a-1", 3_000))
    )
    mixture = make_mixture({}, sources=(dataclasses.replace(first, shards=shards), second))
    assert text_of("megatron-data-args", mixture) == (
        "0.1500 /data/a-0\n0.4500 /data/a-1\n0.4000 /data/b\n"
    )
    assert mixture.epochs["a"] == pytest.approx(0.6 * 10_000 / 4_000)
    # A DataBlend has names, which it numbers, and is read back as the same weights.
    (tmp_path / "blend.json").write_text(text_of("nemotron", mixture))
    found = read_blend_weights(tmp_path / "blend.json", mixture)
    assert found == pytest.approx({"a": 0.6, "b": 0.4})


def test_sources_of_many_datasets_keep_their_weights_and_every_dataset(make_mixture):
    sources = []
    for source, count in zip(
        make_mixture({"web": 0.95, "small": 0.05}).sources, (200, 1000), strict=True
    ):
        first = source.shards[0]
        shards = tuple(
            dataclasses.replace(first, path=f"/data/{source.name}-{n}", tokens=n, loss_tokens=n)
            for n in range(1000, 1000 + count)
        )
        sources.append(dataclasses.replace(source, shards=shards))
    text = text_of("megatron-data-args", make_mixture({}, sources=tuple(sources)))
    written = {line.split()[1]: Fraction(line.split()[0]) for line in text.splitlines()}
    assert len(written) == 1200
    assert sum(written.values()) == 1
    for source in sources:
        mine = [written[shard.path] for shard in source.shards]
        assert sum(mine) == Fraction(f"{source.weight:.4f}")
        exact = [source.weight * shard.tokens / source.size.tokens for shard in source.shards]
        np.testing.assert_allclose(np.array(mine, float), exact, rtol=1.1e-3)


def test_a_source_of_no_rows_and_no_weight_is_left_out_of_rows(make_mixture):
    first, second = make_mixture({"a": 1.0, "b": 0.0}).sources
    second = dataclasses.replace(second, shards=(dataclasses.replace(second.shards[0], rows=0),))
    assert make_blend(make_mixture({}, sources=(first, second)), "rows").left_out == ("b",)


def test_a_tiny_dataset_of_a_source_does_not_stop_an_export_of_rows(make_mixture):
    first, second = make_mixture({"a": 0.95, "b": 0.05}).sources
    shards = tuple(
        dataclasses.replace(second.shards[0], path=f"/data/b-{rows}", rows=rows)
        for rows in (1, 1_000_000)
    )
    second = dataclasses.replace(second, shards=shards)
    blend = make_blend(make_mixture({}, sources=(first, second)), "rows")
    assert [entry.path for entry in blend.sources] == ["/data/a", "/data/b-1", "/data/b-1000000"]
    tiny, large = (Fraction(entry.weight) for entry in blend.sources[1:])
    assert float(large / tiny) == pytest.approx(1e6, rel=2e-3)


def test_targets_weigh_in_a_validation_set_as_they_do_in_the_search(make_mixture):
    """Half of the loss tokens from each: a sample of text has 32, a row of answers 4."""
    (target,) = make_mixture({"a": 1.0}).targets
    targets = (
        dataclasses.replace(target, name="text", path="/data/text", weight=0.5),
        dataclasses.replace(
            target,
            name="answers",
            path="/data/answers",
            weight=0.5,
            size=Size(tokens=3_000, loss_tokens=400, rows=100),
        ),
    )
    text = text_of("megatron-per-split", make_mixture({"a": 1.0}, targets=targets))
    valid = json.loads(text)["valid"]
    assert valid == ["0.1111", "/data/text", "0.8889", "/data/answers"]
    # Files of version 1 do not have these sizes: ω as it is.
    old = tuple(dataclasses.replace(t, size=None) for t in targets)
    text = text_of("megatron-per-split", make_mixture({"a": 1.0}, targets=old))
    assert json.loads(text)["valid"] == ["0.5000", "/data/text", "0.5000", "/data/answers"]


def test_every_dataset_of_a_target_is_mapped(make_mixture):
    (target,) = make_mixture({"a": 1.0}).targets
    shards = tuple(
        Shard(path=f"/data/t{number}", tokens=100, loss_tokens=100, rows=1) for number in (1, 2)
    )
    several = dataclasses.replace(target, path="/data/t1", shards=shards)
    found = mapped(make_mixture({"a": 1.0}, targets=(several,)), {"/data": "/lustre"})
    assert found.targets[0].prefixes == ("/lustre/t1", "/lustre/t2")
    assert found.targets[0].path == "/lustre/t1"


def test_the_verdict_of_several_seeds_is_the_worst(make_mixture):
    seeds = [
        make_mixture({"a": 1.0}, seed=seed, optimality=OptimalityResult(status=status, text="x"))
        for seed, status in enumerate(("settled", "moving", "not_optimal", "moving"))
    ]
    found = average(seeds).optimality
    assert (found.status, found.text) == ("not_optimal", "Seed 2: x")
    assert average(seeds[:1] * 2).optimality.text == "x"


def test_sizes_that_cannot_be_are_refused(mixture, with_sizes, tmp_path):
    for changes, message in (
        ({"loss_tokens": 0}, "long: /data/long: loss_tokens is 0, expected 1 or more"),
        ({"loss_tokens": 200_000}, "loss_tokens is 200000, expected 1 or more and at most 160000"),
        ({"rows": 0}, "long: /data/long: rows is 0"),
        ({"tokens": 160_000}, "loss_tokens is 160000 of 160000, expected 'share of answer tokens'"),
    ):
        if changes == {"loss_tokens": 0}:
            values = values_of(mixture)
            values["sources"][0]["shards"][0]["loss_tokens"] = 0
        else:
            last = {"short": {}, "rare": {}}
            values = values_of(with_sizes(mixture, long=changes, **last))
            values["unit"] = ANSWER_UNIT
        (tmp_path / "mixture.json").write_text(json.dumps(values))
        with pytest.raises(DataError, match=message):
            read_mixture(tmp_path)


def test_an_old_file_is_read_and_its_numbers_worked_out_again(mixture, tmp_path):
    """Version 1: no shards, no loss tokens, targets without sizes; epochs of seeds were wrong."""
    values = values_of(mixture) | {"version": 1}
    for source in values["sources"]:
        del source["shards"], source["loss_tokens"]
        source |= {"epochs": 0.1, "row_weight": 0.2}
    for target in values["targets"]:
        del target["loss_tokens"], target["rows"]
    (tmp_path / "mixture.json").write_text(json.dumps(values))
    old = read_mixture(tmp_path)
    assert old.sources == mixture.sources
    assert old.epochs == mixture.epochs
    assert old.targets[0].size is None
    values["sources"][0]["rows"] = None
    (tmp_path / "mixture.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="rows is None"):
        read_mixture(tmp_path)


def test_what_the_search_saw_of_repetition_is_said(make_mixture):
    plain = make_mixture({"a": 1.0}, token_budget=1_000)
    assert "does not see" in plain.repetition_is
    searched = make_mixture(
        {"a": 1.0}, token_budget=1_000, config={"data": {"token_budget": 1_000}}
    )
    assert "weighed that" in searched.repetition_is
    assert "does not see" in searched.for_budget(2_000).repetition_is
