"""Texts about one result say the same: weights as the blend has them, advice that can be taken."""

from __future__ import annotations

import dataclasses
import re

import pytest

from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.notes import change_table, notes
from megatron_fastmix.report.closing import closing_lines
from megatron_fastmix.report.commands import next_commands
from megatron_fastmix.report.summary import final_table

UNEVEN = {"a": 0.54865, "b": 0.27865, "c": 0.10045, "d": 0.07225}
"""Each rounds up at four places, to a sum of 1.0002."""


def columns(table: str) -> dict[str, list[str]]:
    """The columns of the first table in a text, by heading."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in table.split("\n\n")[0].splitlines()]
    heads = next(line for line in lines if line[0] == "source")
    rows = [line for line in lines if len(line) == len(heads) and line[0][0] not in "-s"]
    return dict(zip(heads, zip(*rows, strict=True), strict=True))


def test_weights_are_told_as_the_blend_has_them(make_mixture):
    mixture = make_mixture(UNEVEN)
    blend = make_blend(mixture)
    written = [entry.weight for entry in blend.sources]
    told = columns(final_table(mixture, blend_txt=None, blend_json=None))["learned weight"]
    assert list(told) == written
    exported = columns(change_table(mixture, blend))
    assert list(exported["learned"]) == list(exported["exported"]) == written
    assert set(exported["change"]) == {"+0.0000"}


@pytest.mark.parametrize(("budget", "possible"), [(18_000, True), (50_000, False)])
def test_a_cap_is_advised_only_where_it_can_hold(make_mixture, tmp_path, budget, possible):
    """Of 5,000 tokens a source: 80,000 at 4 epochs, of which a search without c and d has half."""
    mixture = make_mixture({"a": 0.7, "b": 0.3, "c": 0.0, "d": 0.0}, token_budget=budget)
    mixture = dataclasses.replace(mixture, token_budget=2 * budget)
    command = "--max-epochs 4"
    table = final_table(mixture, blend_txt=None, blend_json=None)
    told = " ".join([table, *notes(mixture, make_blend(mixture))])
    listed = [each.text for each in next_commands(tmp_path, mixture, {})]
    assert (command in told) == any(command in text for text in listed) == possible
    assert ("lower the token budget" in told) != possible
    assert ("Capped at 4 epochs" in closing_lines(tmp_path, mixture, None)) == possible


def test_a_cap_that_leaves_no_room_for_rounding_is_no_error(make_mixture, tmp_path):
    mixture = dataclasses.replace(make_mixture({"a": 0.5, "b": 0.3, "c": 0.2}), token_budget=60_000)
    assert "Capped at 4 epochs" not in closing_lines(tmp_path, mixture, None)
    table = final_table(mixture, blend_txt=None, blend_json=None)
    assert "lower the token budget" in table and "--max-epochs" not in table


def test_an_unfinished_search_is_to_go_on_first(make_mixture, tmp_path):
    mixture = make_mixture({"a": 0.7, "b": 0.3, "c": 0.0, "d": 0.0}, token_budget=18_000)
    mixture = dataclasses.replace(mixture, token_budget=36_000)
    for complete in (True, False):
        listed = next_commands(tmp_path, dataclasses.replace(mixture, complete=complete), {})
        resumes = [f"search --config {tmp_path / 'config.yaml'}" in each.text for each in listed]
        assert resumes[0] != complete
        exports = [each.text for each in listed if " --max-epochs" in each.text]
        assert ["--allow-partial" in text for text in exports] == [not complete]


def test_rows_beside_text_are_told_as_shares_of_draws(make_mixture, with_sizes):
    mixture = with_sizes(
        make_mixture({"text": 0.6, "rows": 0.4}), rows={"loss_tokens": 500, "rows": 100}
    )
    assert mixture.mixed
    told = columns(final_table(mixture, blend_txt=None, blend_json=None))
    written = {entry.name: entry.weight for entry in make_blend(mixture).sources}
    assert dict(zip(told["source"], told["share of draws"], strict=True)) == written
    assert "share of rows" not in told
