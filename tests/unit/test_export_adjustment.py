"""Corrections before an export: groups, fixed shares, caps, the least weight, and rounding."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.adjustment import Adjustment, adjust
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.notes import indistinct_from_uniform
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.rounding import round_weights


@pytest.fixture
def mixture(make_mixture, with_sizes):
    """Weights a 0.5, b 0.3, c 0.2; a has 1,000 tokens, b 2,000, c 8,000; budget 10,000."""
    made = make_mixture({"a": 0.5, "b": 0.3, "c": 0.2})
    return with_sizes(made, a={"tokens": 1_000}, b={"tokens": 2_000}, c={"tokens": 8_000})


def weights(mixture, **changes):
    return adjust(mixture, Adjustment(**({"fixed": {}, "groups": {}} | changes))).mixture.weights


def test_nothing_asked_leaves_the_learned_weights_bit_for_bit(mixture):
    assert weights(mixture) == mixture.weights


def test_a_group_shares_its_learned_sum_by_tokens(mixture):
    found = weights(mixture, groups={"ab": ["a", "b"]})
    assert found == pytest.approx({"a": 0.8 / 3, "b": 1.6 / 3, "c": 0.2})
    assert weights(mixture, groups={"all": ["*"]}) == pytest.approx(
        {"a": 1 / 11, "b": 2 / 11, "c": 8 / 11}
    )


def test_a_set_share_holds_and_the_others_keep_their_ratios(mixture):
    assert weights(mixture, fixed={"c": 0.6}) == pytest.approx({"a": 0.25, "b": 0.15, "c": 0.6})
    # A group that is set keeps the proportions inside.
    found = weights(mixture, fixed={"ab": 0.3}, groups={"ab": ["a", "b"]})
    assert found == pytest.approx({"a": 0.1, "b": 0.2, "c": 0.7})


def test_the_excess_over_the_cap_is_shared_out(mixture):
    # 2 epochs of a are 0.2 of 10,000 tokens; the 0.3 above go to b and c as 3 to 2, which lifts b
    # to 0.48, over its own cap of 0.4.
    found = adjust(mixture, Adjustment(fixed={}, groups={}, max_epochs=2))
    assert found.mixture.weights == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.4})
    assert found.capped == ("a", "b")
    # Half the tokens allow twice the share.
    found = adjust(mixture, Adjustment(fixed={}, groups={}, max_epochs=2, token_budget=5_000))
    assert found.mixture.weights == pytest.approx({"a": 0.4, "b": 0.36, "c": 0.24})


def test_sources_below_the_least_weight_are_dropped(mixture):
    found = adjust(mixture, Adjustment(fixed={}, groups={}, min_weight=0.25))
    assert found.mixture.weights == pytest.approx({"a": 0.625, "b": 0.375, "c": 0})
    assert found.dropped == ("c",)
    # A share set by hand is not dropped.
    assert weights(mixture, fixed={"c": 0.01}, min_weight=0.25)["c"] == 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fixed": {"d": 0.1}}, "--set d: no such source; there are a, b, c"),
        ({"fixed": {"a": 0.7, "b": 0.7}}, "sum to 1.4; they must not exceed 1"),
        ({"fixed": {"a": 0.1, "b": 0.1, "c": 0.1}}, "they must sum to 1"),
        ({"fixed": {"a": 1.5}}, r"--set a=1.5: use a share in \[0, 1\]"),
        ({"fixed": {"a": math.nan}}, "--set a=nan"),
        ({"fixed": {"g": 0.1, "a": 0.1}, "groups": {"g": ["a"]}}, "a is set twice"),
        ({"fixed": {"a": 0.9}, "max_epochs": 2}, "--set a=0.9: more than --max-epochs 2 allows"),
        ({"groups": {"a": ["b"]}}, "a source has this name"),
        ({"groups": {"g": ["x*"]}}, r"'x\*' matches no source"),
        ({"groups": {"g": ["a"], "h": ["a", "b"]}}, "a is in group g already"),
        ({"max_epochs": 0.5}, "hold 55.0% of the tokens that the budget needs"),
        ({"max_epochs": 0}, "--max-epochs: found 0"),
        ({"min_weight": 0.6}, "no source is left"),
        ({"min_weight": 1.0}, r"use a share in \[0, 1\)"),
        ({"token_budget": 0}, "--token-budget: found 0"),
    ],
)
def test_corrections_that_cannot_hold_are_refused(mixture, changes, message):
    with pytest.raises(ConfigError, match=message):
        weights(mixture, **changes)


@given(
    st.lists(st.tuples(st.floats(1e-4, 1), st.integers(100, 10**6)), min_size=2, max_size=12),
    st.floats(0.05, 5),
    st.integers(3, 6),
)
def test_no_rounded_weight_exceeds_the_cap(make_mixture, with_sizes, pairs, slack, decimals):
    total = sum(weight for weight, _ in pairs)
    tokens = {str(i): count for i, (_, count) in enumerate(pairs)}
    # A cap that leaves room: all the tokens, `slack` more than once.
    cap = (1 + slack) * 1_000_000 / sum(tokens.values())
    ceilings = {name: cap * count / 1_000_000 for name, count in tokens.items()}
    shares = {str(i): weight / total for i, (weight, _) in enumerate(pairs)}
    made = make_mixture(shares, token_budget=1_000_000)
    mixture = with_sizes(made, **{name: {"tokens": count} for name, count in tokens.items()})
    found = adjust(mixture, Adjustment(fixed={}, groups={}, max_epochs=cap))
    assert math.fsum(found.mixture.weights.values()) == pytest.approx(1)
    try:
        rounded = round_weights(found.mixture.weights, decimals, ceilings)
    except ConfigError as error:
        assert "use more decimals" in str(error)
        return
    assert sum(map(Fraction, rounded.values())) == 1
    for name, text in rounded.items():
        assert float(text) <= ceilings[name] * (1 + 1e-9)


def test_fixed_shares_are_written_as_they_were_given(mixture):
    for share in (0.05, 0.1, 0.29, 0.57, 0.07):
        blend = make_blend(mixture, adjustment=Adjustment(fixed={"b": share}, groups={}))
        assert float(blend.sources[1].weight) == share


@pytest.fixture
def run_dir(tmp_path, mixture):
    write_mixture(tmp_path / "mixture.json", mixture)
    return str(tmp_path)


def test_the_command_shows_what_it_changed_and_the_epochs(run_dir, capsys):
    flags = ["--max-epochs", "2", "--token-budget", "5000", "--min-weight", "0.25"]
    assert main(["export", run_dir, *flags]) == 0
    output = capsys.readouterr()
    assert output.out == "0.4000 /data/a\n0.6000 /data/b\n"
    assert "dropped by --min-weight: c" in output.err
    assert "held at --max-epochs: a" in output.err
    rows = [line.split() for line in output.err.splitlines()]
    assert ["b", "0.3000", "0.6000", "+0.3000", "2,000", "1.50"] in rows
    assert ["a", "0.5000", "0.4000", "-0.1000", "1,000", "2.00"] in rows
    assert ["c", "0.2000", "0.0000", "-0.2000", "8,000", "0.00"] in rows
    assert "Epochs are those in 5,000 tokens." in output.err


def test_the_command_reads_groups_and_shares(run_dir, capsys):
    assert main(["export", run_dir, "--group", "ab=a,b", "--set", "ab=0.3"]) == 0
    assert capsys.readouterr().out == "0.1000 /data/a\n0.2000 /data/b\n0.7000 /data/c\n"
    for flags in (["--set", "a"], ["--set", "a=x"], ["--group", "=a"], ["--set", "a=.1"] * 2):
        assert main(["export", run_dir, *flags]) == 2
        assert flags[0] in capsys.readouterr().err


def test_weights_that_are_no_surer_than_uniform_are_exported_with_a_warning(
    tmp_path, make_mixture, capsys
):
    # make_mixture's spread is 0.01 for every source.
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.505, "b": 0.495}))
    assert main(["export", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert output.out == "0.5050 /data/a\n0.4950 /data/b\n"
    assert "warning: the weights differ from uniform by 0.0050" in output.err
    assert indistinct_from_uniform(make_mixture({"a": 0.53, "b": 0.47})) is None
    assert indistinct_from_uniform(make_mixture({"a": 1.0})) is None
