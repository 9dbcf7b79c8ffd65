"""The same search with several seeds, and their average."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.result.mixture_file import (
    MixtureFile,
    SourceWeight,
    TargetResult,
    epochs_implied,
    read_mixture,
)
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.start.artifacts import write_run_artifacts
from megatron_fastmix.start.launch import launch


def launch_seeds(config: SearchConfig, count: int, ranks: int | None = None) -> int:
    """Searches with seeds `seed` … `seed + count − 1` in RUN/seed-…, one after the other, and
    writes their average into the run folder. Returns the exit code.

    Finished seeds are not searched again. Raises what `launch` raises.
    """
    folder = Path(config.run_dir)
    mixtures = []
    for seed in range(config.seed, config.seed + count):
        run_dir = RunFolder(folder).seed(seed).path
        code = launch(dataclasses.replace(config, seed=seed, run_dir=str(run_dir)), ranks)
        if code:
            return code
        mixtures.append(read_mixture(run_dir))
    mixture = average(mixtures)
    files = write_run_artifacts(folder, mixture)
    print(f"\nAverage over seeds {', '.join(map(str, mixture.seeds))}:\n")
    print(final_table(mixture, blend_txt=files.blend_txt, blend_json=files.blend_json))
    return 0


def average(mixtures: Sequence[MixtureFile]) -> MixtureFile:
    """The mean of two or more mixtures of the same search; ± is over the seeds (n − 1)."""
    first = mixtures[0]
    sources = tuple(
        _average_source([m.sources[k] for m in mixtures], first.token_budget)
        for k in range(len(first.sources))
    )
    total = sum(source.weight for source in sources)
    return dataclasses.replace(
        first,
        seeds=tuple(mixture.seed for mixture in mixtures),
        complete=all(mixture.complete for mixture in mixtures),
        sources=tuple(dataclasses.replace(s, weight=s.weight / total) for s in sources),
        targets=tuple(
            _average_target([m.targets[v] for m in mixtures]) for v in range(len(first.targets))
        ),
        cost={key: sum(mixture.cost[key] for mixture in mixtures) for key in first.cost},
    )


def _average_source(sources: Sequence[SourceWeight], token_budget: int) -> SourceWeight:
    weight = statistics.fmean(source.weight for source in sources)
    return dataclasses.replace(
        sources[0],
        final_weight=statistics.fmean(source.final_weight for source in sources),
        weight=weight,
        weight_std=statistics.stdev(source.weight for source in sources),
        logit=statistics.fmean(source.logit for source in sources),
        epochs=epochs_implied(weight, sources[0].tokens, token_budget),
    )


def _average_target(targets: Sequence[TargetResult]) -> TargetResult:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known else None

    return dataclasses.replace(
        targets[0],
        weight=statistics.fmean(target.weight for target in targets),
        initial_loss=mean([target.initial_loss for target in targets]),
        final_loss=mean([target.final_loss for target in targets]),
    )
