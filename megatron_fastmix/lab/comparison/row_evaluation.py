"""The loss of a trained row on a test set, and how many answers it gives exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.batch.packing import packed_mask
from megatron_fastmix.proxy.megatron_gpt import token_losses


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Of N samples."""

    losses: list[float]
    """(N,) summed loss of each sample over the mean number of tokens in the loss, nats, so that
    their mean is the loss per token."""
    sizes: list[float]
    """(N,) tokens in the loss over their mean number; empty where all samples have as many."""
    exact_match: float | None
    """Share of the answers whose every token is the likeliest after the prompt and the answer's
    tokens before it: those that greedy decoding gives. None for text."""


def batch_token_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Cross-entropy per token of a batch, (R, S) float32, 0 where the token is not in the loss."""
    mask = None if batch.blocks is None else packed_mask(batch.blocks)
    losses = token_losses(model, batch.tokens, batch.labels, mask, batch.positions)
    return losses * batch.loss_mask


@torch.no_grad()
def evaluate(model: Any, batches: Iterable[Batch]) -> Evaluation:
    """Reads all of `batches`, whose rows are samples."""
    sums: list[float] = []
    counts: list[float] = []
    exact: list[bool] = []
    for batch in batches:
        learned = batch.loss_mask > 0
        if batch.segment is None:
            losses = batch_token_losses(model, batch)
        else:
            positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
            logits = model(batch.tokens, positions.expand_as(batch.tokens), None)[learned].float()
            labels = batch.labels[learned]
            losses = torch.zeros_like(batch.loss_mask)
            losses[learned] = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
            wrong = torch.zeros_like(learned)
            wrong[learned] = logits.argmax(dim=-1) != labels
            exact += (~wrong.any(dim=1)).tolist()
        sums += losses.double().sum(dim=1).tolist()
        counts += learned.sum(dim=1).tolist()
    mean_count = float(np.mean(counts))
    return Evaluation(
        sizes=[count / mean_count for count in counts] if len(set(counts)) > 1 else [],
        losses=[value / mean_count for value in sums],
        exact_match=float(np.mean(exact)) if exact else None,
    )
