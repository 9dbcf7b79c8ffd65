"""Exports of fine-tuning mixtures count rows, and drawing rows gives the learned token shares."""

import dataclasses

import numpy as np
import pytest
import yaml

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.adjustment import Adjustment
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.registry import FORMATS
from megatron_fastmix.export.rows import repetitions, row_shares
from megatron_fastmix.result.mixture_file import ANSWER_UNIT, read_mixture


@pytest.fixture
def mixture(make_mixture):
    weights = {"long": 0.5, "short": 0.3, "rare": 0.2}
    rows = {"long": (100, 40_000), "short": (1_000, 10_000), "rare": (50, 3_000)}
    whole = make_mixture(weights, token_budget=100_000)
    sources = tuple(
        dataclasses.replace(s, rows=rows[s.name][0], answer_tokens=rows[s.name][1], row_weight=0.1)
        for s in whole.sources
    )
    return dataclasses.replace(whole, unit=ANSWER_UNIT, sources=sources)


def drawn_token_shares(mixture, shares, draws=200_000):
    """Answer-token shares of rows that are drawn at random by `shares`."""
    generator = np.random.default_rng(0)
    names = list(shares)
    probabilities = np.array([shares[name] for name in names])
    rows = generator.multinomial(draws, probabilities / probabilities.sum())
    mean = {s.name: s.answer_tokens / s.rows for s in mixture.sources}
    tokens = rows * np.array([mean[name] for name in names])
    return dict(zip(names, tokens / tokens.sum(), strict=True))


@pytest.mark.parametrize("form", ["llama-factory", "megatron-data-args", "hf-datasets"])
def test_drawing_rows_as_exported_gives_the_learned_token_shares(mixture, form):
    text = FORMATS[form].render(make_blend(mixture, decimals=6))
    if form == "llama-factory":
        section = yaml.safe_load(text)
        values = map(float, section["interleave_probs"].split(","))
        shares = dict(zip(section["dataset"].split(","), values, strict=True))
    elif form == "megatron-data-args":
        words = text.split()
        paths = {s.path: s.name for s in mixture.sources}
        shares = {paths[p]: float(w) for w, p in zip(words[::2], words[1::2], strict=True)}
    else:
        scope = {}
        exec(text.replace("from datasets import interleave_datasets", ""), scope)
        shares = {name: source["probability"] for name, source in scope["SOURCES"].items()}
    found = drawn_token_shares(mixture, shares)
    for source in mixture.sources:
        assert found[source.name] == pytest.approx(source.weight, abs=0.01)


def test_epochs_and_caps_are_those_of_answer_tokens(mixture):
    blend = make_blend(mixture, decimals=9)
    for entry, source in zip(blend.sources, mixture.sources, strict=True):
        expected = source.weight * 100_000 / source.answer_tokens
        assert repetitions(entry, blend.token_budget) == pytest.approx(expected, rel=1e-3)
    capped = make_blend(
        mixture, decimals=9, adjustment=Adjustment(fixed={}, groups={}, max_epochs=3)
    )
    # What is taken from `rare` would give `short` more than 3 epochs too.
    assert capped.capped == ("short", "rare")
    shares = row_shares(capped, "documents")
    tokens = {s.name: shares[s.name] * s.answer_tokens / s.rows for s in mixture.sources}
    assert tokens["rare"] / sum(tokens.values()) == pytest.approx(3 * 3_000 / 100_000, rel=1e-3)


def test_an_answer_unit_without_rows_is_refused(mixture, tmp_path):
    sources = (dataclasses.replace(mixture.sources[0], rows=None), *mixture.sources[1:])
    dataclasses.replace(mixture, sources=sources).write(tmp_path / "mixture.json")
    with pytest.raises(DataError, match="rows is None"):
        read_mixture(tmp_path)
