"""The report's first screen, without its markup: which mixture, what it gains, how sure it is, what
it cost, and what to type next."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_fastmix.export.capped import capped_mixture, read_often, repetition_note
from megatron_fastmix.mixture.optimality import CLEAR, at_bounds
from megatron_fastmix.report.charts import MANY
from megatron_fastmix.report.commands import Command, next_commands
from megatron_fastmix.report.durations import duration
from megatron_fastmix.report.gains import GainRow, compare_gains
from megatron_fastmix.report.name_groups import groups_of
from megatron_fastmix.report.number_texts import amount, decimals, share
from megatron_fastmix.report.run_record import RunRecord, run_folder
from megatron_fastmix.report.scale import ticks
from megatron_fastmix.report.summary import advantage_text
from megatron_fastmix.result.learned_mixture import MANY_EPOCHS, LearnedMixture

LEVELS = {
    "good": "Sure, as far as one can tell from the run.",
    "fair": "Usable, with reservations.",
    "poor": "Not to be relied on yet.",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A source of the table."""

    name: str
    group: str
    weight: str
    spread: str
    capped: str
    share_drawn: str
    start: str
    train: str
    size: str
    epochs: str
    many: bool
    """Read more than `MANY_EPOCHS` times."""
    advantage: str
    """With its standard error; empty where it is not known."""
    pull: str
    """`gain` or `lose` where the advantage is clear of 0 and no bound holds the weight, which says
    that it is not where it is going; else empty."""
    bar: tuple[float, float, float, float]
    """Weight, lower and upper end of its spread, and start, in parts of the scale."""


@dataclass(frozen=True, kw_only=True)
class FirstScreen:
    """What the template shows of one search, or of repeats of it."""

    heading: str
    lead: str
    rows: list[Row]
    """Heaviest first."""
    lighter: list[tuple[list[str], list[str]]]
    """Of very many sources those that are no rows at first: what the script needs of each row, as
    `Row` has it (group, pull, many, move), and the texts of its cells. The page makes rows of them
    when somebody searches."""
    has_advantages: bool
    """Whether the advantage of any source is known."""
    scale: list[tuple[str, float]]
    """Marks of the bars' scale: text, and place in parts of it."""
    groups: list[tuple[str, int, str]]
    """Groups of sources by the first word of their names: name, sources, sum of their weights."""
    notes: list[str]
    gains: list[GainRow]
    gain_notes: list[str]
    commands: list[Command]
    answer_only: bool
    share_drawn: str
    """Heading of the column of that name, where there are answer-only rows."""
    tokens_are: str
    seeds: int


def first_screen(
    runs: Sequence[RunRecord],
    found: LearnedMixture,
    *,
    against: Mapping[str, Mapping[str, float]],
    path_map: Mapping[str, str],
) -> FirstScreen:
    """The result of `runs`, repeats of one search.

    Args:
        against: further mixtures to compare with, weights by source, by name.
        path_map: see `next_commands`.
    """
    capped = capped_mixture(found) if read_often(found) else None
    rows, scale = _rows(found, capped, _pulls(found, runs[0]))
    advantages = any(row.advantage for row in rows)
    what = "to use" if found.complete else f"so far, at step {found.steps:,}"
    seeds = f", the average of {len(found.seeds)} seeds" if found.seeds else ""
    gains, gain_notes = compare_gains(runs, found, against)
    groups = groups_of(found)
    sums = found.group_weights(groups)
    listed, answer_only = (len(rows) if len(rows) <= MANY else MANY), found.answer_only
    return FirstScreen(
        heading=f"The mixture {what}{seeds}",
        lead=_lead(found, rows),
        rows=rows[:listed],
        lighter=[_light(row, answer_only, rows[0], advantages) for row in rows[listed:]],
        has_advantages=advantages,
        scale=scale,
        groups=[
            (group, len(groups[group]), f"{sums[group]:.3f}")
            for group in sorted(groups, key=lambda group: -sums[group])
        ],
        notes=_notes(found),
        gains=gains,
        gain_notes=gain_notes,
        commands=next_commands(run_folder(runs), found, path_map),
        answer_only=answer_only,
        share_drawn=found.share_drawn,
        tokens_are=found.loss_tokens_are,
        seeds=len(found.seeds),
    )


def _rows(
    found: LearnedMixture, capped: LearnedMixture | None, pulls: Mapping[str, str]
) -> tuple[list[Row], list[tuple[str, float]]]:
    sources = sorted(found.sources, key=lambda source: -source.weight)
    errors = {s.name: found.standard_error(s) for s in sources}
    spreads = {
        s.name: float((s.weight_std if errors[s.name] is None else errors[s.name]) or 0.0)
        for s in sources
    }
    places = decimals(spreads.values())
    top = min(1.0, max(max(s.weight + spreads[s.name], s.initial_weight) for s in sources))
    marks = [mark for mark in ticks(0.0, top, 3) if mark <= top]
    limited = {} if capped is None else capped.weights
    shares_drawn = found.rounded("samples") if found.answer_only else {}
    owner = {name: group for group, names in groups_of(found).items() for name in names}
    epochs_of = found.epochs
    rows = []
    for source in sources:
        weight, spread = source.weight, spreads[source.name]
        epochs = epochs_of[source.name]
        rows.append(
            Row(
                name=source.name,
                group=owner.get(source.name, ""),
                weight=share(weight, places),
                spread=f"{spreads[source.name]:.{places}f}",
                capped=share(limited[source.name], places) if limited else "",
                share_drawn=shares_drawn.get(source.name, ""),
                start=f"{source.initial_weight:.{places}f}",
                train=amount(weight * found.token_budget),
                size=amount(source.size.loss_tokens),
                epochs=f"{epochs:.3g}",
                many=epochs > MANY_EPOCHS,
                advantage=advantage_text(source),
                pull=pulls[source.name],
                bar=(
                    weight / top,
                    max(0.0, weight - spread) / top,
                    min(top, weight + spread) / top,
                    source.initial_weight / top,
                ),
            )
        )
    return rows, [(f"{mark:g}", mark / top) for mark in marks]


def _light(
    row: Row, answer_only: bool, first: Row, advantages: bool
) -> tuple[list[str], list[str]]:
    """As the template lays out the cells of a row; the bar would be too short to be seen."""
    arrow = {"gain": "↑", "lose": "↓"}.get(row.pull, "")
    cells = [row.name, row.weight, row.spread]
    cells += [row.capped] if first.capped else []
    cells += [row.share_drawn] if answer_only else []
    cells += [""]
    cells += [f"{row.advantage or '–'} {arrow}"] if advantages else []
    cells += [row.start, row.train, row.size, row.epochs]
    move = "up" if row.bar[0] > row.bar[3] else "down"
    return [row.group, row.pull, str(row.many).lower(), move], cells


def _pulls(found: LearnedMixture, run: RunRecord) -> dict[str, str]:
    """Of each source, as `Row.pull`; its bounds are those of `run`."""
    bounds = dict(zip(run.sources, zip(*run.bounds(), strict=True), strict=True))
    least, most = zip(*(bounds[source.name] for source in found.sources), strict=True)
    at_least, at_most = at_bounds([source.weight for source in found.sources], least, most)
    pulls = dict.fromkeys(bounds, "")
    for k, source in enumerate(found.sources):
        value, error = source.advantage, source.advantage_standard_error
        if value is None or error is None or abs(value) <= CLEAR * error:
            continue
        if not (at_most if value > 0 else at_least)[k]:
            pulls[source.name] = "gain" if value > 0 else "lose"
    return pulls


def _lead(found: LearnedMixture, rows: Sequence[Row]) -> str:
    named = [f"{row.name} {row.weight}" for row in rows[:3]]
    if len(rows) > 3:
        named.append(f"{len(rows) - 3} more")
    return f"{', '.join(named[:-1])} and {named[-1]}" if len(named) > 1 else named[0]


def _notes(found: LearnedMixture) -> list[str]:
    tokens = found.loss_tokens_are
    counted = f" {found.shares_drawn_are}" if found.answer_only else ""
    spread = (
        f"± is the standard error over {len(found.seeds)} seeds"
        if found.seeds
        else f"“moved” is {found.spread_is}: how far the weights wandered, not how sure they are"
    )
    notes = [
        f"Weights are {found.weights_are}.{counted} {tokens[0].upper()}{tokens[1:]} and epochs are "
        f"those of a run of {amount(found.token_budget)} {tokens}. {spread[0].upper()}{spread[1:]} "
        "(the thin line on a bar); the orange mark is the weight at the start."
    ]
    if any(source.advantage is not None for source in found.sources):
        notes.append(
            "Advantage: how much more than the sources inside their bounds, by their weights, a "
            "step on this one lowers the target loss, mean and standard error of the averaged part"
            f"{', of the seed where it is clearest' if found.seeds else ''}. At an optimum it is 0 "
            "inside the bounds and negative at weight 0; ↑ and ↓ are beyond "
            f"{CLEAR:g} standard errors, where no bound holds the weight."
        )
    repeated = repetition_note(found)
    return [*notes, repeated] if repeated else notes


def cost_facts(runs: Sequence[RunRecord]) -> dict[str, str]:
    """What the runs cost together."""
    seconds = math.fsum(value for run in runs for value in run.seconds.values())
    tokens = sum(run.trained_tokens or 0 for run in runs)
    flops = [run.training_flops for run in runs if run.training_flops is not None]
    facts = {}
    if seconds:
        outer = math.fsum(run.seconds.get("outer", 0.0) for run in runs)
        facts["time"] = duration(seconds)
        facts["for the mixture"] = f"{outer / seconds:.0%} of it"
    if tokens:
        facts["proxy's tokens"] = amount(tokens)
    if len(flops) == len(runs):
        facts["FLOPs, outer steps included"] = f"{math.fsum(flops):.2g}"
    return facts


def setting_facts(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Which search it was: date, seed, targets, proxy, n1 and versions, as far as it is known."""
    run = runs[0]
    config: dict[str, Any] = run.config
    facts = {}
    if run.began is not None:
        facts["date"] = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.began))
    seeds = [str(each.seed) for each in runs if each.seed is not None]
    if seeds:
        facts["seed" if len(seeds) == 1 else "seeds"] = ", ".join(seeds)
    if run.targets:
        facts["target" if len(run.targets) == 1 else "targets"] = ", ".join(run.targets)
    if proxy := _proxy(run):
        facts["proxy"] = proxy
    if "inner_steps" in config.get("mixture", {}):
        facts["n1"] = f"{config['mixture']['inner_steps']} optimizer steps per outer step"
    if run.mixture is not None:
        facts["versions"] = ", ".join(f"{k} {v}" for k, v in run.mixture.versions.items())
    return facts


def _proxy(run: RunRecord) -> str:
    proxy = run.config.get("proxy", {})
    texts = []
    if run.parameters is not None:
        texts.append(f"{amount(run.parameters)} parameters")
    if proxy.get("path"):
        texts.append(str(proxy["path"]))
    elif "num_layers" in proxy:
        texts.append(f"{proxy['num_layers']} × {proxy.get('hidden_size')} (layers × width)")
    return ", ".join(texts)


def target_losses(runs: Sequence[RunRecord]) -> list[tuple[str, str, str]]:
    """Name, first and last loss of the proxy on each target, nats per token."""
    rows = []
    for run in runs:
        for target in run.targets:
            losses = run.by_name("outer", "target_loss", target)
            if losses:
                name = f"{run.name}: {target}" if len(runs) > 1 else target
                rows.append((name, f"{losses[0][1]:.3f}", f"{losses[-1][1]:.3f}"))
    return rows
