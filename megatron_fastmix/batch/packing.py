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
    """What `Batch` holds of `samples`: text, of one length, stacked; where there are answer-only
    rows all by `collate_rows`, with their `tokens_per_sample` (B,) float64."""
    # Rows of answer-only data say by how many tokens their loss is divided; text is cut evenly.
    if not any("tokens_per_sample" in sample for sample in samples):
        keys = ("tokens", "labels", "loss_mask", "positions", "blocks")
        return {
            key: torch.stack([sample[key] for sample in samples])
            for key in keys
            if key in samples[0]
        }
    divisors = [_divisor(sample) for sample in samples]
    return collate_rows(samples, row_length, packing) | {
        "tokens_per_sample": torch.tensor(divisors, dtype=torch.float64)
    }


def _divisor(sample: dict[str, Any]) -> float:
    """By how many tokens the sample's loss is divided: its source's mean, of text its own."""
    if "tokens_per_sample" in sample:
        return float(sample["tokens_per_sample"])
    return max(1.0, float(sample["loss_mask"].sum()))


def collate_rows(
    samples: Sequence[dict[str, Any]], row_length: int, packing: bool
) -> dict[str, torch.Tensor]:
    """`tokens`, `labels`, `loss_mask` and `segment`, all (R, longest row), and `positions` and
    `blocks` where a row holds two samples, or samples have their own.

    `segment` is the index of the sample that a token belongs to, −1 for padding; `positions` are
    those of `positions_in_samples`, and `blocks` the segments, but for what samples say themselves.
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
    positions = positions_in_samples(batch["segment"])
    if positions is not None:
        batch |= {"positions": positions, "blocks": batch["segment"].clone()}
    own = {key for sample in samples for key in ("positions", "blocks") if key in sample}
    return batch | {key: _with_own(key, samples, rows, batch) for key in own}


def _with_own(
    key: str,
    samples: Sequence[dict[str, Any]],
    rows: Sequence[Sequence[int]],
    batch: dict[str, torch.Tensor],
) -> torch.Tensor:
    """`positions` or `blocks` of a batch, (R, S), with those that samples have themselves."""
    segment = batch["segment"]
    places = torch.arange(segment.shape[1]).repeat(len(rows), 1)
    # No sample has as many documents as the row has tokens, and one more.
    stride = 1 if key == "positions" else segment.shape[1] + 1
    whole = batch.get(key, places if key == "positions" else segment).clone() * stride
    for number, row in enumerate(rows):
        for index in row:
            if key in samples[index]:
                mine = segment[number] == index
                base = 0 if key == "positions" else index * stride
                whole[number, mine] = base + samples[index][key]
    return whole


def positions_in_samples(segment: torch.Tensor) -> torch.Tensor | None:
    """Where each token stands in its sample, (R, S) int64: 0 where a sample begins, then 1, 2, …;
    None where no row holds two samples, and the place in the row is the place in the sample.

    Padding counts anew as often as the longest sample is long, so that no position is one that no
    sample has: a model may know no further ones.
    """
    if _one_sample_a_row(segment):
        return None
    rows, length = segment.shape
    place = torch.arange(length, device=segment.device).expand(rows, length)
    begins = torch.ones_like(segment, dtype=torch.bool)
    begins[:, 1:] = segment[:, 1:] != segment[:, :-1]
    positions = place - torch.where(begins, place, 0).cummax(dim=1).values
    padding = segment == NO_SAMPLE
    longest = positions[~padding].max() + 1
    return torch.where(padding, positions % longest, positions)


def packed_mask(segment: torch.Tensor) -> torch.Tensor:
    """What a token must not attend to, bool (R, 1, S, S) as in Megatron: all but itself and the
    earlier tokens of its own sample. Asks the device for nothing."""
    same = segment[:, :, None] == segment[:, None, :]
    causal = torch.ones(same.shape[1:], dtype=torch.bool, device=segment.device).tril()
    return ~(same & causal)[:, None]


def _one_sample_a_row(segment: torch.Tensor) -> bool:
    return bool(((segment == segment[:, :1]) | (segment == NO_SAMPLE)).all())
