"""The last thing that a search prints: what was learned, and how to train with it."""

from __future__ import annotations

import shlex
from pathlib import Path

from megatron_fastmix.result.mixture_file import ANSWER_UNIT, MixtureFile
from megatron_fastmix.text_table import align

MANY_EPOCHS = 4
"""Up to so many, repeated text is about as good as fresh (Muennighoff et al., NeurIPS 2023)."""


def final_table(
    mixture: MixtureFile, *, blend_txt: str | Path | None, blend_json: str | Path | None
) -> str:
    """The table of sources, heaviest first, and the Megatron flags to use next.

    A blend path that is None is not mentioned.
    """
    rows = [
        (
            source.name,
            f"{source.initial_weight:.4f}",
            f"{source.weight:.4f} ± {source.weight_std:.4f}",
            f"{source.tokens:,}",
            f"{source.epochs:.2f}",
        )
        for source in sorted(mixture.sources, key=lambda source: -source.weight)
    ]
    table = align(("source", "initial weight", "learned weight", "tokens", "epochs"), rows)
    lines = [
        table,
        "",
        f"Weights are {_unit(mixture)}; ± is {_spread(mixture)}. "
        f"Epochs are those in {mixture.token_budget:,} tokens.",
    ]
    many = [source.name for source in mixture.sources if source.epochs > MANY_EPOCHS]
    if many:
        lines.append(
            f"More than {MANY_EPOCHS} epochs: {', '.join(many)}. The search does not see what "
            f"repetition costs; tools/convert_weights.py --max-epochs {MANY_EPOCHS} limits it."
        )
    if not mixture.complete:
        lines.append(f"The run is not finished: {mixture.steps} optimizer steps are done.")
    for target in mixture.targets:
        if target.initial_loss is not None and target.final_loss is not None:
            lines.append(
                f"Loss on target {target.name}: {target.initial_loss:.4f} at the first outer step, "
                f"{target.final_loss:.4f} at the last."
            )
    flags = megatron_flags(mixture, blend_txt=blend_txt, blend_json=blend_json)
    if flags:
        lines += ["", "Train with Megatron, one of:", *(f"  {flag}" for flag in flags)]
    return "\n".join(lines)


def _unit(mixture: MixtureFile) -> str:
    if mixture.unit == ANSWER_UNIT:
        rows = ", ".join(f"{s.name} {s.row_weight:.4f}" for s in mixture.sources)
        return f"shares of answer tokens (as shares of rows: {rows})"
    return f"shares of samples of {mixture.seq_length} tokens"


def _spread(mixture: MixtureFile) -> str:
    if mixture.seeds:
        return f"the standard deviation over {len(mixture.seeds)} seeds, which the weight averages"
    return (
        f"the spread over the last {mixture.averaged_outer_steps} of {mixture.outer_steps} outer "
        "steps, which the learned weight averages"
    )


def megatron_flags(
    mixture: MixtureFile, *, blend_txt: str | Path | None, blend_json: str | Path | None
) -> list[str]:
    """One shell-quoted flag string for each blend file that is given."""
    shared = ["--seq-length", str(mixture.seq_length)]
    tokenizer = mixture.config.get("tokenizer", {})
    for key in ("tokenizer_type", "tokenizer_model"):
        if tokenizer.get(key):
            shared += ["--" + key.replace("_", "-"), str(tokenizer[key])]
    blends = (("--data-args-path", blend_txt), ("--per-split-data-args-path", blend_json))
    return [shlex.join([flag, str(path), *shared]) for flag, path in blends if path is not None]
