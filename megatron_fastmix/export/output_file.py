"""What an export and a report must not replace."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_fastmix.config.strict_yaml import parse_yaml
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.export.earlier_export import is_export
from megatron_fastmix.run.folder import PAGE_NAME, RunFolder
from megatron_fastmix.same_file import same_file

_DATA = {".bin", ".idx", ".jsonl", ".gz", ".zst", ".parquet", ".model"}
_OWN_FOOTER = b"metrics.jsonl by megatron_fastmix."
"""Ends the page of every report, of whatever release."""


def check_output(output: str | Path, mixture: str | Path | None = None) -> None:
    """Raises `ConfigError` for a file that is no earlier export; `mixture` is the file that is
    exported."""
    what, output = None, Path(output)
    if mixture is not None and same_file(output, mixture):
        what = "the mixture that is exported"
    elif _is_of_a_run(output):
        what = "of a search's own files"
    elif output.suffix in _DATA and output.exists():
        what = f"there, and no export is a {output.suffix}"
    elif output.suffix in {".yaml", ".yml"} and _is_configuration(output):
        what = "a search's configuration"
    elif os.path.islink(output):
        what = "a link, and the export would take its place"
    elif os.path.exists(output) and not (os.path.isfile(output) and is_export(output)):
        what = "there, and no earlier export"
    if what:
        raise ConfigError(f"--output: {output} is {what}; choose another file")


def check_page(folder: str | Path) -> None:
    """Raises `ConfigError` for a folder with a page that no report wrote."""
    page = Path(folder, PAGE_NAME)
    try:
        text = page.read_bytes() if page.exists() else b""
    except OSError:
        return  # the writing says what is wrong
    if text.strip() and _OWN_FOOTER not in text:
        raise ConfigError(
            f"--output: {page} is there, and no report of this command; choose another folder"
        )


def _is_of_a_run(path: Path) -> bool:
    """Whether a search writes this file into its run folder, or into a folder of it; the blend
    files, which are exports, do not count."""
    path = Path(os.path.realpath(path))
    for run in map(RunFolder, path.parents):
        own = (run.config, run.sources, run.lock, run.metrics, run.mixture, run.picture, run.stop)
        folders = (run.checkpoints, run.index_cache, run.report)
        if run.mixture.exists() or run.metrics.exists():
            return path in own or any(folder in path.parents for folder in folders)
    return False


def _is_configuration(path: Path) -> bool:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeError, ConfigError):
        return False
    return isinstance(values, dict) and {"sources", "targets"} <= values.keys()
