"""What is said beside an export: changes, caps, what was left out, and how sure the weights are."""

from __future__ import annotations

from megatron_fastmix.export.blend import Blend
from megatron_fastmix.export.capped import capped_mixture, remedy
from megatron_fastmix.result.learned_mixture import MANY_EPOCHS, LearnedMixture
from megatron_fastmix.result.rounding import round_weights
from megatron_fastmix.text_table import align

SLACK = 1e-3
"""A source held at the limit is over it by what rounding of the shares makes."""
SHARES_OF = {
    "loss_tokens": "answer tokens",
    "tokens": "all tokens, questions' and answers'",
    "rows": "rows",
    "samples": "rows",
}
"""What a blend of answer-only rows counts, by its unit."""
MIXED_SHARES_OF = {
    "loss_tokens": "loss tokens",
    "tokens": "all tokens, those outside the loss too",
    "rows": "rows, of text documents",
    "samples": "samples: --seq-length tokens of text, one row of answer-only sources",
}
"""The same of a blend of text and answer-only rows."""


def notes(mixture: LearnedMixture, blend: Blend) -> list[str]:
    """One text for each thing that the user must know about this export."""
    found = []
    warning = indistinct_from_uniform(mixture) if mixture.has_spread else None
    if warning:
        found.append(f"warning: {warning}")
    if blend.unit == "samples" and mixture.answer_only:
        found.append(
            "note: of answer-only sources the weights count rows, for a tool that draws rows and "
            "knows their answers, such as Megatron-LM with --sft; its pretraining draws samples of "
            "--seq-length tokens and would learn the questions, too"
        )
    if blend.dropped:
        found.append(f"dropped by --min-weight: {', '.join(blend.dropped)}")
    if blend.capped:
        found.append(
            f"held at --max-epochs: {', '.join(blend.capped)}; the others share the excess"
        )
    often = _read_often(blend)
    if often:
        found.append(often)
    rounded = [name for name in blend.left_out if name not in blend.dropped]
    if rounded:
        found.append(
            f"left out, because the weight rounds to 0 at {blend.decimals} decimals: "
            + ", ".join(rounded)
        )
    return found


def _read_often(blend: Blend) -> str | None:
    """A remark where the run to come would read a source more often than is known to help."""
    epochs = blend.mixture.epochs_at(blend.unit, blend.shares)
    many = {name: e for name, e in epochs.items() if e > MANY_EPOCHS * (1 + SLACK)}
    if not many:
        return None
    worst = sorted(many, key=lambda name: -many[name])[:5]
    named = ", ".join(f"{name} {many[name]:.3g}" for name in worst)
    more = f" and {len(many) - 5} more" if len(many) > 5 else ""
    return (
        f"more than {MANY_EPOCHS} epochs in {blend.mixture.token_budget:,} "
        f"{blend.mixture.loss_tokens_are}: {named}{more}. "
        f"{blend.mixture.repetition_is} {remedy(capped_mixture(blend.mixture))}"
    )


def change_table(mixture: LearnedMixture, blend: Blend) -> str:
    """Learned and exported share of what the blend counts, their difference, and the epochs of the
    exported ones in the budget, heaviest first."""
    rounded = round_weights(mixture.shares(blend.unit), blend.decimals)
    learned, exported = {name: float(text) for name, text in rounded.items()}, blend.shares
    epochs = blend.mixture.epochs_at(blend.unit, exported)
    rows = [
        (
            name,
            f"{learned[name]:.4f}",
            f"{exported[name]:.4f}",
            f"{round(exported[name] - learned[name], 4) + 0.0:+.4f}",  # never -0.0000
            f"{size.loss_tokens:,}",
            f"{epochs[name]:.2f}",
        )
        for name, size in sorted(mixture.sizes.items(), key=lambda item: -exported[item[0]])
    ]
    tokens = mixture.loss_tokens_are
    table = align(("source", "learned", "exported", "change", tokens, "epochs"), rows)
    counted = SHARES_OF[blend.unit] if mixture.answer_only or blend.unit == "rows" else "tokens"
    if mixture.mixed:
        counted = MIXED_SHARES_OF[blend.unit]
    return (
        f"{table}\n\nLearned and exported are shares of {counted}. "
        f"Epochs are those in {blend.mixture.token_budget:,} {tokens}."
    )


def indistinct_from_uniform(mixture: LearnedMixture) -> str | None:
    """A warning where the weights' spread is as large as their distance from uniform; None where
    the distance is larger, and for a single source, which has nothing to differ from."""
    distance, spread = mixture.from_uniform()
    if distance > spread or len(mixture.sources) == 1:
        return None
    return (
        f"the weights differ from uniform by {distance:.4f} (root mean square over the sources), "
        f"which their spread of {spread:.4f} swamps: this search does not tell the mixture from a "
        "uniform one; search longer, with more samples in the probe, or average several seeds"
    )
