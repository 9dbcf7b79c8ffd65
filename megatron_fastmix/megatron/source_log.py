"""Losses, weights, tokens and epochs by source, in the run's log and TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_NAMED = 30
"""Sources in a line of the log; TensorBoard has all."""


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One source at one iteration."""

    name: str
    loss: float | None
    """Nats per token since the last line; None where no token of it was trained on."""
    weight: float
    """Its share of draws, or of the loss, at the next sample."""
    tokens: int
    """Tokens drawn of it since the start of the run."""
    epochs: float
    """Times that it was read since then."""


def local_values(
    sums: torch.Tensor | None,
    draws: Sequence[int] | None,
    sizes: Sequence[int] | None,
    count: int,
    device: torch.device | str,
) -> torch.Tensor:
    """What this rank adds to a line, (4, K) float64: losses, tokens of them, draws, samples of an
    epoch. The last two are given by one rank alone, the others pass None."""
    values = torch.zeros(4, count, dtype=torch.float64, device=device)
    if sums is not None:
        values[:2] = sums
    if draws is not None and sizes is not None:
        values[2:] = torch.tensor([list(draws), list(sizes)], dtype=torch.float64)
    return values


def rows_of(
    names: Sequence[str], values: torch.Tensor, weights: Sequence[float], seq_length: int
) -> list[SourceRow]:
    """The rows of the summed `values` of `local_values`, in the order of `names`."""
    losses, tokens, draws, sizes = values.tolist()
    return [
        SourceRow(
            name=name,
            loss=losses[k] / tokens[k] if tokens[k] > 0 else None,
            weight=float(weights[k]),
            tokens=round(draws[k]) * seq_length,
            epochs=draws[k] / sizes[k] if sizes[k] else 0.0,
        )
        for k, name in enumerate(names)
    ]


def log_line(iteration: int, rows: Sequence[SourceRow]) -> str:
    """One line in the form of Megatron's own."""
    parts = [f" fastmix, by source at iteration {iteration:8d}"]
    shown = sorted(rows, key=lambda row: -row.tokens)[:_NAMED]
    for row in rows:
        if row in shown:
            loss = "none" if row.loss is None else f"{row.loss:.6E}"
            parts.append(
                f" {row.name}: loss {loss}, weight {row.weight:.4f}, tokens {row.tokens}, "
                f"epochs {row.epochs:.3f}"
            )
    if len(shown) < len(rows):
        parts.append(f" and {len(rows) - len(shown)} more")
    return " |".join(parts) + " |"


def scalars(rows: Sequence[SourceRow]) -> dict[str, float]:
    """Tag and value of everything, for TensorBoard and W&B."""
    values: dict[str, float] = {}
    for row in rows:
        if row.loss is not None:
            values[f"fastmix loss/{row.name}"] = row.loss
        values[f"fastmix weight/{row.name}"] = row.weight
        values[f"fastmix tokens/{row.name}"] = float(row.tokens)
        values[f"fastmix epochs/{row.name}"] = row.epochs
    return values


def write_scalars(values: dict[str, float], iteration: int, writer: Any, wandb: Any) -> None:
    """To the writers that the run has; None stands for one that it has not."""
    if writer is not None:
        for tag, value in values.items():
            writer.add_scalar(tag, value, iteration)
    if wandb is not None:
        wandb.log(values, iteration)
