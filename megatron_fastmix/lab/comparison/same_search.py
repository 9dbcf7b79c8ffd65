"""What a search's row depends on, and whether another one would come out the same."""

from __future__ import annotations

from typing import Any

from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.baselines.registry import BASELINES, FASTMIX, FREE, METHODS, settings_of
from megatron_fastmix.lab.baselines.settings import BaselineSettings
from megatron_fastmix.lab.comparison.row_file import Record
from megatron_fastmix.lab.comparison.rows import Rows, SearchRow

OWN_SECTIONS = ("mixture", "hypergradient", "engine")
"""Sections that concern FastMix alone."""
ANYWHERE = ("run_dir", "output", "seed")
"""Keys of a search that are no part of its row's configuration."""


def configuration_of(config: SearchConfig) -> Record:
    """What a search's outcome depends on, besides its seed."""
    values = strict_yaml.to_dict(config)
    return {key: value for key, value in values.items() if key not in ANYWHERE}


def kept_configuration(values: Record, where: object) -> Record:
    """A row's configuration, in which keys that are younger than the row have their defaults.

    Raises `DataError` that names the file `where`."""
    try:
        config: SearchConfig = strict_yaml.from_dict(SearchConfig, {"run_dir": ".", **values})
    except ConfigError as error:
        raise DataError(f"{where}: a configuration: {error}") from None
    return configuration_of(config)


def differences(
    method: str, config: SearchConfig, settings: Record, row: SearchRow, kept: Record
) -> list[tuple[str, Any, Any]]:
    """(key, then, now) of all that a method, variant or derived mixture depends on and that is
    other in `row`, whose configuration is `kept`. `settings` are the method's own."""
    now = configuration_of(config)
    pairs = [(key, kept[key], now[key]) for key in now if _matters(method, key)]
    if method in BASELINES and "groups" in (now["mixture"]["learn"], kept["mixture"]["learn"]):
        # They weigh groups then, whose shares inside are those of the start.
        pairs += [
            (f"mixture.{key}", kept["mixture"][key], now["mixture"][key])
            for key in ("learn", "initial_weights")
        ]
    usual = settings_of(method, BaselineSettings())
    for section in dict.fromkeys([*settings, *row.settings]):
        before = usual.get(section, {}) | row.settings.get(section, {})
        pairs.append((section, before, settings.get(section, {})))
    return [pair for pair in pairs if pair[1] != pair[2]]


def find_same(
    rows: Rows, method: str, seed: int, config: SearchConfig, settings: Record
) -> SearchRow | None:
    """A finished search among another scenario's `rows` that is this one, under whatever name of a
    variant; None where there is none."""
    for row in rows.searches.values():
        if row.seed != seed or _underlying(row.method) != _underlying(method):
            continue
        try:
            kept = kept_configuration(rows.configurations[row.configuration], row.method)
        except DataError:  # of a version whose configurations had other keys
            continue
        if not differences(method, config, settings, row, kept):
            return row
    return None


def _underlying(method: str) -> str:
    return method if method in METHODS else FASTMIX


def _matters(method: str, key: str) -> bool:
    """Whether a method's mixture depends on a section of the search's configuration."""
    if method in FREE:
        return key in ("sources", "data")  # whose seq_length cuts rows, which are then smaller
    return not (method in BASELINES and key in OWN_SECTIONS)
