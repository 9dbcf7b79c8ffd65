"""The table of a scenario's methods, and its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from megatron_fastmix.lab.baselines.registry import FASTMIX
from megatron_fastmix.lab.comparison.method_lines import (
    MethodLine,
    behind,
    beyond_error,
    closed,
    equal_lengths,
    judge,
    training_ratio,
)
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.text_table import align

GAP_REACH = 0.9
"""Share of the gap from uniform to the best known mixture that FastMix is to close."""
COST_REACH = {"regmix": 50.0}
"""How many times FastMix's training FLOPs a method's trainings are to cost at least, where each of
its proxies is as long as FastMix's one."""
JUDGE_REACH = 0.2
"""Spread of target models under one mixture that a comparison allows, as a share of the gap from
uniform to the best."""


def text(lines: Sequence[MethodLine], against: str = FASTMIX) -> str:
    """The table of a scenario, below what its judge is worth. Differences and costs are those from
    the method or variant `against`."""
    ours = next((line for line in lines if line.method == against), None)
    shown = []
    for line in lines:
        share = closed(line, lines)
        heaviest = sorted(line.weights.items(), key=lambda item: -item[1])[:3]
        shown.append(
            [
                line.method,
                f"{line.loss:.4f}",
                "" if line.deviation is None else f"± {line.deviation:.4f}",
                str(len(line.losses)),
                "" if share is None else f"{share:.0%}",
                *_behind(line, ours),
                *_costs(line, ours),
                _seeds_apart(line),
                ", ".join(f"{name} {weight:.2f}" for name, weight in heaviest),
            ]
        )
    name = "FastMix" if against == FASTMIX else against
    header = ["method", "loss", "sd", "seeds", "gap closed", f"behind {name}", "se", "beyond it"]
    header += ["training x", "all FLOPs x", "wall x", "seeds apart", "mean"]
    table = align(header, shown, left=(0, 7, len(header) - 1))
    legend = (
        f"gap closed: of the largest gain over uniform; a method's is {FASTMIX}'s less what it is "
        "behind it.\n"
        f"behind {name}: mean of the differences seed by seed and its standard error; beyond it: "
        f"outside the 95 % interval\nby Student's t. Costs of a search over {name}'s: FLOPs of its "
        "trainings alone, of everything, wall time, at whatever load\neach row was made. Seeds "
        "apart: the share of the mixture that two seeds have on other sources."
    )
    return "\n".join([*_judge_line(lines), table, legend])


def _judge_line(lines: Sequence[MethodLine]) -> list[str]:
    found = judge(lines)
    if found is None:
        return []
    spread, share = found
    said = f"target models under the uniform mixture: sd {spread:.4f} over seeds"
    if share is None:
        return [f"{said}; none is better"]
    fine = "" if share < JUDGE_REACH else f", more than the {JUDGE_REACH:g} that tells them apart"
    return [f"{said}, {share:.2f} of the gap from uniform to the best{fine}"]


def _behind(line: MethodLine, ours: MethodLine | None) -> tuple[str, str, str]:
    if ours is None or line is ours:
        return "", "", ""
    difference, error = behind(line, ours)
    if error is None:
        return f"{difference:+.4f}", "", ""
    mark = "no" if not beyond_error(line, ours) else "worse" if difference > 0 else "better"
    return f"{difference:+.4f}", f"± {error:.4f}", mark


def _seeds_apart(line: MethodLine) -> str:
    distances = line.distances(line) if line.flops else []
    return f"{fmean(distances):.3f}" if distances else ""


def _costs(line: MethodLine, ours: MethodLine | None) -> tuple[str, str, str]:
    if ours is None or not ours.flops:  # what costs nothing is no unit
        return "", "", ""
    training = training_ratio(line, ours)
    return (
        "" if training is None else f"{training:.3g}",
        f"{line.flops / ours.flops:.3g}",
        f"{line.seconds / ours.seconds:.3g}",
    )


def measurements(
    scenario: str, lines: Sequence[MethodLine], against: str = FASTMIX
) -> list[Measurement]:
    """The scenario's measurements with what FastMix, or its variant `against`, is to reach."""
    found = [row for line in lines for row in _loss_rows(f"{scenario}: {line.method}", line)]
    ours = {line.method: line for line in lines}.get(against)
    if ours is None:
        return found
    if ours.deviation:
        found.append(
            Measurement(
                figure=f"{scenario}: {against} behind the best",
                value=max(0.0, *(-behind(line, ours)[0] for line in lines)) / ours.deviation,
                reach=1.0,
                unit=f"sd of {against}",
            )
        )
    found += _judged(scenario, lines)
    share = closed(ours, lines)
    if share is not None:
        found.append(
            Measurement(
                figure=f"{scenario}: gap from uniform to the best that {against} closes",
                value=share,
                reach=GAP_REACH,
                better="higher",
                unit="ratio",
            )
        )
    for line in lines:
        if line is ours:
            continue
        difference, error = behind(line, ours)
        if error is not None:
            what = f"{scenario}: {line.method} behind {against}, seed by seed"
            found += difference_rows(what, difference, error)
        if line.flops and ours.flops:
            found += _cost_rows(scenario, line, ours)
    return found


def _loss_rows(what: str, line: MethodLine) -> list[Measurement]:
    return [
        Measurement(figure=f"{what}, target loss", value=line.loss, unit="nats per token"),
        Measurement(
            figure=f"{what}, target loss, standard deviation over seeds",
            value=line.deviation,
            unit="nats per token",
        ),
        Measurement(figure=f"{what}, seeds", value=len(line.losses), better="higher", unit="seeds"),
    ]


def difference_rows(what: str, difference: float, error: float) -> list[Measurement]:
    """By how much another method is behind, and the standard error of that."""
    unit = "nats per token"
    return [
        Measurement(figure=what, value=difference, better="higher", unit=unit),
        Measurement(figure=f"{what}, standard error", value=error, unit=unit),
    ]


def _judged(scenario: str, lines: Sequence[MethodLine]) -> list[Measurement]:
    found = judge(lines)
    if found is None:
        return []
    spread, share = found
    what = f"{scenario}: spread of uniform's target models over seeds"
    return [
        Measurement(figure=what, value=spread, unit="nats per token"),
        Measurement(
            figure=f"{what} / gap from uniform to the best",
            value=share,
            reach=JUDGE_REACH,
            unit="ratio",
        ),
    ]


def _cost_rows(scenario: str, line: MethodLine, ours: MethodLine) -> list[Measurement]:
    return [
        Measurement(
            figure=f"{scenario}: search training FLOPs, {line.method} / {ours.method}",
            value=training_ratio(line, ours),
            reach=COST_REACH.get(line.method) if equal_lengths(line, ours) else None,
            better="higher",
            unit="ratio",
        ),
        Measurement(
            figure=f"{scenario}: search FLOPs, {line.method} / {ours.method}",
            value=line.flops / ours.flops,
            better="higher",
            unit="ratio",
        ),
        Measurement(
            figure=f"{scenario}: search wall time, {line.method} / {ours.method}",
            value=line.seconds / ours.seconds,
            better="higher",
            unit="ratio",
        ),
    ]
