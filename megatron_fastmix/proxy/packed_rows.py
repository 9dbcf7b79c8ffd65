"""How a Hugging Face model is told which tokens of a row belong together.

There is no one way that every architecture follows, and one that does not follow mixes samples
without a word: so each way is tried on the model itself when it is built, and the first is taken
under which two samples in a row have the losses that they have alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from megatron_fastmix.batch.packing import packed_mask, positions_in_samples
from megatron_fastmix.errors import ConfigError

Way = Literal["positions", "mask", "rows"]
"""`positions`: they begin anew with every sample, from which transformers makes each layer's mask,
sliding windows included. `mask`: one mask for all layers beside the positions. `rows`: neither is
followed (recurrent models, some sliding windows), so every sample gets a row of its own."""

Logits = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""`Rows.logits`."""

WAYS: tuple[Way, ...] = ("positions", "mask", "rows")


class Rows:
    """Runs a model on rows that may hold several samples."""

    def __init__(self, model: Any, base: Any) -> None:
        """`base` is the architecture's own model inside `model` (they differ with adapters)."""
        self._model = model
        self._takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        self._mask_is_added = getattr(base.config, "_attn_implementation", None) == "eager"
        self.way: Way = "rows"

    def logits(
        self, tokens: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(R, S, vocabulary). `attention_mask`, bool (R, 1, S, S), true where a token must not
        attend, is None where no row holds two samples."""
        if attention_mask is None:
            return self._run(tokens, positions, None)
        if self.way == "rows":
            return self._each_alone(tokens, positions)
        return self._run(tokens, positions, attention_mask if self.way == "mask" else None)

    def _run(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        arguments: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        if mask is not None:
            allowed = ~mask
            if self._mask_is_added:
                dtype = next(self._model.parameters()).dtype
                least = torch.finfo(dtype).min
                allowed = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, least)
            arguments["attention_mask"] = allowed
        return self._model(input_ids=tokens, use_cache=False, **arguments).logits

    def _each_alone(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One forward pass with a row for each sample, put back together."""
        samples = int((positions == 0).sum())
        sample = (positions == 0).flatten().cumsum(0) - 1
        place = positions.flatten()
        shape = (samples, int(place.max()) + 1)
        alone = tokens.new_zeros(shape)
        alone[sample, place] = tokens.flatten()
        count = torch.arange(shape[1], device=tokens.device).expand(shape)
        logits = self._run(alone, count, None)
        return logits[sample, place].view(*tokens.shape, -1)


def find_way(model: Any, base: Any) -> Rows:
    """`Rows` by the first way that keeps two samples apart. Takes a few forward passes of 20
    tokens; must run before parameters are sharded. Raises `ConfigError` for a model whose tokens
    attend to later ones: its losses would be those of words that it is shown."""
    rows = Rows(model, base)
    text = base.config.get_text_config() if hasattr(base.config, "get_text_config") else base.config
    dtype = next(model.parameters()).dtype
    with torch.no_grad(), _small_windows(base.config, text):
        if _looks_ahead(rows.logits, text.vocab_size, dtype):
            raise ConfigError(
                f"proxy.path: tokens of this model ({type(base).__name__}) attend to later tokens, "
                "so that it sees what it is to predict; give a causal language model, or set "
                "is_decoder to true in its config.json where it can be one"
            )
        for rows.way in () if _masks_are_stored(base, text) else WAYS[:-1]:
            if _keeps_apart(rows.logits, text.vocab_size, dtype):
                return rows
    rows.way = "rows"
    return rows


def _masks_are_stored(base: Any, text: Any) -> bool:
    """Whether attention is masked by a table of the model's own, which ends at its number of
    positions: a row of several samples may be longer (GPT-Neo)."""
    most = getattr(text, "max_position_embeddings", None)
    eager = getattr(base.config, "_attn_implementation", None) == "eager"
    return eager and any(tuple(b.shape[-2:]) == (most, most) for b in base.buffers())


def _looks_ahead(logits: Logits, vocab_size: int, dtype: torch.dtype) -> bool:
    """Whether the first tokens of a row change with the last ones."""
    generator = torch.Generator().manual_seed(1)
    first, second, other = (
        torch.randint(vocab_size, (1, 10), generator=generator) for _ in range(3)
    )
    positions = torch.arange(20)[None]
    found, expected = (
        logits(torch.cat((first, last), dim=1), positions, None)[:, :10].float().log_softmax(-1)
        for last in (second, other)
    )
    scale = max(1.0, float(expected.abs().mean()))
    error = (found - expected).abs()
    # Rows of one shape: only experts that get other numbers of tokens may round in another way.
    return bool(
        error.max() > 1e-4 * scale if dtype is torch.float32 else error.mean() > 0.01 * scale
    )


def _keeps_apart(logits: Logits, vocab_size: int, dtype: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(1)
    lengths = (11, 9)
    first, second, other = (
        torch.randint(vocab_size, (1, n), generator=generator) for n in (*lengths, lengths[0])
    )
    segment = torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))[None]
    positions = positions_in_samples(segment)
    assert positions is not None
    mask = packed_mask(segment)
    try:
        together = logits(torch.cat((first, second), dim=1), positions, mask)
        replaced = logits(torch.cat((other, second), dim=1), positions, mask)
        alone = [logits(one, torch.arange(one.shape[1])[None], None) for one in (first, second)]
    except Exception:
        return False  # each architecture refuses in its own way what it does not know
    expected = torch.cat(alone, dim=1).float().log_softmax(-1)
    found, second_again = (x.float().log_softmax(-1) for x in (together, replaced))
    # Rounding grows with the logits, and in bf16 the two kernels differ by it; but no kernel lets
    # the tokens of another sample through.
    scale = max(1.0, float(expected.abs().mean()))
    apart = (found - second_again)[:, lengths[0] :].abs().max()
    error = (found - expected).abs()
    close = error.max() <= 1e-4 * scale if dtype is torch.float32 else error.mean() <= 0.01 * scale
    return bool(apart <= 1e-4 * scale) and bool(close)


@contextmanager
def _small_windows(*configs: Any) -> Iterator[None]:
    """Has windows of attention be shorter than the samples that are tried."""
    changed = []
    for config in configs:
        for name in ("sliding_window", "attention_chunk_size"):
            size = getattr(config, name, None)
            if isinstance(size, int) and size > 4:
                changed.append((config, name, size))
                setattr(config, name, 4)
    try:
        yield
    finally:
        for config, name, size in changed:
            setattr(config, name, size)
