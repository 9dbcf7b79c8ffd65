"""From the state of a search to its result, `mixture.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from megatron_fastmix import strict_yaml
from megatron_fastmix.answers.rows import AnswerRows
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.export.mixture_file import (
    ANSWER_UNIT,
    UNIT,
    MixtureFile,
    SourceWeight,
    TargetResult,
    epochs_implied,
)
from megatron_fastmix.mixture import Mixture
from megatron_fastmix.search.check_inputs import Inputs
from megatron_fastmix.search.checkpoint import SearchState

PACKAGES = ("megatron-fastmix", "megatron-core", "deepspeed", "torch", "numpy")


def mixture_file(
    config: SearchConfig, inputs: Inputs, mixture: Mixture, state: SearchState, flops: float
) -> MixtureFile:
    """The result so far; `flops` are those of the search, inner and outer steps together."""
    weights, spread, averaged = mixture.averaged()
    answer_rows = [size.answer_rows for size in inputs.sources if size.answer_rows is not None]
    if answer_rows:
        learnable = [int(rows.answer_tokens.sum()) for rows in answer_rows]
    else:
        learnable = [size.tokens for size in inputs.sources]
    budget = config.output.token_budget or sum(learnable)
    # JSON keeps 17 digits, yet the sum of the mean may be off by one in the last place.
    weights = weights / weights.sum()
    sources = tuple(
        SourceWeight(
            name=source.name,
            path=source.path,
            tokens=size.tokens,
            documents=size.documents,
            initial_weight=float(mixture.history[0][k]),
            final_weight=float(mixture.weights[k]),
            weight=float(weights[k]),
            weight_std=float(spread[k]),
            logit=float(mixture.logits[k]),
            epochs=epochs_implied(float(weights[k]), learnable[k], budget),
        )
        for k, (source, size) in enumerate(zip(config.sources, inputs.sources, strict=True))
    )
    if answer_rows:
        sources = with_rows(sources, answer_rows)
    unmeasured: list[float | None] = [None] * len(config.targets)
    initial = state.initial_target_losses or unmeasured
    final = state.final_target_losses or unmeasured
    targets = tuple(
        TargetResult(
            name=target.name,
            path=target.path,
            tokens=size.tokens,
            weight=weight,
            initial_loss=initial[v],
            final_loss=final[v],
        )
        for v, (target, size, weight) in enumerate(
            zip(config.targets, inputs.targets, state.target_weights, strict=True)
        )
    )
    return MixtureFile(
        unit=ANSWER_UNIT if answer_rows else UNIT,
        seq_length=config.data.seq_length,
        complete=state.step == config.training.train_iters,
        steps=state.step,
        outer_steps=mixture.outer_steps,
        averaging_fraction=config.mixture.averaging_fraction,
        averaged_outer_steps=averaged,
        token_budget=budget,
        seed=config.seed,
        estimator=config.hypergradient.estimator,
        sources=sources,
        targets=targets,
        cost={
            "training_flops": flops,
            "wall_seconds": state.seconds,
            "tokens": float(state.tokens),
        },
        versions={name: version(name) for name in PACKAGES},
        config=strict_yaml.to_dict(config),
    )


def with_rows(
    sources: tuple[SourceWeight, ...], answer_rows: Sequence[AnswerRows]
) -> tuple[SourceWeight, ...]:
    """Adds what row-based tools need: a row of source k brings its mean number of answer tokens, so
    rows drawn by shares ∝ weight_k / mean_k bring answer tokens by `weight`."""
    shares = np.array([source.weight for source in sources])
    shares /= [rows.mean_answer_tokens for rows in answer_rows]
    shares /= shares.sum()
    return tuple(
        replace(
            source,
            rows=len(rows.kept),
            answer_tokens=int(rows.answer_tokens.sum()),
            row_weight=float(share),
        )
        for source, rows, share in zip(sources, answer_rows, shares, strict=True)
    )


def outer_step_forward_passes(config: SearchConfig) -> float:
    """Cost of one outer step in forward passes of one sample; a backward pass counts as two."""
    hypergradient, count = config.hypergradient, len(config.sources)
    probe = hypergradient.probe_samples_per_source * count
    objective = hypergradient.target_samples * len(config.targets)
    objective += probe if config.objective.train_loss_weight else 0
    terms = len(config.targets) + bool(config.objective.train_loss_weight)
    probe *= terms if hypergradient.per_target else 1
    if hypergradient.estimator == "finite_difference":
        return 3.0 * objective + 2.0 * probe
    return 3.0 * objective + 3.0 * probe * count
