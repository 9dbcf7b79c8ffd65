"""The parameters and moments in a checkpoint's files, whichever ranks wrote them.

A fragment's key is `kind:start:numel:name`: where it begins in the flattened parameter `name`.
"""

from __future__ import annotations

import io
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_fastmix.errors import CheckpointError

MASTER = "master"
"""The fp32 parameters."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's moments, fp32."""


ADAM_STEPS = "adam_steps"
_KEY = re.compile(
    rf"(?P<kind>{'|'.join((MASTER, *MOMENTS))}):(?P<start>[0-9]{{1,18}}):(?P<numel>[0-9]{{1,18}})"
    r":(?P<name>.+)",
    re.DOTALL,
)
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
"""Before each member of an archive: section 4.3.7 of the ZIP specification (APPNOTE.TXT)."""
_DAMAGE = (
    *(OSError, ValueError, EOFError, LookupError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, SyntaxError, TypeError, struct.error),
    tokenize.TokenError,  # of a header that NumPy takes for one of Python 2
)
"""What NumPy and zipfile raise for files that are cut, altered, encrypted or of another kind."""


class _ArrayFile:
    """A .npz file of flat float arrays, whose every fault is a `CheckpointError`.

    Open only while it is read: a process may hold 1,024 files by default, and a checkpoint has one
    for each rank. Its directory is read once: of 1,100 ranks each has a fragment of every
    parameter, and to read as many directories anew for each of them would take an hour.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {
                    info.filename.removesuffix(".npy"): (
                        info.header_offset,
                        info.compress_size,
                        info.CRC,
                    )
                    for info in archive.infolist()
                    if self._is_stored(info)
                }
        except _DAMAGE as error:
            raise self._damaged(error) from None
        self.keys = list(self._members)

    def array(self, key: str, length: int) -> np.ndarray:
        """The array of `length` numbers at `key`."""
        offset, size, checksum = self._members[key]
        try:
            with open(self.path, "rb") as file:
                file.seek(offset)
                header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                # The header repeats the name and has extras of its own before the content.
                name_size, extra_size = header[-2:]
                file.seek(name_size + extra_size, io.SEEK_CUR)
                content = file.read(size)
            if zlib.crc32(content) != checksum:
                raise self._damaged(f"the checksum of {key} differs from the one when written")
            values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
        except _DAMAGE as error:
            raise self._damaged(error) from None
        if (
            not isinstance(values, np.ndarray)
            or values.dtype.kind != "f"
            or values.shape != (length,)
        ):
            raise self._damaged(f"{key} is no array of {length} numbers")
        return values

    def _is_stored(self, info: zipfile.ZipInfo) -> bool:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise self._damaged(f"{info.filename} is compressed or encrypted")
        return True

    def _damaged(self, error: object) -> CheckpointError:
        reason = getattr(error, "strerror", None) or error
        return CheckpointError(
            f"{self.path}: not the arrays of a checkpoint: {reason}; restore the file, or go back "
            "to an earlier checkpoint"
        )


class StoredParameters:
    """The fragments of a checkpoint's files, read as they are asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        """`files` are those of one tensor-parallel rank. Raises `CheckpointError` for one that is
        damaged, or is no file of a checkpoint."""
        self._files = [_ArrayFile(file) for file in files]
        self._fragments: dict[tuple[str, str], list[tuple[int, int, _ArrayFile, str]]] = {}
        self.adam_steps = 0.0
        """Adam's own count of steps."""
        for file in self._files:
            for key in file.keys:
                if key == ADAM_STEPS:
                    self.adam_steps = float(file.array(key, 1)[0])
                    continue
                found = _KEY.fullmatch(key)
                if found is None:
                    raise CheckpointError(f"{file.path}: holds {key!r}, which no checkpoint has")
                place = (int(found["start"]), int(found["numel"]), file, key)
                self._fragments.setdefault((found["kind"], found["name"]), []).append(place)

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
        read = 0
        for first, length, file, key in self._fragments.get((kind, name), []):
            low, high = max(first, start), min(first + length, start + numel)
            if low < high:
                part = file.array(key, length)[low - first : high - first]
                values[low - start : high - start] = part
                read += high - low
        if read != numel:
            raise CheckpointError(
                f"{', '.join(str(file.path) for file in self._files)}: {kind} of {name} has {read} "
                f"of its elements {start} to {start + numel} there; restore the checkpoint's files"
            )
        return values
