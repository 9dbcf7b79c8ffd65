"""Means, spreads, verdicts and the table of a comparison."""

import dataclasses
import json
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fastmix.lab.comparison.result import (
    error_line,
    loss_table,
    measurement_lines,
    versions,
)
from megatron_fastmix.lab.comparison.rows import Row
from megatron_fastmix.lab.comparison.statistics import (
    better_beyond_spread,
    evaluation_error,
    measurements,
    pooled_deviation,
    separation,
    standard_deviation,
)
from megatron_fastmix.lab.measurements import Measurement, write_measurements

losses = st.lists(st.floats(0.1, 20), min_size=2, max_size=6)


def row(mixture, loss, seed=1, samples=(1.0, 3.0), flops=2e12):
    return Row(
        setting="s",
        mixture=mixture,
        kind=mixture.partition(":")[0],
        seed=seed,
        loss=loss,
        train_loss=loss,
        tokens=1000,
        flops=flops,
        wall_seconds=1.0,
        device="cpu",
        weights={"a": "0.7000", "b": "0.3000"},
        losses={"t": loss},
        sample_losses={"t": samples},
        versions={"torch": "2.0"},
    )


def rows_of(**by_mixture):
    return [
        row(name.replace("_", ":"), loss, seed)
        for name, values in by_mixture.items()
        for seed, loss in enumerate(values, 1)
    ]


def value(found, name):
    return next(figure for figure in found if figure.figure == name)


@given(losses)
def test_pooling_one_group_is_its_deviation(values):
    assert pooled_deviation(values) == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert standard_deviation(values) == pytest.approx(statistics.stdev(values), abs=1e-9)


@given(losses, losses)
def test_the_pooled_deviation_lies_between_the_two(a, b):
    low, high = sorted((standard_deviation(a), standard_deviation(b)))
    assert low - 1e-9 <= pooled_deviation(a, b) <= high + 1e-9


def test_pooling_weighs_by_degrees_of_freedom():
    assert pooled_deviation([1.0, 3.0], [0.0, 0.0, 0.0]) == pytest.approx(math.sqrt(2 / 3))
    assert pooled_deviation([1.0, 3.0], [7.0]) == pytest.approx(math.sqrt(2))
    assert pooled_deviation([1.0], [2.0]) is None
    assert standard_deviation([1.0]) is None


def test_separation_is_positive_where_the_learned_mixture_is_better():
    assert separation([5.0, 7.0], [1.0, 3.0]) == pytest.approx(4 / math.sqrt(2))
    assert separation([1.0, 3.0], [5.0, 7.0]) == pytest.approx(-4 / math.sqrt(2))
    assert separation([2.0], [1.0]) is None
    assert separation([2.0, 2.0], [1.0, 1.0]) == math.inf


def test_only_what_lies_beyond_the_spread_counts_as_better():
    learned = [4.0, 4.2]  # deviation 0.141
    assert better_beyond_spread([[3.9], [4.0], [3.99], [5.0]], learned) == 1
    assert better_beyond_spread([[1.0]], [4.0]) is None


def test_answers_of_unequal_length_and_one_loss_a_token_have_no_error():
    sizes = (0.5, 1.0, 1.5)
    each = row("learned", 5.0, samples=tuple(5.0 * size for size in sizes))
    assert evaluation_error({"t": 1.0}, [each]) == pytest.approx(5.0 * 0.5 / math.sqrt(3))
    known = dataclasses.replace(each, sample_sizes={"t": sizes})
    assert evaluation_error({"t": 1.0}, [known]) == pytest.approx(0.0)
    # 0.3 a token more in the longest alone: 0.15 on average, and residuals from that.
    other = dataclasses.replace(known, sample_losses={"t": (2.5, 5.0, 7.95)})
    residuals = [-0.075, -0.15, 0.45 - 0.15 * 1.5]
    found = evaluation_error({"t": 1.0}, [other], [known])
    assert found == pytest.approx(statistics.stdev(residuals) / math.sqrt(3))


def test_figures_of_a_clear_win():
    rows = rows_of(
        learned=[4.0, 4.02, 3.98],
        uniform=[4.3, 4.32, 4.28],
        proportional=[4.03, 4.01, 4.02],
        single_a=[4.1],
        single_b=[3.9],
        random_0=[4.0],
        random_1=[3.97],
    )
    found = measurements(rows, [1e12, 3e12])
    uniform = value(found, "uniform minus learned over pooled sd")
    assert (uniform.value, uniform.reached) == (pytest.approx(15), True)
    proportional = value(found, "proportional minus learned over pooled sd")
    assert (round(proportional.value, 2), proportional.reached) == (1.26, False)
    draws = value(found, "random draws better than learned beyond the spread")
    assert (draws.value, draws.reached, draws.unit) == (1, False, "of 2")
    assert value(found, "best single source, target loss").value == 3.9
    assert value(found, "search cost over one target training").value == pytest.approx(1.0)
    assert value(found, "search cost").unit == "FLOPs, outer steps included"


def test_what_the_rows_do_not_tell_is_unknown():
    found = measurements(rows_of(learned=[4.0], uniform=[5.0]), [1e12])
    assert value(found, "uniform minus learned over pooled sd").reached is None
    assert not [figure for figure in found if figure.figure.startswith(("prop", "random"))]
    assert "undecided" in measurement_lines(found)
    assert measurements([], [])  # nothing selected is no crash


def test_reach_depends_on_the_direction():
    def figure(better, number):
        return Measurement(figure="f", value=number, reach=2.0, better=better, unit="u").reached

    assert figure("higher", 2.0) and not figure("higher", 1.9)
    assert figure("lower", 2.0) and not figure("lower", 2.1)


def test_differences_over_the_same_samples_are_known_better():
    a, b = row("learned", 2.0, samples=(1.0, 2.0, 3.0)), row("uniform", 3.0, samples=(2.0, 3.0, 4))
    assert evaluation_error({"t": 1.0}, [a]) == pytest.approx(1 / math.sqrt(3))
    assert evaluation_error({"t": 1.0}, [b], [a]) == 0.0
    assert "0.5774 for a loss, 0.0000 for a difference" in error_line({"t": 1.0}, [a, b])


def test_the_table_is_sorted_by_loss():
    rows = rows_of(uniform=[4.5, 4.7], learned=[4.0, 4.2], single_a=[4.3])
    lines = loss_table(rows).splitlines()[2:]
    assert [line.split()[0] for line in lines] == ["learned", "single:a", "uniform"]
    assert lines[0].split()[1:6] == ["4.1000", "±", "0.1414", "2", "+0.0000"]
    assert lines[1].split()[1:4] == ["4.3000", "1", "+0.2000"]
    assert "a 0.70, b 0.30" in lines[2]


def test_several_learned_mixtures_also_stand_as_one():
    rows = rows_of(learned_x=[4.0], learned_y=[4.4], uniform=[5.0, 5.1])
    assert "learned (all)" in loss_table(rows)
    assert value(measurements(rows, [1.0]), "learned target loss").value == pytest.approx(4.2)


def test_json(tmp_path):
    rows = rows_of(learned=[4.0, 4.0], uniform=[5.0, 5.0])  # no spread: infinite separation
    write_measurements(
        tmp_path / "f.json",
        measurements(rows, [1e12]),
        versions=versions(row.versions for row in rows),
    )
    content = json.loads((tmp_path / "f.json").read_text())
    assert set(content) == {"rows", "machine", "versions", "settings"}
    assert set(content["rows"][0]) == {"figure", "value", "reach", "better", "unit"}
    assert content["versions"]["torch"] == "2.0"
    assert content["machine"]["cores"] >= 1
