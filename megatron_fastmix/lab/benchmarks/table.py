"""The rows that every benchmark and comparison in `tools/` prints and writes."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.processes import available_cores

PACKAGES = ("megatron-fastmix", "megatron-core", "deepspeed", "torch", "sentencepiece", "numpy")


Better = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured figure."""

    figure: str
    """What was measured."""
    value: float
    """The median of the measurements, in `unit`."""
    reach: float | None
    """The value asked for; None where none is."""
    better: Better
    unit: str
    """`ratio` for a quotient of two measurements of one run."""

    @property
    def reached(self) -> bool | None:
        """Whether the value is as good as `reach`; None where nothing is asked."""
        if self.reach is None:
            return None
        return self.value <= self.reach if self.better == "lower" else self.value >= self.reach


def table(rows: Sequence[Row]) -> str:
    """The rows as text, a line each."""
    width = max([len("figure"), *(len(row.figure) for row in rows)])
    lines = [f"{'figure':<{width}} {'value':>12} {'reach':>10}  better  unit"]
    for row in rows:
        reach = "" if row.reach is None else f"{row.reach:,.4g}"
        line = f"{row.figure:<{width}} {row.value:>12,.4g} {reach:>10}  {row.better:<6}  {row.unit}"
        lines.append(line + ("  not reached" if row.reached is False else ""))
    return "\n".join(lines)


def write_json(path: str | Path, rows: Sequence[Row], **settings: Any) -> None:
    """Writes the rows with the machine, the versions and the `settings` that they depend on."""
    record = {
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in PACKAGES},
        "settings": settings,
        "rows": [asdict(row) for row in rows],
    }
    write_atomically(Path(path), json.dumps(record, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """What the figures depend on beside the versions."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
