"""The last thing that a search prints: what was learned, and how to train with it."""

from __future__ import annotations

import shlex
from pathlib import Path

from megatron_fastmix.export.capped import repetition_note
from megatron_fastmix.result.learned_group import LearnedGroup
from megatron_fastmix.result.learned_mixture import LearnedMixture, LearnedSource
from megatron_fastmix.result.rounding import default_decimals
from megatron_fastmix.text_table import align


def final_table(
    mixture: LearnedMixture, *, blend_txt: str | Path | None, blend_json: str | Path | None
) -> str:
    """The table of sources, heaviest first, and the Megatron flags to use next.

    A blend path that is None is not mentioned.
    """
    epochs = mixture.epochs
    heaviest = sorted(mixture.sources, key=lambda source: -source.weight)
    tokens = mixture.loss_tokens_are
    # The spread of one run's iterates is no uncertainty, and is not written as one.
    spread = "±" if mixture.seeds else "moved"
    moved = mixture.has_spread
    weights = mixture.rounded("loss_tokens")
    places = default_decimals(len(heaviest))
    columns = {
        "source": [source.name for source in heaviest],
        "initial weight": [f"{source.initial_weight:.{places}f}" for source in heaviest],
        "learned weight": [weights[source.name] for source in heaviest],
        **({spread: [f"{_spread(mixture, s):.{places}f}" for s in heaviest]} if moved else {}),
        tokens: [f"{source.size.loss_tokens:,}" for source in heaviest],
        "epochs": [f"{epochs[source.name]:.2f}" for source in heaviest],
    }
    if mixture.answer_only:
        drawn = mixture.rounded("samples")
        columns["rows"] = [f"{source.size.rows:,}" for source in heaviest]
        columns[mixture.share_drawn] = [drawn[source.name] for source in heaviest]
    if any(source.advantage is not None for source in heaviest):
        columns["advantage"] = [advantage_text(source) for source in heaviest]
    what = mixture.spread_is
    if spread == "±":
        what = f"the standard error over {len(mixture.seeds)} seeds, which the weight averages"
    lines = [
        align(list(columns), list(zip(*columns.values(), strict=True))),
        "",
        *([_group_table(mixture, spread if moved else None), ""] if mixture.groups else []),
        f"Weights are {mixture.weights_are}{f'; {spread} is {what}' if moved else ''}. "
        f"Epochs are those in {mixture.token_budget:,} {tokens}.",
    ]
    if mixture.answer_only:
        lines.append(mixture.shares_drawn_are)
    if mixture.optimality is not None:
        lines.append(mixture.optimality.text)
    repeated = repetition_note(mixture)
    if repeated:
        lines.append(repeated)
    if not mixture.complete:
        lines.append(f"The run is not finished: {mixture.steps} optimizer steps are done.")
    for target in mixture.targets:
        if target.initial_loss is not None and target.final_loss is not None:
            lines.append(
                f"Loss on target {target.name}: {target.initial_loss:.4f} at the first outer step, "
                f"{target.final_loss:.4f} at the last."
            )
    flags = megatron_flags(mixture, blend_txt=blend_txt, blend_json=blend_json)
    if flags and not mixture.answer_only:  # its pretraining reads no loss mask
        if blend_txt is None:
            lines.append("No blend.txt: --data-args-path cannot express a path with white space.")
        lines += ["", "Train with Megatron, one of:", *(f"  {flag}" for flag in flags)]
    return "\n".join(lines)


def _group_table(mixture: LearnedMixture, spread: str | None) -> str:
    """The groups, heaviest first."""
    weights = mixture.group_weights(mixture.members)
    started = mixture.group_weights(mixture.members, "initial_weight")
    scale = len(mixture.seeds) ** 0.5 if len(mixture.seeds) > 1 else 1.0
    heaviest = sorted(mixture.groups, key=lambda group: -weights[group.name])
    columns = {
        "group": [group.name for group in heaviest],
        "sources": [str(len(group.sources)) for group in heaviest],
        "initial weight": [f"{started[group.name]:.4f}" for group in heaviest],
        "learned weight": [f"{weights[group.name]:.4f}" for group in heaviest],
    }
    if spread is not None:
        columns[spread] = [f"{group.weight_std / scale:.4f}" for group in heaviest]
    if any(group.advantage is not None for group in heaviest):
        columns["advantage"] = [advantage_text(group) for group in heaviest]
    return align(list(columns), list(zip(*columns.values(), strict=True)))


def advantage_text(source: LearnedSource | LearnedGroup) -> str:
    """The advantage and its standard error; empty where they are not known."""
    if source.advantage is None or source.advantage_standard_error is None:
        return ""
    return f"{source.advantage:+.1e} ± {source.advantage_standard_error:.0e}"


def _spread(mixture: LearnedMixture, source: LearnedSource) -> float:
    error = mixture.standard_error(source)
    return source.weight_std if error is None else error


def megatron_flags(
    mixture: LearnedMixture, *, blend_txt: str | Path | None, blend_json: str | Path | None
) -> list[str]:
    """One shell-quoted flag string for each blend file that is given."""
    shared = data_flags(mixture)
    blends = (("--data-args-path", blend_txt), ("--per-split-data-args-path", blend_json))
    return [shlex.join([flag, str(path), *shared]) for flag, path in blends if path is not None]


def data_flags(mixture: LearnedMixture) -> list[str]:
    """Megatron's flags for the samples and the tokenizer of the search."""
    flags = ["--seq-length", str(mixture.seq_length)]
    tokenizer = mixture.config.get("tokenizer", {})
    keys = ["tokenizer_type", "tokenizer_model", "vocab_file", "merge_file", "vocab_size"]
    if tokenizer.get("tokenizer_type") == "TikTokenizer":
        keys += ["tiktoken_pattern", "tiktoken_num_special_tokens", "tiktoken_special_tokens"]
    for key in keys:
        value = tokenizer.get(key)
        if value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            flags += ["--" + key.replace("_", "-"), *map(str, values)]
    data = mixture.config.get("data", {})
    masks = ("eod_mask_loss", "reset_position_ids", "reset_attention_mask")
    return flags + ["--" + key.replace("_", "-") for key in masks if data.get(key)]
