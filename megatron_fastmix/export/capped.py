"""The learned mixture with no source read more often than repetition is known to be worth."""

from __future__ import annotations

from megatron_fastmix.errors import FastMixError
from megatron_fastmix.export.adjustment import Adjustment
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.result.learned_mixture import MANY_EPOCHS, LearnedMixture
from megatron_fastmix.text_list import listed


def read_often(mixture: LearnedMixture) -> list[str]:
    """Sources that are read more than `MANY_EPOCHS` times in the token budget, most often first."""
    epochs = mixture.epochs
    many = [name for name in epochs if epochs[name] > MANY_EPOCHS]
    return sorted(many, key=lambda name: -epochs[name])


def capped_mixture(mixture: LearnedMixture) -> LearnedMixture | None:
    """The mixture with each source at `MANY_EPOCHS` at most, as `export --max-epochs` makes it.

    None where no mixture of the sources in use holds the budget so, or none that is rounded.
    """
    adjustment = Adjustment(fixed={}, groups={}, max_epochs=MANY_EPOCHS)
    try:
        return make_blend(mixture, adjustment=adjustment).mixture
    except FastMixError:
        return None


def repetition_note(mixture: LearnedMixture) -> str | None:
    """What to know of the sources that are read too often; None where there are none."""
    many = read_often(mixture)
    if not many:
        return None
    named = listed(many, 3)
    worst = mixture.epochs[many[0]]
    return (
        f"Read more than {MANY_EPOCHS} times: {named} (up to {worst:,.3g} times). "
        f"{mixture.repetition_is} {remedy(capped_mixture(mixture))}"
    )


def remedy(capped: LearnedMixture | None) -> str:
    """What helps against repetition, `capped` being what `capped_mixture` finds."""
    if capped is None:
        return (
            f"No mixture of the sources in use has enough tokens at {MANY_EPOCHS} epochs each: "
            "add text, or lower the token budget."
        )
    return (
        f"megatron-fastmix export --max-epochs {MANY_EPOCHS} holds them there and shares the "
        "excess among the others."
    )
