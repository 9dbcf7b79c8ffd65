"""The Python API: `from megatron_fastmix import search, load_result, export, report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import SearchConfig, load_config, strict_yaml
from megatron_fastmix.errors import ConfigError, FastMixError
from megatron_fastmix.export.adjustment import Adjustment
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.output_file import check_output, check_page
from megatron_fastmix.export.registry import find_format
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.result.learned_mixture import LearnedMixture
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.start.launch import launch
from megatron_fastmix.start.worker import STOPPED_EXIT_CODE


def search(
    config: SearchConfig | Mapping[str, Any] | str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    num_ranks: int | None = None,
    accept_changes: bool = False,
) -> LearnedMixture:
    """Learns a mixture, in ranks that it starts on this machine and waits for, or resumes the
    search in `run_dir`; returns the mixture, also of a search that is complete already.

    Args:
        config: a YAML file, its values, or the dataclass.
        overrides: dotted keys with their values, such as `{"training.lr": 1e-3}`.
        num_ranks: processes (default: one per accelerator, or 2 on the CPU).
        accept_changes: resume although settings, datasets or the order of draws changed since the
            checkpoint.

    Must be called in the main thread: Ctrl-C asks the ranks for a checkpoint and an orderly end,
    after which the mixture so far comes back, with `complete` False.

    Raises `ConfigError` and `DataError` before anything is started, and the error with which the
    ranks ended (`NonFiniteError`, `OutOfMemoryError`, …), whose message they have printed.
    """
    loaded = _load(config, overrides or {})
    code = launch(loaded, num_ranks, accept_changes=accept_changes)
    if code not in (0, STOPPED_EXIT_CODE):
        kinds = {error.exit_code: error for error in FastMixError.__subclasses__()}
        raise kinds.get(code, FastMixError)(
            f"the search in {loaded.run_dir} ended with exit code {code}; its ranks have said why"
        )
    return read_mixture(loaded.run_dir)


def load_result(run: str | Path) -> LearnedMixture:
    """The mixture in a run folder, or in a `mixture.json`. Raises `DataError`."""
    return read_mixture(run)


def export(
    mixture: LearnedMixture | str | Path,
    format: str = "megatron-data-args",
    *,
    output: str | Path | None = None,
    token_budget: int | None = None,
    max_epochs: float | None = None,
    min_weight: float = 0.0,
    fixed: Mapping[str, float] | None = None,
) -> str:
    """The mixture as a training tool reads it; `megatron-fastmix export --format list` names the
    formats. Also writes it to `output`.

    Args:
        token_budget: tokens of the run to come that count in the loss.
        max_epochs: read no source more often than this in the budget.
        min_weight: drop sources below this share.
        fixed: shares of sources that are set; the others keep their ratios.

    Raises `ConfigError` for an unknown format or an output that would replace what is no export,
    and `DataError` for what the format cannot hold.
    """
    chosen = find_format(format)
    learned = mixture if isinstance(mixture, LearnedMixture) else read_mixture(mixture)
    adjustment = Adjustment(
        fixed=dict(fixed or {}),
        groups={},
        token_budget=token_budget,
        max_epochs=max_epochs,
        min_weight=min_weight,
    )
    text = chosen.render(make_blend(learned, chosen.unit(None), adjustment=adjustment))
    if output is not None:
        check_output(output, None if isinstance(mixture, LearnedMixture) else mixture)
        write_atomically(output, text)
    return text


def report(*runs: str | Path, output: str | Path | None = None, pictures: bool = True) -> Path:
    """Writes the report of one or several run folders, or of their `metrics.jsonl`; returns the
    page's path. It lies in `report/` of the first unless `output` names a folder.

    Raises `DataError` where there is nothing to report, and `ConfigError` for a folder with a page
    that no report wrote.
    """
    if not runs:
        raise ConfigError("report: name at least one run folder")
    first = Path(runs[0])
    folder = Path(output) if output is not None else None
    if folder is None:
        folder = RunFolder(first.parent if first.is_file() else first).report
    check_page(folder)
    return write_report(read_runs(runs), folder, pictures=pictures)


def _load(
    config: SearchConfig | Mapping[str, Any] | str | Path, overrides: Mapping[str, Any]
) -> SearchConfig:
    if isinstance(config, str | Path) and not overrides:
        return load_config(config)
    if isinstance(config, str | Path):
        values = strict_yaml.to_dict(load_config(config))
    elif isinstance(config, SearchConfig):
        values = strict_yaml.to_dict(config)
    else:
        values = dict(config)
    for key, value in overrides.items():
        *parents, last = key.split(".")
        section = values
        for parent in parents:
            found = section.get(parent) or {}
            if not isinstance(found, Mapping):
                raise ConfigError(
                    f"{key}: {parent} is no section, but {type(found).__name__}; override it whole"
                )
            section[parent] = dict(found)
            section = section[parent]
        section[last] = str(value) if isinstance(value, Path) else value
    loaded = strict_yaml.from_dict(SearchConfig, values)
    assert isinstance(loaded, SearchConfig)
    return loaded
