"""What every baseline returns, and its `mixture.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from megatron_fastmix import strict_yaml
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.export.mixture_file import (
    ANSWER_UNIT,
    UNIT,
    MixtureFile,
    SourceWeight,
    TargetResult,
    epochs_implied,
)
from megatron_fastmix.search.check_inputs import Inputs
from megatron_fastmix.search.outcome import PACKAGES, with_rows


@dataclass(frozen=True, kw_only=True)
class BaselineResult:
    """A mixture and what finding it cost."""

    weights: np.ndarray
    """Shares, (K,)."""
    flops: float
    """Floating-point operations of every training and evaluation that the method did."""
    tokens: int
    """Tokens trained on."""
    steps: int
    """Optimizer steps, those of all proxies together."""
    history: Sequence[np.ndarray] = ()
    """Weights (K,) over the run, for methods that move them."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The method's hyper-parameters."""


def mixture_file(
    config: SearchConfig, inputs: Inputs, method: str, result: BaselineResult, seconds: float
) -> MixtureFile:
    """The result as the file that a search writes; `estimator` names the method."""
    weights = np.asarray(result.weights, dtype=np.float64)
    weights = weights / weights.sum()
    tail = np.stack([*result.history[len(result.history) // 2 :], weights])
    answer_rows = [size.answer_rows for size in inputs.sources if size.answer_rows is not None]
    learnable = (
        [int(rows.answer_tokens.sum()) for rows in answer_rows]
        if answer_rows
        else [size.tokens for size in inputs.sources]
    )
    budget = config.output.token_budget or sum(learnable)
    first = result.history[0] if len(result.history) else weights
    sources = tuple(
        SourceWeight(
            name=source.name,
            path=source.path,
            tokens=size.tokens,
            documents=size.documents,
            initial_weight=float(first[k]),
            final_weight=float(result.history[-1][k] if len(result.history) else weights[k]),
            weight=float(weights[k]),
            weight_std=float(tail.std(axis=0)[k]),
            logit=float(np.log(max(weights[k], np.finfo(np.float64).tiny))),
            epochs=epochs_implied(float(weights[k]), learnable[k], budget),
        )
        for k, (source, size) in enumerate(zip(config.sources, inputs.sources, strict=True))
    )
    if answer_rows:
        sources = with_rows(sources, answer_rows)
    targets = tuple(
        TargetResult(
            name=target.name,
            path=target.path,
            tokens=size.tokens,
            weight=weight,
            initial_loss=None,
            final_loss=None,
        )
        for target, size, weight in zip(
            config.targets, inputs.targets, config.target_weights, strict=True
        )
    )
    return MixtureFile(
        unit=ANSWER_UNIT if answer_rows else UNIT,
        seq_length=config.data.seq_length,
        complete=True,
        steps=result.steps,
        outer_steps=max(0, len(result.history) - 1),
        averaging_fraction=1.0,
        averaged_outer_steps=1,
        token_budget=budget,
        seed=config.seed,
        estimator=method,
        sources=sources,
        targets=targets,
        cost={
            "training_flops": result.flops,
            "wall_seconds": seconds,
            "tokens": float(result.tokens),
        },
        versions={name: version(name) for name in PACKAGES},
        config=strict_yaml.to_dict(config),
    )
