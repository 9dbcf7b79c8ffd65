"""The same search with several seeds, and their average."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.result.mixture_file import read_mixture
from megatron_fastmix.result.over_seeds import average
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.start.artifacts import result_text, write_run_artifacts
from megatron_fastmix.start.claim import check_folder, check_others
from megatron_fastmix.start.launch import launch


def launch_seeds(
    config: SearchConfig, count: int, ranks: int | None = None, *, accept_changes: bool = False
) -> int:
    """Searches with seeds `seed` … `seed + count − 1` in RUN/seed-…, one after the other, and
    writes their average into the run folder. Returns the exit code.

    Finished seeds are not searched again. Raises what `launch` raises, and `ConfigError` where the
    run folder has a search of its own, or files of no search, which the average would replace.
    """
    folder = Path(config.run_dir)
    run = RunFolder(folder)
    if run.config.exists():
        raise ConfigError(
            f"{folder}: holds the search of one seed; choose another folder for several, such as "
            f"--run-dir {shlex.quote(f'{folder}-seeds')}"
        )
    if not run.seeds():
        check_others(run)
    searches = [_of_seed(config, seed) for seed in range(config.seed, config.seed + count)]
    for search in searches:  # the last is not to be refused after the first has run for hours
        check_folder(search, accept_changes=accept_changes)
    for search in searches:  # whoever watches sees how many are to come
        Path(search.run_dir).mkdir(parents=True, exist_ok=True)
    mixtures = []
    for search in searches:
        code = launch(search, ranks, accept_changes=accept_changes)
        if code:
            return code
        mixtures.append(read_mixture(search.run_dir))
    mixture = average(mixtures)
    files = write_run_artifacts(folder, mixture)
    print(f"\nAverage over seeds {', '.join(map(str, mixture.seeds))}:\n")
    print(result_text(folder, mixture, files))
    return 0


def _of_seed(config: SearchConfig, seed: int) -> SearchConfig:
    run_dir, output = RunFolder(Path(config.run_dir)).seed(seed).path, config.output
    if output.tensorboard_dir is not None:  # in one folder their curves would be one
        folder = str(Path(output.tensorboard_dir, run_dir.name))
        output = dataclasses.replace(output, tensorboard_dir=folder)
    return dataclasses.replace(config, seed=seed, run_dir=str(run_dir), output=output)
