"""What to type next, with paths that hold wherever it is typed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.capped import capped_mixture, read_often
from megatron_fastmix.export.megatron import command_line
from megatron_fastmix.export.paths import mapped, not_here, tokenizer_not_here
from megatron_fastmix.report.summary import data_flags
from megatron_fastmix.result.learned_mixture import MANY_EPOCHS, LearnedMixture
from megatron_fastmix.run.folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command, or the flags of one."""

    title: str
    text: str


def next_commands(
    folder: Path | None, mixture: LearnedMixture, path_map: Mapping[str, str]
) -> list[Command]:
    """Commands for the result in `folder`, or for one that lies in none. Paths are absolute, with
    the beginnings that are keys of `path_map` replaced by their values, for the machine that
    trains; where relative ones are not here, that is said in place of Megatron's flags."""
    commands = []
    lost = not_here(mixture) or tokenizer_not_here(mixture)
    if lost and folder is not None and not mixture.answer_only:
        # An absolute path from here would be a wrong one.
        commands.append(
            Command(
                title=f"Train with Megatron: paths such as {lost} are relative to the folder that "
                "the search ran in, and not here; there, this writes the page with the command",
                text=f"megatron-fastmix report {shlex.quote(str(folder.resolve()))}",
            )
        )
    elif not lost and not mixture.answer_only:
        try:
            there = mapped(mixture, path_map)
            flags = command_line(make_blend(there)).rstrip()
            text = f"{flags} {shlex.join(data_flags(there))}"
            commands.append(Command(title="Train with Megatron", text=text))
        except DataError:  # a path that Megatron cannot be told
            pass
    if folder is None:
        return commands
    place = shlex.quote(str(folder.resolve()))
    config = shlex.quote(str(RunFolder(folder.resolve()).config))
    allowed = "" if mixture.complete else " --allow-partial"
    if not mixture.complete and not mixture.seeds:
        # A relative run_dir, or that of a folder which was moved, would be another search's.
        run_dir = Path(mixture.config.get("run_dir", folder.resolve()))
        its_own = run_dir.is_absolute() and run_dir.resolve() == folder.resolve()
        commands.insert(
            0,
            Command(
                title="Go on with the search, where it is stopped",
                text=f"megatron-fastmix search --config {config}"
                + ("" if its_own else f" --run-dir {place}"),
            ),
        )
    if mixture.answer_only:
        # Megatron-LM's pretraining reads no loss mask, so its flags would train on the questions.
        commands.append(
            Command(
                title="Fine-tune with a tool that reads a loss mask, such as Megatron-Bridge",
                text=f"megatron-fastmix export {place}{allowed} --format megatron-bridge-sources",
            )
        )
    commands.append(
        Command(title="Other tools", text=f"megatron-fastmix export {place} --format list")
    )
    if read_often(mixture) and capped_mixture(mixture) is not None:
        commands.append(
            Command(
                title=f"Capped at {MANY_EPOCHS} epochs",
                text=f"megatron-fastmix export {place}{allowed} --max-epochs {MANY_EPOCHS}",
            )
        )
    tests = "NAME=PREFIX"
    commands.append(
        Command(
            title="Measure it on held-out data",
            text=f"megatron-fastmix compare-mixtures --mixture {place} --test {tests} "
            f"--only learned,uniform,proportional --output {place}/comparison",
        )
    )
    if not mixture.seeds:
        runs = shlex.quote(f"{folder.resolve()}-seeds")
        commands.append(
            Command(
                title="See what another seed learns",
                text=f"megatron-fastmix search --config {config} --seeds 3 --run-dir {runs}",
            )
        )
    return commands
