"""The table of the comparison of methods, its measurements and its picture, by hand."""

import dataclasses

import pytest

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.registry import METHODS
from megatron_fastmix.lab.comparison import over_scenarios
from megatron_fastmix.lab.comparison.method_lines import (
    MethodLine,
    behind,
    beyond_error,
    closed,
    gap,
    judge,
)
from megatron_fastmix.lab.comparison.method_plot import (
    COLOURS,
    FREE,
    SEARCHED,
    labels,
    plot_methods,
)
from megatron_fastmix.lab.comparison.method_table import measurements, text


def line(method, losses, flops):
    return MethodLine(
        method=method,
        losses=dict(enumerate(losses, start=1)),
        flops=flops,
        tokens=flops / 2,
        proxies=64 if flops == 640 else None,
        seconds=flops,
        weights={"a": 0.25, "b": 0.75},
    )


LINES = [
    line("climb", (4.0, 4.2), 640.0),
    line("fastmix", (4.1, 4.3), 10.0),
    line("regmix", (4.6,), 640.0),
    line("doremi", (4.8,), 40.0),
    line("uniform", (5.1,), 0.0),
]


def test_the_gap_is_that_from_uniform_to_the_best():
    assert closed(LINES[1], LINES) == pytest.approx(1.0 / 1.1)
    assert closed(LINES[0], LINES) == pytest.approx(1.0)
    assert closed(LINES[0], LINES[:2]) is None
    assert closed(LINES[-1], [LINES[-1], line("doge", (5.2,), 1.0)]) is None


def test_methods_are_compared_seed_by_seed():
    ours, other = line("fastmix", (4.0, 4.5, 5.0), 1.0), line("doge", (4.1, 4.8), 1.0)
    difference, error = behind(other, ours)
    assert difference == pytest.approx(0.2)
    # Of 0.1 and 0.3: a deviation of √0.02, over √2.
    assert error == pytest.approx(0.1)
    assert behind(line("doge", (4.1,), 1.0), ours)[1] is None


def test_figures_say_what_is_reached():
    found = {row.figure: row for row in measurements("s", LINES)}
    behind = found["s: fastmix behind the best"]
    # 0.1 over the sample deviation of 4.1 and 4.3.
    assert behind.value == pytest.approx(0.1 / 0.02**0.5)
    assert behind.reached
    assert found["s: gap from uniform to the best that fastmix closes"].value == pytest.approx(
        1.0 / 1.1
    )
    assert found["s: search training FLOPs, regmix / fastmix"].value == 64
    assert found["s: search training FLOPs, regmix / fastmix"].reached
    assert found["s: search FLOPs, regmix / fastmix"].value == 64
    assert found["s: search training FLOPs, climb / fastmix"].reach is None
    # Proxies of another length than FastMix's are no measure of the claim.
    longer = [dataclasses.replace(LINES[1], tokens=50.0), *LINES[2:]]
    unequal = {row.figure: row for row in measurements("s", longer)}
    ratio = unequal["s: search training FLOPs, regmix / fastmix"]
    assert (ratio.value, ratio.reach) == (6.4, None)
    short = {row.figure: row for row in measurements("s", LINES, "doremi")}
    assert short["s: search FLOPs, regmix / doremi"].value == 16
    assert "behind doremi" in text(LINES, "doremi")
    assert "s: search FLOPs, uniform / fastmix" not in found
    paired = found["s: climb behind fastmix, seed by seed"]
    assert (paired.value, paired.better) == (pytest.approx(-0.1), "higher")
    assert [found[f"s: {method}, seeds"].value for method in ("climb", "regmix")] == [2, 1]
    spread = "target loss, standard deviation over seeds"
    assert found[f"s: climb, {spread}"].value == pytest.approx(0.02**0.5)
    assert found[f"s: regmix, {spread}"].value is None
    assert found["s: climb behind fastmix, seed by seed, standard error"].value == pytest.approx(0)


def test_a_difference_counts_beyond_its_interval_alone():
    ours = line("fastmix", (4.0, 4.5, 5.0), 1.0)
    # 0.3, 0.4, 0.5: a mean of 0.4 with an error of 0.058, 4.30 of which are 0.25.
    assert beyond_error(line("doge", (4.3, 4.9, 5.5), 1.0), ours)
    # 0.1, 0.4, 0.7: an error of 0.17 and so an interval of 0.75.
    assert beyond_error(line("doge", (4.1, 4.9, 5.7), 1.0), ours) is False
    assert beyond_error(line("doge", (4.3,), 1.0), ours) is None
    shown = text([ours, line("doge", (4.3, 4.9, 5.5), 1.0), line("odm", (4.1, 4.9, 5.7), 1.0)])
    marks = {row.split()[0]: row.split() for row in shown.splitlines()[2:5]}
    assert "worse" in marks["doge"]
    assert "no" in marks["odm"]


def test_scenarios_together_tell_what_one_does_not():
    ours = line("fastmix", (4.0, 4.5, 5.0), 1.0)
    # 0.1, 0.4, 0.7 in one, 0.6, 0.4, 0.2 in the other: 0.35, 0.4, 0.45 by seed.
    one, two = line("odm", (4.1, 4.9, 5.7), 1.0), line("odm", (4.6, 4.9, 5.2), 1.0)
    alone = line("doge", (4.1, 4.9, 5.7), 1.0)
    (found,) = over_scenarios.differences({"a": [ours, one, alone], "b": [ours, two]})
    assert (found.method, found.mean) == ("odm", pytest.approx(0.4))
    assert found.error == pytest.approx(0.05 / 3**0.5)
    assert found.beyond
    assert not beyond_error(one, ours)
    said = over_scenarios.text([found], ["a", "b"])
    assert said.startswith("a, b: mean")
    assert "worse" in said
    mean, error = over_scenarios.measurements([found], 2)
    assert (mean.value, error.value) == (found.mean, found.error)
    assert not over_scenarios.differences({"a": [ours, one], "b": [two]})
    single = {name: [line("fastmix", (4.0,), 1.0), line("odm", (4.1,), 1.0)] for name in "ab"}
    assert not over_scenarios.differences(single)


def test_scenarios_that_move_together_tell_no_more_than_one():
    ours, other = line("fastmix", (4.0, 4.5, 5.0), 1.0), line("odm", (4.1, 4.9, 5.7), 1.0)
    (found,) = over_scenarios.differences({name: [ours, other] for name in "abcd"})
    assert (found.mean, found.error) == pytest.approx(behind(other, ours))
    assert not found.beyond


def test_methods_of_fewer_seeds_are_not_compared_with_other_seeds():
    uniform, ours = line("uniform", (5.0, 6.0), 0.0), line("fastmix", (4.0, 5.0), 1.0)
    first = line("odm", (4.0,), 1.0)
    # Its loss of the first seed is below the means of both, and yet it gains as much as FastMix.
    lines = [first, ours, uniform]
    assert [closed(each, lines) for each in lines] == [1.0, 1.0, 0.0]


def test_none_that_is_behind_fastmix_stands_before_it():
    uniform, ours = line("uniform", (5.4, 5.0), 0.0), line("fastmix", (4.6, 4.5), 1.0)
    # Of the first seed, where uniform is worst, it gains 0.7; FastMix 0.8 there, 0.65 over both.
    other = line("regmix", (4.7,), 1.0)
    lines = [other, ours, uniform]
    assert [closed(each, lines) for each in lines] == pytest.approx([0.55 / 0.65, 1.0, 0.0])
    # One seed in which FastMix gains next to nothing makes no gap.
    ours_too = line("fastmix", (5.399, 4.5), 1.0)
    assert gap([line("odm", (5.38,), 1.0), ours_too, uniform]) == pytest.approx(0.2505 + 0.019)
    # Without FastMix each is compared over the seeds that it has.
    assert [closed(each, lines[::2]) for each in lines[::2]] == pytest.approx([1.0, 0.0])


def test_seeds_apart_is_the_share_on_other_sources():
    ours = dataclasses.replace(
        line("fastmix", (4.0, 4.5), 1.0),
        weights_by_seed={1: {"a": 0.5, "b": 0.5}, 2: {"a": 0.9, "b": 0.1}},
    )
    assert "0.400" in text([ours])
    assert "0.400" not in text([dataclasses.replace(ours, flops=0.0)], "odm")


def test_what_costs_nothing_is_no_unit_of_costs():
    assert "behind uniform" in text(LINES, "uniform")
    assert not any("FLOPs" in row.figure for row in measurements("s", LINES, "uniform"))


def test_the_judge_is_the_spread_under_the_uniform_mixture():
    lines = [line("fastmix", (4.0, 4.2), 1.0), line("uniform", (5.0, 5.2), 0.0)]
    spread, share = judge(lines)
    assert (spread, share) == (pytest.approx(0.02**0.5), pytest.approx(0.02**0.5))
    assert text(lines).startswith(
        "target models under the uniform mixture: sd 0.1414 over seeds, 0.14"
    )
    assert "more than the 0.2" not in text(lines)
    assert "more than the 0.2" in text([line("fastmix", (4.9,), 1.0), lines[1]])
    assert judge([lines[0]]) is None
    assert judge([lines[1]]) == (pytest.approx(0.02**0.5), None)
    rows = {row.figure: row for row in measurements("s", lines)}
    ratio = rows["s: spread of uniform's target models over seeds / gap from uniform to the best"]
    assert ratio.reached


def test_the_table_names_every_method(tmp_path):
    shown = text(LINES)
    rows = shown.splitlines()[2 : 2 + len(LINES)]
    assert [row.split()[0] for row in rows] == [each.method for each in LINES]
    assert "91%" in shown
    with pytest.raises(ConfigError, match="--plot: needs rows of fastmix and of another"):
        plot_methods({"s": LINES[-1:], "empty": []}, tmp_path / "plot.png")
    plot_methods({"s": LINES, "empty": []}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    more = dataclasses.replace(LINES[2], proxies=32)
    assert labels([*LINES, more]) == {
        "fastmix": "FastMix",
        "climb": "CLIMB, 64 proxies",
        "regmix": "RegMix, 32 or 64 proxies, LightGBM",
        "doremi": "DoReMi",
    }
    # A colour, or a line with its name, for each, and no two methods the same.
    assert sorted([*SEARCHED, *FREE]) == sorted(METHODS)
    assert len(SEARCHED) <= len(COLOURS)
