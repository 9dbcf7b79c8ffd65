"""The measurements that every benchmark and comparison prints and writes."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.processes import available_cores
from megatron_fastmix.text_table import align

PACKAGES = ("megatron-fastmix", "megatron-core", "deepspeed", "torch", "sentencepiece", "numpy")

Better = Literal["lower", "higher"]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number, and what it is to reach."""

    figure: str
    """What was measured."""
    value: float | None
    """In `unit`; the median where there are several measurements. None where they do not tell."""
    reach: float | None = None
    """The value asked for; None where none is."""
    better: Better = "lower"
    unit: str
    """`ratio` for a quotient of two measurements of one run."""

    @property
    def reached(self) -> bool | None:
        """Whether `value` is at least as good as `reach`; None without one of the two."""
        if self.value is None or self.reach is None:
            return None
        return self.value <= self.reach if self.better == "lower" else self.value >= self.reach


def table(measurements: Sequence[Measurement]) -> str:
    """The measurements as text, a line each."""
    lines = []
    for measurement in measurements:
        value = "unknown" if measurement.value is None else f"{measurement.value:,.4g}"
        reach = "" if measurement.reach is None else f"{measurement.reach:,.4g}"
        missed = "not reached" if measurement.reached is False else ""
        lines.append(
            (measurement.figure, value, reach, measurement.better, measurement.unit, missed)
        )
    return align(("figure", "value", "reach", "better", "unit", ""), lines, left=(0, 3, 4, 5))


def write_measurements(
    path: str | Path,
    measurements: Sequence[Measurement],
    *,
    versions: Mapping[str, str] | None = None,
    **settings: Any,
) -> None:
    """Writes the measurements with the machine and the `settings` that they depend on, atomically.

    `versions` of packages are those of this process unless rows were made by others.
    """
    record = {
        "rows": [asdict(measurement) for measurement in measurements],
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **(versions or {name: version(name) for name in PACKAGES}),
        },
        "settings": settings,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def machine() -> dict[str, Any]:
    """The machine that this process runs on."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": available_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return models[0] if models else platform.processor() or platform.machine()
