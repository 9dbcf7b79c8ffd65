"""Many proxies, one for each mixture: what regression methods learn from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.checkpoint.identity import identity_of
from megatron_fastmix.config import SearchConfig, strict_yaml
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.jobs import Job, run_jobs
from megatron_fastmix.mixture.grouping import Grouping
from megatron_fastmix.text_files import read_json_object

PRELOAD = ("megatron_fastmix.lab.baselines.proxy_run",)
_TARGET_SAMPLES = 256
"""Of each target, evaluated after a training."""


@dataclass(frozen=True, kw_only=True)
class ProxyOutcome:
    """One finished proxy."""

    recipe: str
    """Hash of everything but the mixture that the outcome depends on."""
    weights: tuple[float, ...]
    """The mixture that it was trained on, (K,)."""
    losses: tuple[float, ...]
    """Loss of each target after the training, (V,), nats per token."""
    flops: float
    """Of the training and the evaluation."""
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Wall time."""


class ProxyPool:
    """Trains proxies under static mixtures, by sampling; finished ones stay in a folder."""

    def __init__(
        self,
        config: SearchConfig,
        folder: Path,
        *,
        workers: int,
        groups: Grouping | None = None,
    ) -> None:
        """What depends on another recipe has another subfolder of `folder`. With `groups` mixtures
        are of groups, whose shares inside stay. Raises `DataError` for data that cannot be read."""
        self.config = config
        self.workers = workers
        self.groups = groups
        self.recipe = _recipe(config)
        self.folder = folder / self.recipe
        self.flops = 0.0
        """Of every proxy that was asked for, whether trained now or before."""
        self.tokens = 0
        self.steps = 0
        self.seconds = 0.0
        """Wall time of each, added up: as one process would take."""

    def losses(self, mixtures: np.ndarray, report: Callable[[str], None] = print) -> np.ndarray:
        """Target losses (N, V) of proxies trained on `mixtures`, (N, K), or (N, G) of groups; those
        that are there already are not trained again. Raises what `run_jobs` raises; finished
        proxies stay."""
        if self.groups is not None:
            mixtures = self.groups.source_weights(mixtures)
        self.folder.mkdir(parents=True, exist_ok=True)
        files = [self._file(weights) for weights in mixtures]
        missing = {
            file: weights
            for file, weights in zip(files, mixtures, strict=True)
            if not file.exists()
        }
        done = 0

        def finished(job: Job) -> None:
            nonlocal done
            done += 1
            report(f"seed {self.config.seed}: proxy {done} of {len(missing)}")

        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".cache-") as cache:
            jobs = [
                Job(
                    name=file.stem,
                    function=_train,
                    arguments=(self.config, weights, self.recipe, file, cache),
                )
                for file, weights in missing.items()
            ]
            run_jobs(
                jobs,
                workers=self.workers,
                preload=PRELOAD,
                finished=finished,
            )
        outcomes = [_read(file) for file in files]
        self.flops += sum(outcome.flops for outcome in outcomes)
        self.tokens += sum(outcome.tokens for outcome in outcomes)
        self.seconds += sum(outcome.seconds for outcome in outcomes)
        self.steps += self.config.training.train_iters * len(outcomes)
        return np.array([outcome.losses for outcome in outcomes])

    def _file(self, weights: np.ndarray) -> Path:
        key = hashlib.sha256(np.asarray(weights, dtype="<f8").tobytes()).hexdigest()[:16]
        return self.folder / f"proxy-{key}.json"


def _recipe(config: SearchConfig) -> str:
    tokenizer = load_tokenizer(**vars(config.tokenizer))
    content = {
        "data": identity_of(config, tokenizer.sha256),
        "seed": config.seed,
        "reading": strict_yaml.to_dict(config.data) | {"data_cache_path": None},
        "proxy": strict_yaml.to_dict(config.proxy),
        "training": strict_yaml.to_dict(config.training),
        "target_samples": _TARGET_SAMPLES,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _train(
    config: SearchConfig,
    weights: np.ndarray,
    recipe: str,
    file: Path,
    cache: str,
) -> None:
    import time

    from megatron_fastmix.lab.baselines.proxy_run import ProxyRun

    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=cache) as own_cache:
        run = ProxyRun(config, own_cache)
        while run.step < config.training.train_iters:
            run.train(run.read(run.draw(weights)))
        losses = run.target_losses(_TARGET_SAMPLES)
    outcome = ProxyOutcome(
        recipe=recipe,
        weights=tuple(weights.tolist()),
        losses=tuple(losses.tolist()),
        flops=run.flops,
        tokens=run.tokens,
        seconds=time.monotonic() - began,
    )
    text = json.dumps(dataclasses.asdict(outcome), indent=1, allow_nan=False)
    write_atomically(file, text + "\n")


def _read(file: Path) -> ProxyOutcome:
    fix = "delete it to train it anew"
    values = read_json_object(file, "the outcome of a proxy", fix=fix)
    try:
        return strict_yaml.from_dict(ProxyOutcome, values)
    except ConfigError as error:
        raise DataError(f"{file}: cannot be read: {error}; {fix}") from None
