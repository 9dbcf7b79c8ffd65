"""Samples of different lengths in one batch: packed into rows, or a row each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

NO_SAMPLE = -1
"""The segment of padding."""


def place(lengths: Sequence[int], row_length: int, packing: bool) -> list[list[int]]:
    """Which samples share a row: first fit, longest first; without packing a row for each.

    Args:
        lengths: tokens of each sample, none above `row_length`.
    """
    if not packing:
        return [[sample] for sample in range(len(lengths))]
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fits = [row for row, free in enumerate(room) if free >= lengths[sample]]
        if fits:
            rows[fits[0]].append(sample)
            room[fits[0]] -= lengths[sample]
        else:
            rows.append([sample])
            room.append(row_length - lengths[sample])
    return rows


def collate(
    samples: Sequence[dict[str, Any]], row_length: int, packing: bool
) -> dict[str, torch.Tensor]:
    """What `Batch` holds of `samples`: answer-only rows by `collate_rows`, with their
    `tokens_per_sample` (B,) float64; text, of one length, stacked."""
    # Rows of answer-only data say by how many tokens their loss is divided; text is cut evenly.
    if "tokens_per_sample" not in samples[0]:
        keys = ("tokens", "labels", "loss_mask")
        return {key: torch.stack([sample[key] for sample in samples]) for key in keys}
    divisors = [sample["tokens_per_sample"] for sample in samples]
    return collate_rows(samples, row_length, packing) | {
        "tokens_per_sample": torch.tensor(divisors, dtype=torch.float64)
    }


def collate_rows(
    samples: Sequence[dict[str, Any]], row_length: int, packing: bool
) -> dict[str, torch.Tensor]:
    """`tokens`, `labels`, `loss_mask` and `segment`, all (R, longest row).

    `segment` is the index of the sample that a token belongs to, −1 for padding.
    """
    rows = place([len(sample["tokens"]) for sample in samples], row_length, packing)
    longest = max(sum(len(samples[i]["tokens"]) for i in row) for row in rows)
    shape = (len(rows), longest)
    batch = {
        "tokens": torch.zeros(shape, dtype=torch.int64),
        "labels": torch.zeros(shape, dtype=torch.int64),
        "loss_mask": torch.zeros(shape),
        "segment": torch.full(shape, NO_SAMPLE),
    }
    for number, row in enumerate(rows):
        at = 0
        for index in row:
            end = at + len(samples[index]["tokens"])
            for key in ("tokens", "labels", "loss_mask"):
                batch[key][number, at:end] = samples[index][key]
            batch["segment"][number, at:end] = index
            at = end
    return batch


def attention_mask(segment: torch.Tensor) -> torch.Tensor | None:
    """What a token must not attend to, bool (R, 1, S, S) as in Megatron; None where causality does.

    A token attends to itself and to the earlier tokens of its own sample. Where no row holds two
    samples, causal attention does that, since padding comes last.
    """
    first = segment[:, :1]
    if bool(((segment == first) | (segment == NO_SAMPLE)).all()):
        return None
    same = segment[:, :, None] == segment[:, None, :]
    causal = torch.ones(same.shape[1:], dtype=torch.bool, device=segment.device).tril()
    return ~(same & causal)[:, None]
