"""A scenario of the comparison of methods: what is searched for, and how mixtures are judged."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_fastmix.config import SearchConfig, override_config, strict_yaml
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.objective import check_references
from megatron_fastmix.lab.baselines.registry import FASTMIX, METHODS
from megatron_fastmix.lab.baselines.settings import BaselineSettings
from megatron_fastmix.lab.comparison.config import CompareConfig
from megatron_fastmix.lab.comparison.derived import Derived, check_name

_RUN_DIR = "runs/methods"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """FastMix with other settings than the scenario's, as one more method: an ablation."""

    name: str
    """In the table and in file names: letters, digits, `-`, `_`, `=` and `.`."""
    overrides: tuple[str, ...]
    """As on the command line of a search: `--mixture.inner_steps=1`."""

    def __post_init__(self) -> None:
        check_name(self.name, "variants")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One configuration file; its name is the file's stem."""

    title: str = ""
    """In words, for pictures; empty: its name."""
    search: SearchConfig
    """Sources, targets, proxy and training, the same for every method; `mixture` and
    `hypergradient` are FastMix's own."""
    compare: CompareConfig
    """The target model, its training and the held-out tests."""
    overrides: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By method what is other in its `search`, as on a command line: FastMix, with its variants,
    may train one longer proxy where others train many. The table's costs show it."""
    seeds: dict[str, int] = field(default_factory=dict)
    """By method, variant or derived mixture how many seeds, where more than the command line asks
    for."""
    baselines: BaselineSettings = field(default_factory=BaselineSettings)
    """Hyper-parameters of the other methods: `regmix: {runs: 32}`."""
    methods: tuple[str, ...] = METHODS
    """Those that are compared unless the command line names others."""
    variants: tuple[Variant, ...] = ()
    derived: tuple[Derived, ...] = ()
    """Mixtures made from those that FastMix or a variant found, compared where they are named."""

    def __post_init__(self) -> None:
        names = Counter([v.name for v in self.variants] + [d.name for d in self.derived])
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ConfigError(f"variants: found {twice[0]} twice; names are unique, rename one")
        for where, valid in (("overrides", METHODS), ("seeds", (*METHODS, *names))):
            unknown = sorted(getattr(self, where).keys() - set(valid))
            if unknown:
                raise ConfigError(f"{where}: found {unknown[0]!r}; choose among {', '.join(valid)}")
        for each in self.derived:
            if each.of not in (FASTMIX, *(v.name for v in self.variants)):
                raise ConfigError(
                    f"derived: {each.name}: of: found {each.of!r}; choose {FASTMIX} or one of the "
                    "scenario's variants"
                )
        check_references(
            self.search,
            self.compare.tests,
            where="compare.tests:",
            what="the table",
            model="the target model",
        )

    @cached_property
    def searches(self) -> dict[str, SearchConfig]:
        """The configuration of each method and variant, and of the search that each derived
        mixture is from, by name. Raises `ConfigError`."""
        methods = {
            name: override_config(self.search, self.overrides.get(name, ())) for name in METHODS
        }
        variants = {v.name: override_config(methods[FASTMIX], v.overrides) for v in self.variants}
        searched = methods | variants
        return searched | {each.name: searched[each.of] for each in self.derived}

    def derived_of(self, name: str) -> Derived | None:
        """The derived mixture of that name; None for a method or variant."""
        return next((each for each in self.derived if each.name == name), None)

    def choose(self, names: str | None, where: str) -> list[str]:
        """Methods from a comma-separated list, or the scenario's own with all variants. Raises
        `ConfigError` for an unknown one, with `where` the scenario is from."""
        chosen = names.split(",") if names else [*self.methods, *(v.name for v in self.variants)]
        unknown = [name for name in chosen if name not in self.searches]
        if unknown:
            raise ConfigError(
                f"{where}: methods: found {unknown[0]!r}; choose among {', '.join(self.searches)}"
            )
        return chosen

    def job(self, name: str, seed: int, run_dir: Path) -> tuple[str, SearchConfig]:
        """Method and configuration that search for `name` with a seed; FastMix in `run_dir`."""
        config = dataclasses.replace(self.searches[name], seed=seed, run_dir=str(run_dir))
        return (name if name in METHODS else FASTMIX), config


def load_scenario(path: str | Path) -> Scenario:
    """Reads a scenario. Its key `base` names a file, relative to it, whose keys it takes up unless
    it has them itself; mappings are merged, lists replaced. Raises `ConfigError`."""
    values = _load_with_base(Path(path))
    search = values.get("search")
    if isinstance(search, dict):
        search.setdefault("run_dir", _RUN_DIR)
    try:
        return strict_yaml.from_dict(Scenario, values)
    except ConfigError as error:
        raise ConfigError(f"{path}, with its base: {error}") from None


def _load_with_base(path: Path, inner: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in inner:
        raise ConfigError(f"{path}: base: the files are each other's base; remove one `base`")
    values = strict_yaml.load_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base: found {base!r}; expected the path of a YAML file")
    return _merge(_load_with_base(path.parent / base, (*inner, path.resolve())), values)


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = base | own
    for key in base.keys() & own.keys():
        if isinstance(base[key], dict) and isinstance(own[key], dict):
            merged[key] = _merge(base[key], own[key])
    return merged
