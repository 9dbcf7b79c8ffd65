"""What the learned mixture gains over others: predicted from the search, and measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_fastmix.report.measured_gain import Measurements
from megatron_fastmix.report.number_texts import with_error
from megatron_fastmix.report.predicted_gain import Gain, Prediction, predict
from megatron_fastmix.report.run_record import RunRecord, run_folder
from megatron_fastmix.result.learned_mixture import LearnedMixture


@dataclass(frozen=True, kw_only=True)
class GainRow:
    """The learned mixture against another."""

    over: str
    predicted: str
    measured: str


def compare_gains(
    runs: Sequence[RunRecord],
    found: LearnedMixture,
    against: Mapping[str, Mapping[str, float]],
) -> tuple[list[GainRow], list[str]]:
    """Gains over uniform, proportional, the blend that the search started from and `against`, with
    what must be known to read them."""
    others: dict[str, Mapping[str, float]] = {
        "uniform": found.uniform,
        "proportional to size": found.proportional,
    }
    start = found.initial
    if any(abs(start[name] - 1 / len(start)) > 1e-6 for name in start):
        others["the blend at the start"] = start
    others |= against
    folder = run_folder(runs)
    measurements = None if folder is None else Measurements(folder)
    rows, predictions, measured = [], [], []
    for name, weights in others.items():
        prediction = predict(runs, found.weights, weights)
        trained = None if measurements is None else measurements.gain(found, weights)
        if prediction is not None or trained is not None:
            rows.append(
                GainRow(over=name, predicted=_gain_text(prediction), measured=_gain_text(trained))
            )
        predictions += [prediction] if prediction is not None else []
        measured += [trained] if trained is not None else []
    return rows, _gain_notes(runs, predictions, measured)


def _gain_text(gain: Gain | None) -> str:
    if gain is None:
        return "–"
    unsure = "" if gain.clear or gain.error is None else " (not told from 0)"
    return with_error(gain.value, gain.error) + unsure


def _gain_notes(
    runs: Sequence[RunRecord], predictions: Sequence[Prediction], measured: Sequence[Gain]
) -> list[str]:
    notes = []
    if predictions:
        first = predictions[0]
        over_seeds = first.seeds > 1
        error = (
            f"± is the standard error over {first.seeds} seeds"
            if over_seeds
            else "± is the standard error of the products, not of another seed"
        )
        notes.append(
            "Predicted to first order from the logged products: by how many nats per token the "
            f"target loss would be lower after the {first.steps:,} optimizer steps of the search, "
            f"each taken on this mixture rather than on the other; {error}. What such steps add up "
            "to is left out: near the optimum a step is worth the same on either mixture."
        )
        beta = runs[0].config.get("objective", {}).get("train_loss_weight")
        if beta:
            notes.append(
                f"The target loss is here the whole objective, with {beta:g} times the training "
                "loss (objective.train_loss_weight)."
            )
        config = runs[0].config.get("hypergradient", {})
        if config.get("preconditioner", "none") == "none":
            notes.append(
                "The products are of plain gradients: the proxy's AdamW steps are larger, so read "
                "signs and ratios, not sizes (hypergradient.preconditioner: adam has the scale)."
            )
    if measured:
        notes.append(
            "Measured: target models trained on both, nats per token on the test; ± is the "
            "standard error over their seeds."
        )
    elif predictions:
        notes.append(
            "Measured appears once a comparison lies in the run folder (compare-mixtures "
            "--output RUN/comparison)."
        )
    return notes
