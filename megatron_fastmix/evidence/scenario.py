"""A scenario of the comparison of methods: what is searched for, and how mixtures are judged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix import strict_yaml
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.evidence.config import CompareConfig

_RUN_DIR = "runs/methods"


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One configuration file; its name is the file's stem."""

    search: SearchConfig
    """Sources, targets, proxy and training, the same for every method; `mixture` and
    `hypergradient` are FastMix's own."""
    compare: CompareConfig
    """The target model, its training and the held-out tests."""

    def seeded(self, seed: int, run_dir: Path) -> SearchConfig:
        """The search of one seed, in its own run folder."""
        return dataclasses.replace(self.search, seed=seed, run_dir=str(run_dir))


def load_scenario(path: str | Path) -> Scenario:
    """Reads a scenario. Raises `ConfigError`."""
    values = strict_yaml.load_yaml(path)
    search = values.get("search")
    if isinstance(search, dict):
        search.setdefault("run_dir", _RUN_DIR)
    return strict_yaml.from_dict(Scenario, values)
