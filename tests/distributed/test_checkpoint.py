"""Checkpoints: other numbers of ranks, damage, full disks, other data, hostile files."""

from __future__ import annotations

import contextlib
import json
import pickle
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.checkpoint import store as checkpoint
from megatron_fastmix.checkpoint.stored_parameters import MASTER, MOMENTS, StoredParameters
from megatron_fastmix.deepspeed_engine.state import snapshot
from megatron_fastmix.errors import CheckpointError, ConfigError, FastMixError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.search import loop
from megatron_fastmix.search.loop import Search
from megatron_fastmix.start.claim import check_content
from tests.cases import slow
from tests.conftest import synthetic_documents, write_dataset
from tests.distributed.searches import SAMPLING, claim_once, load, run_search, without_times


def search_to(config: Any, stop_at: int | None = None) -> None:
    """Runs a search to its end, or as if stopped by a signal after `stop_at` steps."""
    claim_once(config)
    search = Search(config)
    original = search.batches.training

    def training(step: int, micro_step: int) -> Any:
        search.stop_signalled = step + 1 == stop_at
        return original(step, micro_step)

    search.batches.training = training  # type: ignore[method-assign]
    assert search.run() == (stop_at is None)


def kept(config: Any, tensor_rank: int) -> dict[tuple[str, str], np.ndarray]:
    """The parameters and moments in the last checkpoint, whole."""
    run_dir = Path(config.run_dir)
    step = checkpoint.complete_steps(RunFolder(run_dir))[-1]
    stored = StoredParameters(checkpoint.rank_files(RunFolder(run_dir), step, tensor_rank))
    return {
        (kind, name): stored.read(kind, name, 0, stored.numel(name))
        for name in stored.names
        for kind in (MASTER, *MOMENTS)
    }


def losses_and_weights(config: Any) -> tuple[list[float], np.ndarray]:
    lines = read_metrics(Path(config.run_dir) / "metrics.jsonl")
    losses = [line["loss"] for line in lines if line["kind"] == "inner"]
    return losses, np.array([[*w["weights"].values()] for w in lines if w["kind"] == "outer"])


def written_at_each_copy(config: Any) -> list[bool]:
    """Whether the checkpoint before was still being written when one was copied to the host, on a
    disk that is slower than the training."""
    claim_once(config)
    search = Search(config)
    writer, write = search.checkpoints, search.checkpoints._write
    found = []

    def slow_write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
        time.sleep(2)
        write(folder, arrays)

    def copy(*arguments: Any) -> dict[str, np.ndarray]:
        found.append(writer._thread is not None and writer._thread.is_alive())
        return snapshot(*arguments)

    writer._write = slow_write  # type: ignore[method-assign]
    loop.snapshot = copy  # of this rank's own process
    search.run()
    return found


def test_the_host_holds_one_copy_of_the_state_at_a_time(search_values: dict) -> None:
    config = load(search_values, **{"output.save_interval": 1, "training.train_iters": 3})
    assert run_ranks(1, written_at_each_copy, config) == [[False, False, False]]


@pytest.mark.parametrize(
    ("before", "after", "tensor_parallel", "stage", "new_stage", "dtype"),
    [
        (2, 1, 1, 2, 2, "fp32"),
        slow(1, 2, 1, 3, 3, "fp32"),
        slow(2, 4, 1, 0, 0, "fp32"),
        slow(4, 2, 1, 1, 1, "fp32"),
        slow(4, 1, 1, 2, 3, "fp32"),
        slow(4, 2, 2, 3, 3, "fp32"),
        slow(1, 4, 1, 3, 0, "fp32"),
        slow(2, 1, 1, 1, 2, "bf16"),
    ],
)
def test_a_search_resumes_at_another_data_parallel_size_and_zero_stage(
    search_values: dict,
    tmp_path: Path,
    before: int,
    after: int,
    tensor_parallel: int,
    stage: int,
    new_stage: int,
    dtype: str,
) -> None:
    changes = {
        "engine.zero_stage": stage,
        "engine.tensor_model_parallel_size": tensor_parallel,
        "engine.dtype": dtype,
        "hypergradient.preconditioner": "adam",
        "hypergradient.estimator": "per_source",
        "training.adam_eps": 1e-4,  # a smaller one magnifies the rounding of gradients near 0
        "mixture.optimizer": "sgd",  # and so does Adam on the logits
        "mixture.lr": 1.0,
    }
    straight = load(search_values, run_dir=tmp_path / "straight", **changes)
    parts = load(search_values, run_dir=tmp_path / "parts", **changes)
    run_ranks(before, search_to, straight)
    run_ranks(before, search_to, parts, 3)
    resumed = load(
        search_values, run_dir=tmp_path / "parts", **{**changes, "engine.zero_stage": new_stage}
    )
    run_ranks(after, search_to, resumed)
    steps = [line["step"] for line in read_metrics(tmp_path / "parts/metrics.jsonl")]
    assert steps == sorted(steps)
    tolerance = 1e-4 if dtype == "fp32" else 2e-2
    for one, other in zip(losses_and_weights(parts), losses_and_weights(straight), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance)
    for tensor_rank in range(tensor_parallel):
        expected, found = kept(straight, tensor_rank), kept(parts, tensor_rank)
        assert expected.keys() == found.keys()
        for key, values in expected.items():
            scale = np.abs(values).max()
            np.testing.assert_allclose(found[key] / scale, values / scale, atol=tolerance)


@pytest.fixture
def stopped(search_values: dict) -> Any:
    """The configuration of a search of 6 steps with checkpoints after 3 and 5."""
    config = load(search_values)
    run_ranks(2, run_search, config, 5)
    assert checkpoint.complete_steps(RunFolder(Path(config.run_dir))) == [3, 5]
    return config


def truncate(folder: Path) -> None:
    file = folder / "tensor-00-data-00001.npz"
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(folder: Path) -> None:
    file = folder / "tensor-00-data-00000.npz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def flip_a_digit_of_the_state(folder: Path) -> None:
    file = folder / "search.json"
    file.write_text(file.read_text().replace('"step": 5', '"step": 6'))


def lose_a_file(folder: Path) -> None:
    (folder / "tensor-00-data-00001.npz").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes found"),
        slow(flip_a_bit, "sha256 differs"),
        slow(flip_a_digit_of_the_state, "sha256 differs"),
        slow(lose_a_file, "No such file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(
    search_values: dict,
    stopped: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Any,
    reason: str,
) -> None:
    straight = load(search_values, run_dir=tmp_path / "straight")
    expected = run_ranks(2, run_search, straight)[0]
    damage(tmp_path / "run/checkpoints/step-00000005")
    capfd.readouterr()
    resumed = run_ranks(2, run_search, stopped)[0]
    said = capfd.readouterr().err
    assert reason in said
    assert "step-00000005 is damaged: looking for the checkpoint before it" in said
    assert resumed["parameters"].tobytes() == expected["parameters"].tobytes()
    assert without_times(tmp_path / "run/metrics.jsonl") == without_times(
        tmp_path / "straight/metrics.jsonl"
    )
    # The refused one is gone, and the last is whole.
    assert checkpoint.complete_steps(RunFolder(tmp_path / "run")) == [3, 6]


def test_without_a_whole_checkpoint_the_search_does_not_start_over(stopped: Any) -> None:
    for step in (3, 5):
        truncate(RunFolder(Path(stopped.run_dir)).checkpoint(step))
    for message in run_ranks(2, refused, stopped):
        assert "none of the 2 checkpoints is whole" in message


def refused(config: Any, accept_changes: bool = False) -> str:
    with pytest.raises(FastMixError) as caught:
        Search(config, accept_changes=accept_changes)
    return str(caught.value)


def accepted(config: Any) -> int:
    return Search(config, accept_changes=True).step


def test_a_checkpoint_of_another_search_is_refused(
    search_values: dict, stopped: Any, corpora: Path, tmp_path: Path
) -> None:
    """The checkpoints are copied under other configurations."""

    def other(name: str, **changes: Any) -> Any:
        config = load(search_values, run_dir=tmp_path / name, **changes)
        shutil.copytree(Path(stopped.run_dir) / "checkpoints", tmp_path / name / "checkpoints")
        return config

    (message,) = run_ranks(1, refused, other("model", **{"proxy.hidden_size": 64}), True)
    assert "another model" in message
    assert "embedding.word_embeddings.weight: " in message

    sources = search_values["sources"]
    search_values["sources"] = sources[::-1]
    (message,) = run_ranks(1, refused, other("order"), True)
    assert "sources are forward, backward, noise; the configuration's are noise, back" in message

    changed = tmp_path / "changed"
    write_dataset(changed, synthetic_documents("noise", 120, 77), 258)
    search_values["sources"] = [*sources[:2], {"name": "noise", "path": str(changed)}]
    config = other("content")
    (message,) = run_ranks(1, refused, config)
    assert message.startswith("noise: the content is not that")
    assert "--accept-changes" in message
    assert run_ranks(1, accepted, config) == [5]

    # The same data elsewhere is the same data.
    for suffix in (".bin", ".idx"):
        shutil.copy(f"{corpora / 'noise'}{suffix}", f"{tmp_path / 'moved'}{suffix}")
    search_values["sources"] = [*sources[:2], {"name": "noise", "path": str(tmp_path / "moved")}]
    assert run_ranks(1, accepted, other("moved_data")) == [5]


def test_what_was_set_aside_beside_the_checkpoints_stays(
    search_values: dict, tmp_path: Path
) -> None:
    config = load(search_values, run_dir=tmp_path / "run")
    checkpoints = RunFolder(tmp_path / "run").checkpoints
    for name in ("step-00000001.good", "step-best"):
        (checkpoints / name).mkdir(parents=True)
    (checkpoints / "step-00000001").mkdir()  # of this run, and older than those kept
    run_ranks(1, search_to, config)
    assert (checkpoints / "step-00000001.good").exists()
    assert (checkpoints / "step-best").exists()
    assert not (checkpoints / "step-00000001").exists()


@contextlib.contextmanager
def edited_state(config: Any) -> Iterator[dict[str, Any]]:
    """The state in the newest checkpoint, of step 5, which is written again at the end."""
    file = RunFolder(Path(config.run_dir)).checkpoint(5) / "search.json"
    content = json.loads(file.read_text())
    content.pop("sha256")
    yield content["state"]
    content["sha256"] = checkpoint._seal(content)
    file.write_text(json.dumps(content))


@pytest.mark.slow
def test_draws_of_another_order_are_refused_before_a_rank_starts(search_values: dict) -> None:
    even = load(search_values)
    run_ranks(2, run_search, even, 5)
    with edited_state(even) as state:
        del state["draw_order"]
    check_content(RunFolder(Path(even.run_dir)), even, state["identity"]["tokenizer"])

    config = load(search_values, run_dir=f"{even.run_dir}_sampling", **SAMPLING)
    run_ranks(2, run_search, config, 5)
    with edited_state(config) as state:
        del state["draw_order"]
    folder, tokenizer = RunFolder(Path(config.run_dir)), state["identity"]["tokenizer"]
    with pytest.raises(ConfigError, match="drew samples in another order"):
        check_content(folder, config, tokenizer)
    (message,) = run_ranks(1, refused, config)
    assert "drew samples in another order" in message
    check_content(folder, config, tokenizer, accept_changes=True)
    assert run_ranks(1, accepted, config) == [5]
    with edited_state(config) as state:
        del state["mixture"]["history"][1:]
    check_content(folder, config, tokenizer)


@pytest.mark.slow
def test_another_tokenizer_is_refused(stopped: Any) -> None:
    with edited_state(stopped) as state:
        state["identity"]["tokenizer"] = "0" * 64
    (message,) = run_ranks(1, refused, stopped, True)
    assert "another tokenizer (sha256 000000000000..." in message


def run_with_little_room(config: Any, folder: str | None) -> str:
    """After step 4, files may not grow beyond 20 KB, or nothing more fits on the file system."""
    claim_once(config)
    search = Search(config)
    original = search.batches.training

    def training(step: int, micro_step: int) -> Any:
        if step == 4 and folder is None and search.world.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        return original(step, micro_step)

    search.batches.training = training  # type: ignore[method-assign]
    with pytest.raises(CheckpointError) as caught:
        search.run()
    return str(caught.value)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    search_values: dict, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load(search_values)
    for message in run_ranks(2, run_with_little_room, config, None):
        assert "the checkpoint could not be written; that of step 3 stays" in message
    assert "rank 1: cannot write" in capfd.readouterr().err
    assert not list((tmp_path / "run/checkpoints/step-00000006").glob(".*.tmp"))
    straight = load(search_values, run_dir=tmp_path / "straight")
    expected = run_ranks(2, run_search, straight)[0]
    resumed = run_ranks(2, run_search, config)[0]
    assert resumed["parameters"].tobytes() == expected["parameters"].tobytes()
    assert without_times(tmp_path / "run/metrics.jsonl") == without_times(
        tmp_path / "straight/metrics.jsonl"
    )


@pytest.mark.slow
def test_a_full_file_system_leaves_the_checkpoint_before(
    search_values: dict, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(run)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        config = load(search_values)
        for message in run_ranks(2, run_with_little_room, config, str(run)):
            assert "the checkpoint could not be written; that of step 3 stays" in message
        assert "No space left on device" in capfd.readouterr().err
        assert checkpoint.latest(RunFolder(run)) is not None
        subprocess.run(["mount", "-o", "remount,size=8m", str(run)], check=True)
        assert run_ranks(2, run_search, config)[0]["complete"]
    finally:
        subprocess.run(["umount", str(run)], check=True)


class Trap:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path).checkpoint(1)
    folder.mkdir(parents=True)
    file, sprung = folder / "tensor-00-data-00000.npz", tmp_path / "sprung"
    np.savez(file, **{"master:0:1:x": np.array([Trap(sprung)], dtype=object)})
    with pytest.raises(CheckpointError, match="not the arrays of a checkpoint"):
        StoredParameters([file]).read("master", "x", 0, 1)
    file.write_bytes(pickle.dumps(Trap(sprung)))
    with pytest.raises(CheckpointError, match="not the arrays of a checkpoint"):
        StoredParameters([file])
    assert not sprung.exists()

    # A state that names a file elsewhere is not followed there.
    content: dict[str, Any] = {"state": {}, "files": {"../../../etc/passwd": {}}}
    content["sha256"] = checkpoint._seal(content)
    (folder / "search.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints is whole"):
        checkpoint.latest(RunFolder(tmp_path))
