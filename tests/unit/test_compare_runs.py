"""Whether two mixtures differ beyond their spread: the statistic, the table and the exit code."""

import dataclasses
import math
import random

import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import DataError
from megatron_fastmix.report.comparison import compare
from megatron_fastmix.result.mixture_file import write_mixture


@pytest.fixture
def make(make_mixture):
    """A function: a mixture of weights and one spread over two seeds for all sources."""

    def make(weights, spread=0.01, seeds=(1, 2), **changes):
        mixture = make_mixture(weights, seeds=seeds, **changes)
        return dataclasses.replace(
            mixture,
            sources=tuple(dataclasses.replace(s, weight_std=spread) for s in mixture.sources),
        )

    return make


def test_the_statistic_is_the_distance_over_the_expected_one(make):
    found = compare(make({"a": 0.6, "b": 0.4}, 0.03), make({"b": 0.5, "a": 0.5}, 0.04))
    # Each standard error is √(0.03² + 0.04²)/√2 = 0.05/√2; both weights moved by 0.1.
    assert [source.z for source in found.sources] == pytest.approx([-(8**0.5), 8**0.5])
    assert found.ratio == pytest.approx(8**0.5)
    assert found.distance == pytest.approx(0.1)
    assert found.threshold == 4.303  # Student's t with 2 degrees of freedom
    assert found.verdict == "agree"


def test_without_seeds_nobody_can_tell(make):
    several, single = make({"a": 0.6, "b": 0.4}), make({"a": 0.1, "b": 0.9}, seeds=())
    for pair in ((single, single), (several, single), (single, several)):
        found = compare(*pair)
        assert found.verdict == "cannot tell"
        assert found.ratio is found.threshold is found.sources[0].z is None


def test_seeds_give_a_standard_error_and_their_own_bound(make):
    one = make({"a": 0.6, "b": 0.4}, 0.03, seeds=(1, 2, 3))
    two = make({"a": 0.5, "b": 0.5}, 0.03, seeds=(1, 2, 3))
    found = compare(one, two)
    assert found.sources[0].standard_error == pytest.approx(0.03 * math.sqrt(2 / 3))
    assert found.threshold == 2.776  # Student's t with 4 degrees of freedom
    assert found.verdict == "differ"
    assert compare(one, one).verdict == "agree"


def test_a_rare_source_with_a_tiny_spread_does_not_decide(make_mixture, make):
    one = make({"a": 0.6, "b": 0.399, "c": 0.001}, 0.02)
    two = make({"a": 0.6, "b": 0.398, "c": 0.002}, 0.02)
    tiny = [
        dataclasses.replace(
            m,
            sources=tuple(
                dataclasses.replace(s, weight_std=1e-5 if s.name == "c" else 0.02)
                for s in m.sources
            ),
        )
        for m in (one, two)
    ]
    found = compare(*tiny)
    assert max(abs(source.z) for source in found.sources) > 50
    assert found.verdict == "agree"


def test_mixtures_without_any_spread_differ_by_any_change(make):
    one, two = make({"a": 0.6, "b": 0.4}, 0.0), make({"a": 0.5, "b": 0.5}, 0.0)
    assert compare(one, two).verdict == "differ"
    assert compare(one, one).ratio == 0


def test_equal_mixtures_are_seldom_called_different(make):
    """Two averages of 3 seeds of the same search: the bound is a 95 % one."""
    generator = random.Random(0)
    wrong = 0
    for _ in range(400):
        pair = []
        for _ in range(2):
            draws = [0.5 + generator.gauss(0, 0.02) for _ in range(3)]
            mean = sum(draws) / 3
            spread = math.sqrt(sum((d - mean) ** 2 for d in draws) / 2)
            pair.append(make({"a": mean, "b": 1 - mean}, spread, seeds=(1, 2, 3)))
        wrong += compare(*pair).verdict == "differ"
    assert 0.02 < wrong / 400 < 0.09


def test_other_sources_cannot_be_compared(make):
    with pytest.raises(DataError, match="c, d is in one alone"):
        compare(make({"a": 0.5, "c": 0.5}), make({"a": 0.5, "d": 0.5}))


def test_text_and_answers_cannot_be_compared(make, with_sizes):
    text = make({"a": 0.5, "b": 0.5})
    rows = {"tokens": 5_000, "loss_tokens": 500}
    with pytest.raises(DataError, match="shares of answer tokens in the other"):
        compare(text, with_sizes(text, a=rows, b=rows))


def test_the_exit_code_tells(tmp_path, make, capsys):
    write_mixture(tmp_path / "one" / "mixture.json", make({"a": 0.6, "b": 0.4}))
    write_mixture(tmp_path / "close" / "mixture.json", make({"a": 0.61, "b": 0.39}))
    far = make({"a": 0.9, "b": 0.1}, complete=False)
    write_mixture(tmp_path / "far" / "mixture.json", far)
    single = make({"a": 0.9, "b": 0.1}, seeds=())
    write_mixture(tmp_path / "single" / "mixture.json", single)
    call = ["compare", str(tmp_path / "one")]
    assert main([*call, str(tmp_path / "close")]) == 0
    assert "do not differ beyond the spread over seeds" in capsys.readouterr().out
    assert main([*call, str(tmp_path / "far" / "mixture.json")]) == 1
    output = capsys.readouterr().out
    assert "The mixtures differ beyond the spread over seeds" in output
    assert "30.0% of the tokens" in output
    assert "+30.0*" in output
    assert "is not finished" in output
    assert main([*call, str(tmp_path / "single")]) == 7
    output = capsys.readouterr().out
    assert "Cannot tell whether the mixtures differ: B is of a single search" in output
    assert "spread B is the spread over the last 6 of 12 outer steps" in output
    assert "uncertaint" not in output
    assert "standard error" not in output
    assert main([*call, str(tmp_path / "nothing")]) == 2
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    assert "7 where nobody can tell" in " ".join(capsys.readouterr().out.split())
