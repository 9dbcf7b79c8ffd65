"""The parameters and moments in a checkpoint's files, whichever ranks wrote them.

A fragment's key is `kind:start:numel:name`: where it begins in the flattened parameter `name`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fastmix.errors import CheckpointError

MASTER = "master"
"""The fp32 parameters."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's moments, fp32."""


class StoredParameters:
    """The fragments of a checkpoint's files, read as they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        """`files` are those of one tensor-parallel rank."""
        self._files = [np.load(file, allow_pickle=False) for file in files]
        self._fragments: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
        self.adam_steps = 0.0
        """Adam's own count of steps."""
        for file in self._files:
            for key in file.files:
                if key == "adam_steps":
                    self.adam_steps = float(file[key][0])
                    continue
                kind, start, numel, name = key.split(":", 3)
                place = (int(start), int(numel), file, key)
                self._fragments.setdefault((kind, name), []).append(place)

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return sorted(name for kind, name in self._fragments if kind == MASTER)

    def numel(self, name: str) -> int:
        """Elements of a parameter; 0 where there is none of that name."""
        return sum(length for _, length, *_ in self._fragments.get((MASTER, name), []))

    def check_names(self, expected: dict[str, int]) -> None:
        """Raises `CheckpointError` unless the parameters are `expected` (name to elements)."""
        differing = [f"{name}: only there" for name in self.names if name not in expected]
        for name, numel in expected.items():
            found = self.numel(name)
            if found != numel:
                differing.append(f"{name}: {found} elements there, {numel} here")
        if differing:
            raise CheckpointError(
                f"the checkpoint is of another model ({'; '.join(differing[:5])}); use the proxy "
                "that wrote it, or another run_dir"
            )

    def read(self, kind: str, name: str, start: int, numel: int) -> np.ndarray:
        """Elements `start` to `start + numel` of a flattened parameter or moment, fp32."""
        values = np.empty(numel, dtype=np.float32)
        for first, length, file, key in self._fragments[kind, name]:
            low, high = max(first, start), min(first + length, start + numel)
            if low < high:
                values[low - start : high - start] = file[key][low - first : high - first]
        return values

    def close(self) -> None:
        for file in self._files:
            file.close()
