"""What a token budget means for a search: the share of every source that it may read."""

from __future__ import annotations

import math

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.search.inputs import Inputs

TOKENS_PER_PARAMETER = 20
"""Of a proxy that is trained about as long as it is worth (Hoffmann et al., 2022)."""


def offered_share(config: SearchConfig, inputs: Inputs) -> float | None:
    """T/D: the share of its samples that every source offers a search of T loss tokens, for a run
    of `data.token_budget` D; None without a budget.

    Raises `ConfigError` where the search is longer than the run, and for sources of which less than
    one sample would be left, with the least search for which that is not so.
    """
    budget = config.data.budget
    if budget is None:
        return None
    training = config.training
    samples = training.train_iters * training.global_batch_size
    searched = samples * loss_tokens_per_sample(config, inputs)
    if searched > budget:
        raise ConfigError(
            f"data.token_budget: found {budget:,}, fewer than the {searched:,.0f} tokens that the "
            f"search trains on; use at most training.train_iters "
            f"{int(budget / searched * training.train_iters)}, or give the run's own budget"
        )
    share = searched / budget
    counts = {
        source.name: float(size.size.count("samples", config.data.seq_length))
        for source, size in zip(config.sources, inputs.sources, strict=True)
    }
    small = [name for name, count in counts.items() if share * math.floor(count) < 1]
    if small:
        least = min(math.floor(counts[name]) for name in small)
        steps = math.ceil(training.train_iters / (share * least))
        tokens = searched / training.train_iters * steps
        raise ConfigError(
            f"data.token_budget: of {', '.join(small)} less than one sample is left: a search of "
            f"{searched:,.0f} tokens reads the share {share:.3g} of every source, for a run of "
            f"{budget:,} tokens. The least that works is training.train_iters {steps:,} "
            f"({tokens:,.0f} tokens, those of a proxy of {tokens / TOKENS_PER_PARAMETER:,.0f} "
            "parameters at 20 tokens each); or merge these sources with others"
        )
    return share


def loss_tokens_per_sample(config: SearchConfig, inputs: Inputs) -> float:
    """Averaged over the sources evenly, since the mixture that they will be drawn by is not known
    yet; a sample of text has seq_length."""
    each = [
        size.loss_tokens / size.rows if size.answer_only else float(config.data.seq_length)
        for size in (source.size for source in inputs.sources)
    ]
    return sum(each) / len(each)
