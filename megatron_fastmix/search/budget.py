"""What a token budget means for a search: the share of each source that it may read."""

from __future__ import annotations

import math

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.search.inputs import Inputs

TOKENS_PER_PARAMETER = 20
"""Of a proxy that is trained about as long as it is worth (Hoffmann et al., 2022)."""


def offered_shares(config: SearchConfig, inputs: Inputs) -> dict[str, float] | None:
    """By source the share of its samples that a search offers for a run of `data.token_budget` D
    loss tokens; None without a budget.

    A search of N samples draws N·α_k of source k, and the run reads D·α_k of its loss tokens: both
    read it equally often where the search offers the share N·l_k/D, with l_k the loss tokens of one
    of its samples. Raises `ConfigError` where the search would repeat a source more often than the
    run, and for sources of which less than one sample would be left, with the least search for
    which that is not so.
    """
    budget = config.data.budget
    if budget is None:
        return None
    training = config.training
    samples = training.train_iters * training.global_batch_size
    each = dict(zip(config.source_names, loss_tokens_per_sample(config, inputs), strict=True))
    longest = max(each, key=lambda name: each[name])
    searched = samples * each[longest]
    if searched > budget:
        most = int(budget / searched * training.train_iters)
        raise ConfigError(
            f"data.token_budget: found {budget:,}, fewer than the {searched:,.0f} tokens of as "
            f"many samples of {longest} as the search trains on; "
            + (f"use at most training.train_iters {most}, or " if most else "")
            + "give the run's own budget"
        )
    shares = {name: samples * tokens / budget for name, tokens in each.items()}
    left = {
        source.name: shares[source.name]
        * math.floor(size.size.count("samples", config.data.seq_length))
        for source, size in zip(config.sources, inputs.sources, strict=True)
    }
    small = [name for name, count in left.items() if count < 1]
    if small:
        fix = "merge these sources with others"
        least = min(left.values())
        steps = math.ceil(training.train_iters / least) if least else 0
        read = steps * training.global_batch_size
        if 0 < read * each[longest] <= budget:  # a longer search would be refused above
            tokens = read * sum(each.values()) / len(each)
            fix = (
                f"the least that works is training.train_iters {steps:,} ({tokens:,.0f} tokens, "
                f"those of a proxy of {tokens / TOKENS_PER_PARAMETER:,.0f} parameters at "
                f"{TOKENS_PER_PARAMETER} tokens each); or {fix}"
            )
        raise ConfigError(
            f"data.token_budget: of {', '.join(small)} less than one sample is left: a search of "
            f"{samples:,} samples reads the share {shares[small[0]]:.3g} of {small[0]}, for a run "
            f"of {budget:,} tokens; {fix}"
        )
    return shares


def loss_tokens_per_sample(config: SearchConfig, inputs: Inputs) -> list[float]:
    """Of each source, (K,); a sample of text has seq_length."""
    return [
        size.loss_tokens / size.rows if size.answer_only else float(config.data.seq_length)
        for size in (source.size for source in inputs.sources)
    ]
