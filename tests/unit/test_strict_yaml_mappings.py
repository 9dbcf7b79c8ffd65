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
