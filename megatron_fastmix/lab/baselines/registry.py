"""Every method by name, from configuration to `mixture.json`. Imports no torch."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fastmix.config import SearchConfig, SourceConfig, strict_yaml
from megatron_fastmix.config.groups import GroupConfig, group_labels
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.climb import climb
from megatron_fastmix.lab.baselines.mixing_law import mixing_law
from megatron_fastmix.lab.baselines.objective import check_references
from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.regmix import random_search, regmix
from megatron_fastmix.lab.baselines.regressors import (
    FEWEST_FOR_TREES,
    FEWEST_IN_LEAF,
    require_lightgbm,
    require_scipy,
)
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.settings import BaselineSettings
from megatron_fastmix.lab.baselines.simple import (
    proportional,
    random_draw,
    temperature,
    uniform,
    unimax,
)
from megatron_fastmix.lab.jobs import Job, run_jobs
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.search.start_mixture import source_groups

PRELOAD = ("megatron_fastmix.lab.baselines.proxy_run", "megatron_fastmix.search.loop", "deepspeed")

_FREE: dict[str, Callable[[np.ndarray, BaselineSettings, int], BaselineResult]] = {
    "uniform": lambda sizes, settings, seed: uniform(sizes),
    "proportional": lambda sizes, settings, seed: proportional(sizes),
    "temperature": lambda sizes, settings, seed: temperature(
        sizes, settings.temperature.temperature
    ),
    "unimax": lambda sizes, settings, seed: unimax(sizes, settings.unimax),
    "random_draw": lambda sizes, settings, seed: random_draw(sizes, seed),
}
_POOLED: dict[str, Callable[[ProxyPool, np.ndarray, BaselineSettings], BaselineResult]] = {
    "regmix": lambda pool, sizes, settings: regmix(pool, sizes, settings.regmix),
    "regmix_linear": lambda pool, sizes, settings: regmix(pool, sizes, settings.regmix, "linear"),
    "random_search": lambda pool, sizes, settings: random_search(pool, sizes, settings.regmix),
    "climb": lambda pool, sizes, settings: climb(pool, sizes, settings.climb, settings.regmix),
    "mixing_law": lambda pool, sizes, settings: mixing_law(
        pool, sizes, settings.mixing_law, settings.regmix
    ),
}
"""Methods that train many proxies, which may be spread over processes."""
_ONLINE = {name: f"megatron_fastmix.lab.baselines.{name}" for name in ("doremi", "doge", "odm")}
"""Methods of one process; their modules import torch."""
_PACKAGES = {"regmix": require_lightgbm, "climb": require_lightgbm, "mixing_law": require_scipy}
"""What a method needs besides the package's own requirements."""
_SECTIONS = {
    "temperature": ("temperature",),
    "regmix": ("regmix",),
    "regmix_linear": ("regmix",),
    "random_search": ("regmix",),
    "climb": ("climb", "regmix"),
    "mixing_law": ("mixing_law", "regmix"),
    "unimax": ("unimax",),
    **{name: (name,) for name in _ONLINE},
}
"""Sections of `BaselineSettings` that a method depends on."""

FASTMIX = "fastmix"
BASELINES = (*_FREE, *_POOLED, *_ONLINE)
METHODS = (FASTMIX, *BASELINES)
FREE = tuple(_FREE)
"""Methods that train nothing: functions of the sources' sizes."""


def settings_of(method: str, settings: BaselineSettings) -> dict[str, Any]:
    """The plain values of the sections that a method depends on, by section; none for FastMix."""
    return {
        section: strict_yaml.to_dict(getattr(settings, section))
        for section in _SECTIONS.get(method, ())
    }


def proxies_of(method: str, settings: BaselineSettings) -> int | None:
    """How many proxies a method trains, each on a mixture of its own; None for other methods."""
    if method not in _POOLED:
        return None
    return sum(settings.climb.runs) if method == "climb" else settings.regmix.runs


def find_mixtures(
    wanted: Sequence[tuple[str, SearchConfig, Path]],
    proxies: Path,
    *,
    workers: int,
    settings: BaselineSettings | None = None,
    report: Callable[[str], None] = print,
    finished: Callable[[Path], None] = lambda file: None,
) -> None:
    """For each (method, configuration, file) finds the mixture and writes it to the file.

    `proxies` is the folder of finished proxies, which methods share and a second call takes up.
    `finished` is called with each file that is written.
    `settings` are those of every baseline, the defaults unless given.
    Raises `ConfigError` for an unknown method, or one whose package is missing, before anything is
    trained, and what training raises; files that were written stay.
    """
    settings = settings or BaselineSettings()
    unknown = sorted({method for method, _, _ in wanted} - set(METHODS))
    if unknown:
        raise ConfigError(f"method: found {unknown[0]!r}; choose among {', '.join(METHODS)}")
    notes: list[str] = []
    for method, config, _ in wanted:
        _PACKAGES.get(method, lambda: None)()
        bounded = [each.name for each in config.sources if _is_bounded(each)]
        bounded += [each.name for each in config.groups if _is_bounded(each)]
        if bounded and method in _FREE:
            notes.append(f"{method} does not keep the bounds of {', '.join(bounded)}")
        elif bounded and method != FASTMIX:
            raise ConfigError(
                f"{bounded[0]}: has a min_weight or max_weight, which {method} does not keep; "
                "leave it out, and correct the result by export --set or --max-epochs"
            )
        if method == "unimax":
            settings.unimax.tokens  # noqa: B018  without a budget it raises
        if method in _ONLINE and config.mixture.learn == "groups":
            raise ConfigError(
                f"mixture.learn: found groups; {method} moves the weights of sources by their own "
                "losses and gradients: set mixture.learn to sources, or choose among "
                f"{', '.join((*_FREE, *_POOLED))}, which weigh groups"
            )
        if method == "doge" and not config.objective.is_mean:
            notes.append(
                "doge lowers the weighted mean of the targets, not objective.target_aggregation "
                f"{config.objective.target_aggregation}"
            )
        if method in _POOLED:
            check_references(config, config.targets, where="target", what=method, model="the proxy")
            _check_proxies(method, config, settings)
    for note in dict.fromkeys(notes):
        report(f"note: {note}")
    jobs = [
        Job(
            name=f"{method}, seed {config.seed}",
            function=_fastmix if method == FASTMIX else _online,
            arguments=(method, config, file, settings),
        )
        for method, config, file in wanted
        if method == FASTMIX or method in _ONLINE
    ]

    def done(job: Job) -> None:
        report(job.name)
        finished(job.arguments[2])

    run_jobs(jobs, workers=workers, preload=PRELOAD, finished=done)
    for method, config, file in wanted:
        if method in _FREE or method in _POOLED:
            _in_this_process(method, config, file, settings, proxies, workers, report)
            finished(file)


def _check_proxies(method: str, config: SearchConfig, settings: BaselineSettings) -> None:
    """Raises `ConfigError` for fewer proxies than what is fitted to them can be told from."""
    weights = len(config.sources)
    if config.mixture.learn == "groups":
        weights = len(set(group_labels(config.sources)))
    trees = FEWEST_FOR_TREES, f"the first split of its trees, of {FEWEST_IN_LEAF} in each leaf"
    fewest, what = {
        "regmix": trees,
        "climb": trees,
        "regmix_linear": (weights, f"a line in {weights} weights"),
        "mixing_law": (weights + 1, f"a law of {weights + 1} numbers"),
    }.get(method, (1, ""))
    key, found = "regmix.runs", settings.regmix.runs
    if method == "climb":
        key, found = "climb.runs", settings.climb.runs[0]
    if found < fewest:
        first = "in the first round " if method == "climb" else ""
        raise ConfigError(
            f"{key}: found {found} {first}for {method}, which fits {what}: use {fewest} or more"
        )


def _is_bounded(source: SourceConfig | GroupConfig) -> bool:
    return source.min_weight > 0 or source.max_weight < 1


def _in_this_process(
    method: str,
    config: SearchConfig,
    file: Path,
    settings: BaselineSettings,
    proxies: Path,
    workers: int,
    report: Callable[[str], None],
) -> None:
    began = time.monotonic()
    inputs = check_inputs(config, 1)
    sizes = np.array([size.size.loss_tokens for size in inputs.sources], dtype=np.float64)
    groups = source_groups(config, sizes.tolist())
    learned = groups if config.mixture.learn == "groups" else None
    if learned is not None:  # what a method weighs is then a group
        sizes = learned.sums(sizes)
    seconds = 0.0
    if method in _FREE:
        result = _FREE[method](sizes, settings, config.seed)
    else:
        pool = ProxyPool(config, proxies, workers=workers, groups=learned)
        result = _POOLED[method](pool, sizes, settings)
        seconds = pool.seconds
    if learned is not None:
        result = result.over_sources(learned)
    outcome = result.outcome(config, method, seconds, groups)
    write_mixture(file, outcome.learned_mixture(config, inputs))
    report(f"{method}, seed {config.seed}: {time.monotonic() - began:.0f} s")


def _online(method: str, config: SearchConfig, file: Path, settings: BaselineSettings) -> None:
    search = getattr(import_module(_ONLINE[method]), method)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".cache-") as cache:
        result = search(config, getattr(settings, method), cache)
    inputs = check_inputs(config, 1)
    groups = source_groups(config, [size.size.loss_tokens for size in inputs.sources])
    outcome = result.outcome(config, method, time.monotonic() - began, groups)
    write_mixture(file, outcome.learned_mixture(config, inputs))


def _fastmix(method: str, config: SearchConfig, file: Path, settings: BaselineSettings) -> None:
    """The search itself on one rank, in its run folder, from which it resumes. Raises `ConfigError`
    where another search runs there, or this one is asked to stop before its end."""
    from megatron_fastmix.deepspeed_engine.distributed import init_distributed
    from megatron_fastmix.proxy.megatron_gpt import initialize_world_of_one
    from megatron_fastmix.search.loop import Search
    from megatron_fastmix.start.claim import claim

    folder = RunFolder(Path(config.run_dir))
    lock = RunLock(folder)
    lock.acquire()
    try:
        claim(config)
        folder.clear_stop()
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
        initialize_world_of_one()
        init_distributed(auto_mpi_discovery=False)
        search = Search(config)
        if not search.run():
            raise ConfigError(
                f"{folder.path}: the search was stopped at step {search.step} of "
                f"{config.training.train_iters}; the same command goes on from there"
            )
        write_mixture(file, search.result())
    finally:
        lock.release()
