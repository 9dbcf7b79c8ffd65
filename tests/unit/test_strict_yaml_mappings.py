"""Mappings in a configuration: their values have types as all others, their keys are names."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int


@dataclass(frozen=True, kw_only=True)
class Outer:
    shares: dict[str, float]
    samples: dict[str, tuple[float, ...]] = field(default_factory=dict)
    parts: dict[str, Inner] = field(default_factory=dict)
    free: dict[str, Any] = field(default_factory=dict)


def test_values_of_mappings_are_converted_and_read_back():
    values = {
        "shares": {"a": 1, "b": "1e-3"},
        "samples": {"t": [1, 2.5]},
        "parts": {"x": {"size": 3}},
        "free": {"any": [1, "two", None]},
    }
    found = strict_yaml.from_dict(Outer, values)
    assert found.shares == {"a": 1.0, "b": 1e-3}
    assert all(type(share) is float for share in found.shares.values())
    assert found.samples == {"t": (1.0, 2.5)}
    assert found.parts == {"x": Inner(size=3)}
    assert strict_yaml.from_dict(Outer, strict_yaml.to_dict(found)) == found


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shares": 3}, r"shares: expected a mapping, found 3"),
        ({"shares": {"a": "x"}}, r"shares\.a: expected float, found 'x'"),
        ({"shares": {1: 0.5}}, r"shares: expected names as keys, found 1"),
        ({"shares": {}, "samples": {"t": [1.0, None]}}, r"samples\.t\[1\]: expected float"),
        ({"shares": {}, "parts": {"x": {"sise": 3}}}, r"parts\.x\.sise: unknown key; did you mean"),
    ],
)
def test_wrong_mappings_are_refused_by_place(values, said):
    with pytest.raises(ConfigError, match=said):
        strict_yaml.from_dict(Outer, values)


def test_what_is_merged_in_twice_is_refused_as_any_key_is():
    text = "a: &a {x: 1}\nb: &b {x: 2}\nc:\n  <<: *a\n  y: 3\n  <<: *b\n"
    with pytest.raises(ConfigError, match="the key '<<' is on line 4 and again on line 6"):
        strict_yaml.parse_yaml(text, "here")


def test_a_merged_key_may_be_overridden():
    text = "a: &a {x: 1, y: 1}\nb: {<<: *a, x: 2}\nc: {x: 3, <<: *a}\n"
    assert strict_yaml.parse_yaml(text, "")["b"] == {"x": 2, "y": 1}
    assert strict_yaml.parse_yaml(text, "")["c"] == {"x": 3, "y": 1}


def test_of_a_list_of_merged_mappings_the_first_counts():
    text = "a: &a {lr: 1, n: 1}\nb: &b {lr: 2, m: 2}\nc: {lr: 3}\nd: {<<: [*a, *b], m: 4}\n"
    assert strict_yaml.parse_yaml(text, "")["d"] == {"lr": 1, "n": 1, "m": 4}
    with pytest.raises(ConfigError, match="expected a mapping for merging"):
        strict_yaml.parse_yaml("a: {<<: [3]}", "here")


def test_what_overrides_a_merge_may_be_merged_in_itself():
    deep = "a: &a {x: 1}\nb: {c: {d: &d {<<: *a, x: 2}}}\ne: {<<: *d, y: 3}\n"
    found = strict_yaml.parse_yaml(deep, "")
    assert found["b"]["c"]["d"] == {"x": 2}
    assert found["e"] == {"x": 2, "y": 3}


def test_a_byte_order_mark_inside_is_named():
    assert strict_yaml.parse_yaml("a: x\ufeffy\n", "here") == {"a": "x\ufeffy"}
    with pytest.raises(ConfigError, match="here: line 3 begins with a byte-order mark"):
        strict_yaml.parse_yaml("a: 1\nb: 2\n\ufeffc: 3\n", "here")
