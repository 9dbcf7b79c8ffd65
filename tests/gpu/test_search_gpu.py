"""The search on an accelerator: NCCL, both precisions, equal products to the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def search(
    config_file: Path,
    run_dir: Path,
    *flags: str,
    cpu: bool = False,
    ranks: int | None = 1,
    **variables: str,
) -> list[dict]:
    """Runs `ranks`, or without them as a rank that a launcher has started with these variables, and
    returns the lines of the outer steps."""
    environment = {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"} | variables
    if cpu:
        environment["DS_ACCELERATOR"] = "cpu"
    command = [sys.executable, "-m", "megatron_fastmix.cli", "search"]
    command += ["--num-ranks", str(ranks)] if ranks else []
    command += ["--config", str(config_file), f"--run_dir={run_dir}", *flags]
    subprocess.run(command, env=environment, check=True, timeout=600)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == "outer"]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_products_equal_those_of_the_cpu(config_file: Path, tmp_path: Path, stage: int) -> None:
    flags = ("--mixture.lr=0", f"--engine.zero_stage={stage}")
    found = search(config_file, tmp_path / "gpu", *flags)
    expected = search(config_file, tmp_path / "cpu", *flags, cpu=True)
    for one, two in zip(found, expected, strict=True):
        for name, value in two["products"].items():
            assert one["products"][name] == pytest.approx(value, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("estimator", ["one_pass", "finite_difference", "per_source"])
def test_bf16_finds_the_source_that_resembles_the_target(
    config_file: Path, tmp_path: Path, estimator: str
) -> None:
    flags = ("--engine.dtype=bf16", f"--estimator={estimator}", "--train-iters=60")
    lines = search(config_file, tmp_path / "gpu", *flags, "--mixture.lr=0.2")
    weights = lines[-1]["weights"]
    assert max(weights, key=weights.get) == "forward"


def test_zero_3_gathers_what_was_written_just_before(config_file: Path, tmp_path: Path) -> None:
    # DeepSpeed gathers on a stream of its own; a large model has much to write.
    if torch.cuda.device_count() < 2:
        pytest.skip("needs 2 GPUs")
    flags = ("--mixture.lr=0", "--estimator=finite_difference")
    flags += ("--proxy.hidden_size=2048", "--proxy.num_attention_heads=16")
    found, expected = (
        search(config_file, tmp_path / str(stage), *flags, f"--engine.zero_stage={stage}", ranks=2)
        for stage in (3, 0)
    )
    for one, two in zip(found, expected, strict=True):
        for name, value in two["products"].items():
            assert one["products"][name] == pytest.approx(value, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_task_of_slurm_that_sees_one_gpu(config_file: Path, tmp_path: Path, ranks: int) -> None:
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    variables = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29731"}
    with ThreadPoolExecutor(ranks) as pool:
        runs = [
            pool.submit(
                search,
                *(config_file, tmp_path / "run", "--engine.zero_stage=3"),
                ranks=None,
                **variables,
                RANK=str(rank),
                LOCAL_RANK=str(rank + 3 - ranks),
                CUDA_VISIBLE_DEVICES=str(rank),
            )
            for rank in range(ranks)
        ]
    assert all(run.result() for run in runs)
