"""DeepSpeed's real launcher: a run from end to end, several seeds, `kill -9`, and Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from megatron.core.datasets.utils import get_blend_from_list

from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.start.worker import STOPPED_EXIT_CODE
from tests.conftest import synthetic_documents, write_dataset

pytestmark = pytest.mark.slow

LIMIT_SECONDS = 300


def start(config: Path, *flags: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_fastmix.cli", "search", "--config", str(config), *flags],
        env=environment | {"DS_ACCELERATOR": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, output


def wait_for_step(run_dir: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Returns when a search that has just been started has done `step`."""
    began, metrics = time.time(), run_dir / "metrics.jsonl"
    while time.time() < began + LIMIT_SECONDS:
        # A resumed search leaves the lines of the one before until it is about to train.
        if metrics.exists() and any(
            line["step"] >= step and line["time"] > began for line in read_metrics(metrics)
        ):
            return
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
    raise AssertionError(f"no step {step} in {LIMIT_SECONDS} s")


def lines(run_dir: Path) -> list[dict]:
    """The steps' lines without what depends on the clock."""
    moving = {"time", "seconds", "data_seconds", "tokens_per_second"}
    return [
        {k: v for k, v in line.items() if k not in moving}
        for line in read_metrics(run_dir / "metrics.jsonl")
        if line["kind"] in ("inner", "outer")
    ]


@pytest.fixture
def straight(config_file: Path, tmp_path: Path) -> tuple[Path, str]:
    """The run folder and the output of a run that nothing disturbed."""
    run_dir = tmp_path / "straight"
    code, output = finish(start(config_file, "--train-iters=100", f"--run_dir={run_dir}"))
    assert code == 0, output
    return run_dir, output


def test_a_search_survives_kill_9_and_control_c(
    config_file: Path, straight: tuple[Path, str], tmp_path: Path
) -> None:
    expected, output = straight
    blend = ["--data-args-path", str(expected / "blend.txt")]
    assert " ".join(blend) in output
    mixture = json.loads((expected / "mixture.json").read_text())
    paths, weights = get_blend_from_list((expected / "blend.txt").read_text().split())
    learned = {source["path"]: source["weight"] for source in mixture["sources"]}
    assert weights is not None
    for path, weight in zip(paths, weights, strict=True):
        assert weight == pytest.approx(learned[path], abs=1e-3)
    assert (expected / "weights.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((expected / "config.yaml").read_text())["training"]["train_iters"] == 100

    run_dir = tmp_path / "disturbed"
    flags = ("--train-iters=100", f"--run_dir={run_dir}")

    killed = start(config_file, *flags)
    wait_for_step(run_dir, 8, killed)
    family = psutil.Process(killed.pid).children(recursive=True)
    for process in reversed(family):  # the ranks before the launchers, which would end them gently
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    killed.kill()
    killed.communicate()

    stopped = start(config_file, *flags)
    wait_for_step(run_dir, 20, stopped)
    stopped.send_signal(signal.SIGINT)
    code, output = finish(stopped)
    assert code == STOPPED_EXIT_CODE, output
    assert f"megatron-fastmix search --config {run_dir}/config.yaml" in output
    assert not json.loads((run_dir / "mixture.json").read_text())["complete"]

    # Data of another content are refused, and the folder goes on with those that it had.
    values = yaml.safe_load(config_file.read_text())
    other = tmp_path / "other"
    write_dataset(other, synthetic_documents("noise", 120, 77), 258)
    values["sources"][0]["path"] = str(other)
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(values))
    code, output = finish(start(tmp_path / "other.yaml", *flags))
    assert code == 2, output
    assert "the content is not that which the checkpoint was trained on" in output

    code, output = finish(start(run_dir / "config.yaml"))
    assert code == 0, output
    assert lines(run_dir) == lines(expected)
    resumed = json.loads((run_dir / "mixture.json").read_text())
    assert resumed["sources"] == mixture["sources"]

    # A finished search is not trained again.
    before = (run_dir / "metrics.jsonl").read_bytes()
    code, output = finish(start(run_dir / "config.yaml"))
    assert code == 0, output
    assert "learned weight" in output
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    code, output = finish(start(tmp_path / "other.yaml", *flags))  # nor is it one of other data
    assert code == 2, output
    assert "the content is not that which the checkpoint was trained on" in output

    # One that is to be longer goes on from its last checkpoint.
    longer = ("--train-iters=104", "--accept-changes")
    code, output = finish(start(run_dir / "config.yaml", *longer))
    assert code == 0, output
    assert "resumed from step 100" in output
    assert (run_dir / "metrics.jsonl").read_bytes().startswith(before)
    assert json.loads((run_dir / "mixture.json").read_text())["steps"] == 104


def test_several_seeds_are_averaged_and_not_searched_again(
    config_file: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "seeds"
    curves = tmp_path / "curves"
    flags = ("--seeds=2", "--num-ranks=1", "--seed=5", f"--run_dir={run_dir}")
    flags += (f"--tensorboard-dir={curves}",)
    code, output = finish(start(config_file, *flags))
    assert code == 0, output
    assert "standard error over 2 seeds" in output
    mixture = json.loads((run_dir / "mixture.json").read_text())
    assert mixture["seeds"] == [5, 6]
    each = [json.loads((run_dir / f"seed-{seed}/mixture.json").read_text()) for seed in (5, 6)]
    for k, source in enumerate(mixture["sources"]):
        weights = [one["sources"][k]["weight"] for one in each]
        assert source["weight"] == pytest.approx(np.mean(weights))
        assert source["weight_std"] == pytest.approx(np.std(weights, ddof=1))
    assert each[0]["sources"] != each[1]["sources"]
    assert (run_dir / "blend.txt").exists()
    assert sorted(path.name for path in curves.iterdir()) == ["seed-5", "seed-6"]

    before = [(run_dir / f"seed-{seed}/metrics.jsonl").read_bytes() for seed in (5, 6)]
    code, output = finish(start(config_file, *flags))
    assert code == 0, output
    assert before == [(run_dir / f"seed-{seed}/metrics.jsonl").read_bytes() for seed in (5, 6)]
