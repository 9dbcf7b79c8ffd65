"""Checkpoints of a search, free of pickles and of the number of ranks that wrote them.

    RUN/checkpoints/step-00000100/tensor-00-data-00001.npz   one rank's share: parameters, moments
    RUN/checkpoints/step-00000100/tensor-00-data-00001.json  its size and sha256
    RUN/checkpoints/step-00000100/search.json                step, mixture, all checksums

A rank copies its share to host memory, and a thread writes it while training goes on. `search.json`
comes last, after every file is on disk: a folder without it is an interrupted write.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.errors import CheckpointError, DataError, NonFiniteError
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.storage import describe, os_error_of
from megatron_fastmix.text_files import read_json, read_json_object

if TYPE_CHECKING:  # importing torch takes seconds, and the command line reads states alone
    from megatron_fastmix.parallel.groups import DataParallelGroup

STATE_FILE = "search.json"
_OWN_NAME = re.compile(r"step-([0-9]{8,18})")
"""What somebody set aside under another name, such as `step-00000100.good`, is not of the run."""


@dataclass(frozen=True, kw_only=True)
class SearchState:
    """The part of a search's state that is not the engine's."""

    step: int
    """Optimizer steps done; the draws of the next one follow from it."""
    tokens: int
    """Tokens trained on."""
    seconds: float
    """Wall time of the search so far, over all its parts."""
    mixture: dict[str, Any]
    """`Mixture.state()`."""
    target_weights: list[float]
    """ω of the outer step to come, (V,); as configured unless `worst_case` moves it."""
    initial_target_losses: list[float] | None
    """Loss of each target at the first outer step, (V,)."""
    final_target_losses: list[float] | None
    """Loss of each target at the last outer step, (V,)."""
    data_parallel_size: int
    """Ranks that wrote the checkpoint; another number may read it."""
    identity: dict[str, Any]
    """The data that it rests on: `identity.identity_of`."""
    nonfinite_gradients: int = 0
    """Optimizer steps so far whose gradient norm was NaN or Inf."""
    draw_order: int = 1
    """`spread_order.DRAW_ORDER` of the release that wrote it."""


class CheckpointWriter:
    """Writes checkpoints behind the training. One at a time is under way."""

    def __init__(
        self,
        folder: RunFolder,
        world: DataParallelGroup,
        group: DataParallelGroup,
        tensor_group: DataParallelGroup,
        keep: int,
    ) -> None:
        """The newest `keep` checkpoints stay. `world` are all ranks, `group` the data-parallel and
        `tensor_group` the tensor-parallel ones."""
        self.folder = folder
        self.world = world
        self.file = _rank_file(tensor_group.rank, group.rank)
        self.files = [
            _rank_file(tensor, data)
            for tensor in range(tensor_group.size)
            for data in range(group.size)
        ]
        self.keep = keep
        self._steps: list[int] = []
        self._thread: threading.Thread | None = None
        self._state: SearchState | None = None
        self._error: OSError | None = None

    def resumed(self, step: int) -> None:
        """This run goes on from `step`: what is newer was refused, and goes with the next save."""
        self._steps = [known for known in complete_steps(self.folder) if known <= step]

    @property
    def progress(self) -> tuple[float, float]:
        """(1 where this rank's file is written, 1 where it cannot be): summed over the ranks, they
        tell `advance` what to do."""
        written = self._thread is not None and not self._thread.is_alive()
        return float(written and self._error is None), float(written and self._error is not None)

    def begin(self, state: SearchState, arrays: dict[str, np.ndarray]) -> None:
        """Starts to write `arrays` (`deepspeed_engine.state.snapshot`), after `finish`, which lets
        go of those before. Every rank must call.

        Raises `CheckpointError`, and `NonFiniteError` on every rank where a number of one is NaN
        or Inf: nothing is written then, and no checkpoint removed.
        """
        assert self._thread is None, "finish comes first"
        bad = next((key for key, array in arrays.items() if not np.isfinite(array).all()), None)
        if self.world.any(bad is not None):
            what = "another rank's share" if bad is None else bad.rpartition(":")[2]
            raise NonFiniteError(
                f"step {state.step}: NaN or Inf in the proxy's parameters or Adam's moments, in "
                f"{what}; lower training.lr or raise training.lr_warmup_iters; the last good "
                f"checkpoint stays in {self.folder.checkpoints}",
                is_echo=bad is None,
            )
        folder = self.folder.checkpoint(state.step)
        self._state, self._error = state, None
        if self.world.rank == 0:
            try:
                _remove(folder)  # a write that was interrupted, perhaps of more ranks
            except OSError as error:
                self._error = error
        self._raise_where_failed(folder, self._error)
        self._thread = threading.Thread(target=self._write, args=(folder, arrays), daemon=True)
        self._thread.start()

    def advance(self, written: float, failed: float) -> None:
        """Publishes the checkpoint once all ranks wrote their files, given the sums of `progress`.

        Every rank must call, with equal sums. Raises `CheckpointError` where a rank could not.
        """
        if self._thread is not None and written + failed == self.world.size:
            self._close(failed)

    def finish(self) -> None:
        """Waits for the checkpoint under way. Every rank must call. Raises as `advance` does."""
        if self._thread is not None:
            self._thread.join()
            self._close(self.world.sum(np.array(self.progress))[1])

    def _close(self, failed: float) -> None:
        assert self._state is not None
        state, self._thread = self._state, None
        folder = self.folder.checkpoint(state.step)
        error: OSError | None = self._error
        if self.world.rank == 0 and not failed:
            try:
                self._publish(folder, state)
            except OSError as problem:
                error = problem
        self._raise_where_failed(folder, error)

    def _raise_where_failed(self, folder: Path, error: OSError | None) -> None:
        """Raises `CheckpointError` on all ranks where one has an error, which it tells. Every rank
        must call; also keeps a fast rank from going on to files that rank 0 still removes."""
        if not self.world.any(error is not None):
            return
        if error is not None:
            _say(f"rank {self.world.rank}: cannot write {describe(error, folder / self.file)}")
        raise CheckpointError(
            f"{folder}: the checkpoint could not be written; {_what_stays(self.folder)}; mend what "
            "a rank names and run the same command again"
        )

    def _write(self, folder: Path, arrays: dict[str, np.ndarray]) -> None:
        """In a thread of its own."""
        path = folder / self.file
        aside = path.with_name(f".{path.name}.tmp")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(aside, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # the stub names one keyword
                file.flush()
                os.fsync(file.fileno())
            record = {"bytes": aside.stat().st_size, "sha256": _sha256(aside)}
            os.replace(aside, path)
            write_atomically(path.with_suffix(".json"), json.dumps(record))
        except Exception as error:
            self._error = os_error_of(error) or OSError(errno.EIO, str(error), str(path))
            # What was written of it takes the room that others need.
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)

    def _publish(self, folder: Path, state: SearchState) -> None:
        records = {name: (folder / name).with_suffix(".json") for name in self.files}
        try:
            files = {name: read_json_object(path, "the size") for name, path in records.items()}
        except DataError as error:
            raise OSError(errno.EIO, str(error), str(folder)) from None
        content = {"state": vars(state), "files": files}
        # A resumed run does not write these lines again; but they are worth less than a checkpoint.
        with contextlib.suppress(OSError), open(self.folder.metrics, "rb") as file:
            os.fsync(file.fileno())
        write_atomically(folder / STATE_FILE, json.dumps({**content, "sha256": _seal(content)}))
        self._steps = [*self._steps, state.step][-self.keep :]
        kept = [self.folder.checkpoint(step) for step in self._steps]
        for old in folder.parent.iterdir():
            if _OWN_NAME.fullmatch(old.name) and old not in kept:
                try:
                    _remove(old)
                except OSError as error:  # the new one is there
                    _say(f"cannot remove {describe(error, old)}")


def latest(run: RunFolder, world: DataParallelGroup | None = None) -> SearchState | None:
    """The state of the newest checkpoint whose files are whole; None where there is none.

    Says on stderr which one it refuses and why. Every rank of `world` must call; they share the
    reading. Raises `CheckpointError` where there are checkpoints and none is whole.
    """
    rank, size = (0, 1) if world is None else (world.rank, world.size)

    def total(values: list[float]) -> list[float]:
        return values if world is None else world.sum(np.array(values)).tolist()

    # Rank 0 lists them: a shared folder may show other hosts an older state.
    steps = complete_steps(run) if rank == 0 else []
    count = int(total([len(steps)])[0])
    for step in reversed(total([float(step) for step in steps] or [0.0] * count)):
        folder = run.checkpoint(int(step))
        state, refused = None, 0
        try:
            state, files = _read_state(folder)
            for name in sorted(files)[rank::size]:
                _check_file(folder / name, files[name])
        except CheckpointError as error:
            refused = 1
            _say(f"refused a checkpoint: {error}")
        if not total([refused])[0]:
            return state
        if rank == 0:
            _say(f"{folder} is damaged: looking for the checkpoint before it")
    if count:
        raise CheckpointError(
            f"{run.checkpoints}: none of the {count} checkpoints is whole; restore one, or "
            "remove that folder to start again"
        )
    return None


def last_state(run: RunFolder) -> SearchState | None:
    """That of the newest checkpoint, whose other files are not looked at; None without one.
    Raises `CheckpointError`."""
    steps = complete_steps(run)
    return _read_state(run.checkpoint(steps[-1]))[0] if steps else None


def last_identity(run: RunFolder) -> dict[str, Any] | None:
    """The data that the newest checkpoint rests on (`identity.identity_of`); None without one."""
    state = last_state(run)
    return None if state is None else state.identity


def rank_files(run: RunFolder, step: int, tensor_rank: int = 0) -> list[Path]:
    """The files of one tensor-parallel rank in the checkpoint of `step`."""
    folder = run.checkpoint(step)
    _, files = _read_state(folder)
    return [
        folder / name for name in sorted(files) if name.startswith(f"tensor-{tensor_rank:02d}-")
    ]


def complete_steps(run: RunFolder) -> list[int]:
    """Steps of the checkpoints that were written to the end, ascending."""
    found = run.checkpoints.glob(f"step-*/{STATE_FILE}")
    names = [_OWN_NAME.fullmatch(path.parent.name) for path in found]
    return sorted(int(name[1]) for name in names if name)


def _what_stays(run: RunFolder) -> str:
    try:
        steps = complete_steps(run)
    except OSError:
        return "those before it stay"
    return f"that of step {steps[-1]} stays" if steps else "there is none before it"


def _rank_file(tensor_rank: int, data_rank: int) -> str:
    return f"tensor-{tensor_rank:02d}-data-{data_rank:05d}.npz"


def _read_state(folder: Path) -> tuple[SearchState, dict[str, Any]]:
    path = folder / STATE_FILE
    try:
        content = read_json(path, "the state")
        seal = content.pop("sha256")
        if seal != _seal(content):
            raise ValueError("its sha256 differs from the one in it")
        if any(Path(name).name != name for name in content["files"]):
            raise ValueError("it names files outside its folder")
        return SearchState(**content["state"]), content["files"]
    except (DataError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the state of a search: {error}") from None


def _check_file(path: Path, record: dict[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if not isinstance(record, dict) or not {"bytes", "sha256"} <= record.keys():
            raise CheckpointError(f"{path}: {STATE_FILE} does not say what it holds")
        if size != record["bytes"]:
            raise CheckpointError(f"{path}: {size:,} bytes found, {record['bytes']} written")
        if _sha256(path) != record["sha256"]:
            raise CheckpointError(f"{path}: its sha256 differs from the one when it was written")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read it: {error.strerror}") from None


def _remove(folder: Path) -> None:
    # The mark of completeness goes first, lest a half-removed folder pass for whole.
    (folder / STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _say(text: str) -> None:
    print(f"megatron-fastmix: {text}", file=sys.stderr, flush=True)


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
