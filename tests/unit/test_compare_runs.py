"""Whether two mixtures differ beyond their spread: the statistic, the table and the exit code."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import DataError
from megatron_fastmix.report.comparison import compare
from megatron_fastmix.report.quantiles import f_95, student_95
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
    # Welch and Satterthwaite: (9 + 16)² / (9² + 16²) = 1.85 degrees of freedom.
    assert found.threshold == pytest.approx(scipy.stats.t.ppf(0.975, 625 / 337))
    assert found.sources[0].bound == pytest.approx(found.threshold)
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
    assert found.threshold == pytest.approx(2.776, abs=1e-3)  # Student's t with 4 degrees
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


@pytest.mark.parametrize("freedom", [1, 1.3, 2, 4, 18.5, 1e4])
def test_points_of_t_and_f_are_those_of_the_tables(freedom):
    assert student_95(freedom) == pytest.approx(scipy.stats.t.ppf(0.975, freedom))
    for numerator in (1, 1.7, 5, 15, 1e3):
        tabulated = scipy.stats.f.ppf(0.95, numerator, freedom)
        assert f_95(numerator, freedom) == pytest.approx(tabulated)


def differing(make, sources, seeds, spreads, shift=0.0, repeats=200):
    """How often two mixtures are called different, `shift` standard errors of each weight apart."""
    generator = np.random.default_rng(0)
    error = math.hypot(*(s / n**0.5 for n, s in zip(seeds, spreads, strict=True)))
    shifts = shift * error * np.where(np.arange(sources) % 2, 1, -1)
    found = 0
    for _ in range(repeats):
        pair = []
        for count, spread, moved in zip(seeds, spreads, (0, shifts), strict=True):
            noise = generator.normal(0, spread, (count, sources))
            noise -= noise.mean(axis=1, keepdims=True)  # weights add up to 1
            draws = 1 / sources + noise * math.sqrt(sources / (sources - 1)) + moved
            weights = dict(enumerate(draws.mean(axis=0).tolist()))
            mixture = make({str(k): w for k, w in weights.items()}, seeds=tuple(range(count)))
            deviations = draws.std(axis=0, ddof=1).tolist()
            with_spreads = [
                dataclasses.replace(s, weight_std=deviations[k])
                for k, s in enumerate(mixture.sources)
            ]
            pair.append(dataclasses.replace(mixture, sources=tuple(with_spreads)))
        found += compare(*pair).verdict == "differ"
    return found / repeats


@pytest.mark.parametrize(
    ("sources", "seeds", "spreads", "most"),
    [
        (2, (3, 3), (0.02, 0.02), 0.08),
        (2, (3, 3), (0.02, 0.001), 0.09),
        (2, (3, 10), (0.02, 0.02), 0.11),
        (2, (2, 10), (0.02, 0.02), 0.15),  # two seeds hardly know their spread
        (16, (3, 3), (0.005, 0.005), 0.08),
    ],
)
def test_equal_mixtures_are_seldom_called_different(make, sources, seeds, spreads, most):
    assert differing(make, sources, seeds, spreads) < most


def test_a_shift_of_every_source_is_found(make):
    assert differing(make, 16, (3, 3), (0.005, 0.005), shift=2.0, repeats=50) > 0.9


def test_other_sources_cannot_be_compared(make):
    with pytest.raises(DataError, match="c, d is in one alone"):
        compare(make({"a": 0.5, "c": 0.5}), make({"a": 0.5, "d": 0.5}))


def test_text_and_answers_cannot_be_compared(make, with_sizes):
    text = make({"a": 0.5, "b": 0.5})
    rows = {"tokens": 5_000, "loss_tokens": 500}
    with pytest.raises(DataError, match="shares of answer tokens in the other"):
        compare(text, with_sizes(text, a=rows, b=rows))


def test_other_units_cannot_be_compared(make, with_sizes):
    text = make({"a": 0.5, "b": 0.5})
    with pytest.raises(DataError, match="samples of 64 tokens in the other"):
        compare(text, dataclasses.replace(text, seq_length=64))
    rows = {"tokens": 5_000, "loss_tokens": 500}
    with pytest.raises(DataError, match="which cannot be compared"):
        compare(with_sizes(text, a=rows), with_sizes(text, a=rows, b=rows))
    with pytest.raises(DataError, match="a is answer-only rows in one mixture and text in"):
        compare(with_sizes(text, a=rows), with_sizes(text, b=rows))


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
