"""Text whose samples hold several documents that know nothing of each other: Megatron's
--reset-position-ids and --reset-attention-mask."""

from __future__ import annotations

from typing import Any

import torch

from megatron_fastmix.batch.index_cache import GPTDataset


def documents_of(tokens: torch.Tensor, eod: int) -> torch.Tensor:
    """The document that each token is of, (S,) int64 counted from 0 within the sample. An end token
    belongs to the document that it ends."""
    ends = tokens == eod
    return ends.cumsum(0) - ends.long()


class DocumentsApart:
    """What a dataset of text adds to Megatron's samples under its two flags, as `collate` takes it:
    `positions`, which begin anew after each end token, and `blocks`, beyond which no token attends.

    Megatron itself makes the positions; its attention mask, (S, S) for each sample, would be most
    of what a rank reads, so that documents are numbered in its place.
    """

    config: Any

    def __getitem__(self, idx: int | None) -> dict[str, Any]:
        sample: dict[str, Any] = super().__getitem__(idx)  # type: ignore[misc]
        if self.config.reset_position_ids:
            sample["positions"] = sample["position_ids"]
        if self.config.reset_attention_mask:
            sample["blocks"] = documents_of(sample["tokens"], self.config.tokenizer.eod)
        return sample


class DocumentsApartGPTDataset(DocumentsApart, GPTDataset):
    """Megatron's, with the documents of a sample apart."""
