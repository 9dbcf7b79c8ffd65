"""Core attention, rotary embedding and router of Megatron-core that also run without CUDA.

Megatron's own core attention forks the CUDA random state, its rotary embedding moves itself to the
current CUDA device, and its router its weights; everything else of its local layers runs on any
device.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.router import TopKRouter

_ADDED = "fastmix_added_to_scores"
"""Attribute of a mask."""


class ScaledDotProductAttention(MegatronModule):
    """Attention by `torch.nn.functional.scaled_dot_product_attention`, without dropout: causal, or
    by a mask."""

    def __init__(self, config: Any, layer_number: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(config=config)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Query, key and value of shape (S, B, heads, head size) to (S, B, heads·head size).

        Key and value may have fewer heads, each shared by as many of the query's in a row.

        `attention_mask`, bool (B, 1, S, S), is true where a token must not attend; None is causal.
        """
        query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        added = None if attention_mask is None else _added_to_scores(attention_mask, query.dtype)
        sharers = query.shape[1] // key.shape[1]
        if sharers > 1 and (added is not None or query.dtype is torch.float32):
            # On CUDA flash attention alone takes shared heads, and neither a mask nor fp32; what
            # would be left keeps the scores of all pairs of tokens, for each head.
            key, value = (x.repeat_interleave(sharers, dim=1) for x in (key, value))
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=added,
            is_causal=added is None,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        return mixed.permute(2, 0, 1, 3).flatten(2)


def _added_to_scores(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """-inf where a token must not attend. Kept with the mask, so that all layers save one: from a
    mask of bool, attention makes its own in each."""
    added: torch.Tensor | None = getattr(mask, _ADDED, None)
    if added is None or added.dtype != dtype:
        # Rows of a multiple of 8 in memory: of others attention on CUDA makes a copy in each layer.
        length = -(-mask.shape[-1] // 8) * 8
        added = torch.zeros(*mask.shape[:-1], length, dtype=dtype, device=mask.device)
        added = added[..., : mask.shape[-1]].masked_fill_(mask, -torch.inf)
        setattr(mask, _ADDED, added)
    return added


class RotaryEmbeddingAnywhere(RotaryEmbedding):
    """`RotaryEmbedding` that follows the model to its device, whichever that is."""

    def __init__(self, kv_channels: int, percent: float = 1.0, base: int = 10_000) -> None:
        super().__init__(
            kv_channels, rotary_percent=percent, rotary_base=base, use_cpu_initialization=True
        )
        # Moves with the model, yet is no number that a cast to bf16 would round.
        self.register_buffer("_here", torch.empty(0, dtype=torch.int64), persistent=False)

    def get_emb(self, max_seq_len: int, offset: int = 0) -> torch.Tensor:
        """(S, 1, 1, rotated part of the head) in float32, as the base class computes it on CUDA."""
        self.inv_freq: torch.Tensor = self.inv_freq.to(self._here.device)
        frequencies = self.get_freqs_non_repeated(max_seq_len, offset)
        return torch.cat((frequencies, frequencies), dim=-1)[:, None, None, :]


class RouterAnywhere(TopKRouter):
    """`TopKRouter` whose weights stay on the device that the model is on."""

    def gating(self, input: torch.Tensor) -> torch.Tensor:
        """Logits of the experts, (S, B, experts), in the router's precision."""
        # Rounded to bf16, ties and near-ties would send tokens elsewhere than fp32 does.
        return torch.nn.functional.linear(input.float(), self.weight.float())
