"""Every method by name, from configuration to `mixture.json`. Imports no torch."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.baselines.climb import ClimbSettings, climb
from megatron_fastmix.lab.baselines.objective import check_references
from megatron_fastmix.lab.baselines.proxy_pool import ProxyPool
from megatron_fastmix.lab.baselines.regmix import RegMixSettings, random_search, regmix
from megatron_fastmix.lab.baselines.result import BaselineResult
from megatron_fastmix.lab.baselines.simple import proportional, temperature, uniform
from megatron_fastmix.lab.jobs import Job, run_jobs
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.search.inputs import check_inputs

PRELOAD = ("megatron_fastmix.lab.baselines.proxy_run", "megatron_fastmix.search.loop", "deepspeed")

_FREE: dict[str, Callable[[np.ndarray], BaselineResult]] = {
    "uniform": uniform,
    "proportional": proportional,
    "temperature": temperature,
}
_LINEAR = RegMixSettings(predictor="linear")
_POOLED: dict[str, Callable[[ProxyPool, np.ndarray], BaselineResult]] = {
    "regmix": lambda pool, sizes: regmix(pool, sizes, RegMixSettings()),
    "regmix_linear": lambda pool, sizes: regmix(pool, sizes, _LINEAR),
    "random_search": lambda pool, sizes: random_search(pool, sizes, RegMixSettings()),
    "climb": lambda pool, sizes: climb(pool, sizes, ClimbSettings()),
}
"""Methods that train many proxies, which may be spread over processes."""
_ONLINE = {
    "doremi": ("megatron_fastmix.lab.baselines.doremi", "DoReMiSettings"),
    "doge": ("megatron_fastmix.lab.baselines.doge", "DoGESettings"),
    "odm": ("megatron_fastmix.lab.baselines.odm", "ODMSettings"),
}
"""Methods of one process; their modules import torch."""

FASTMIX = "fastmix"
BASELINES = (*_FREE, *_POOLED, *_ONLINE)
METHODS = (FASTMIX, *BASELINES)


def find_mixtures(
    wanted: Sequence[tuple[str, SearchConfig, Path]],
    proxies: Path,
    *,
    workers: int,
    report: Callable[[str], None] = print,
    finished: Callable[[Path], None] = lambda file: None,
) -> None:
    """For each (method, configuration, file) finds the mixture and writes it to the file.

    `proxies` is the folder of finished proxies, which methods share and a second call takes up.
    `finished` is called with each file that is written.
    Raises `ConfigError` for an unknown method and what training raises; files that were
    written stay.
    """
    unknown = sorted({method for method, _, _ in wanted} - set(METHODS))
    if unknown:
        raise ConfigError(f"method: found {unknown[0]!r}; choose among {', '.join(METHODS)}")
    for method, config, _ in wanted:
        if method in _POOLED:
            check_references(config, config.targets, where="target", what=method, model="the proxy")
    jobs = [
        Job(
            name=f"{method}, seed {config.seed}",
            function=_fastmix if method == FASTMIX else _online,
            arguments=(method, config, file),
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
            _in_this_process(method, config, file, proxies, workers, report)
            finished(file)


def _in_this_process(
    method: str,
    config: SearchConfig,
    file: Path,
    proxies: Path,
    workers: int,
    report: Callable[[str], None],
) -> None:
    began = time.monotonic()
    inputs = check_inputs(config, 1)
    sizes = np.array([size.size.loss_tokens for size in inputs.sources], dtype=np.float64)
    seconds = 0.0
    if method in _FREE:
        result = _FREE[method](sizes)
    else:
        pool = ProxyPool(config, proxies, workers=workers)
        result = _POOLED[method](pool, sizes)
        seconds = pool.seconds
    write_mixture(file, result.outcome(config, method, seconds).learned_mixture(config, inputs))
    report(f"{method}, seed {config.seed}: {time.monotonic() - began:.0f} s")


def _online(method: str, config: SearchConfig, file: Path) -> None:
    module, settings = _ONLINE[method]
    loaded = import_module(module)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".cache-") as cache:
        result = getattr(loaded, method)(config, getattr(loaded, settings)(), cache)
    outcome = result.outcome(config, method, time.monotonic() - began)
    write_mixture(file, outcome.learned_mixture(config, check_inputs(config, 1)))


def _fastmix(method: str, config: SearchConfig, file: Path) -> None:
    """The search itself on one rank, in its run folder, from which it resumes."""
    from megatron_fastmix.deepspeed_engine.distributed import init_distributed
    from megatron_fastmix.proxy.megatron_gpt import initialize_world_of_one
    from megatron_fastmix.search.loop import Search
    from megatron_fastmix.start.claim import claim

    claim(config)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    initialize_world_of_one()
    init_distributed(auto_mpi_discovery=False)
    search = Search(config)
    search.run()
    write_mixture(file, search.result())
