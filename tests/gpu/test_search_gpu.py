"""The search on an accelerator: NCCL, both precisions, equal products to the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def search(config_file: Path, run_dir: Path, *flags: str, cpu: bool = False) -> list[dict]:
    """Runs one rank and returns the lines of its outer steps."""
    environment = {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"}
    if cpu:
        environment["DS_ACCELERATOR"] = "cpu"
    command = [sys.executable, "-m", "megatron_fastmix.cli", "search", "--num-ranks", "1"]
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
