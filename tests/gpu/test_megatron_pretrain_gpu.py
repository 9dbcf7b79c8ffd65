"""Megatron's own `pretrain()` with NCCL: losses by source, evaluation and a checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("megatron.training", reason="megatron.training comes with megatron-core 0.19")

from tests.megatron_training.runs import START, Runs, check_scalars, tensorboard

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SCRIPT = Path(__file__).parents[1] / "megatron_training" / "pretrain_loop.py"
FIXED = (
    *("--distributed-backend=nccl", "--no-rope-fusion", "--no-bias-dropout-fusion"),
    *("--attention-dropout=0", "--hidden-dropout=0", "--eval-iters=1", "--eval-interval=2"),
)


@pytest.mark.parametrize("parallel", ["", "--pipeline-model-parallel-size=2 --num-layers=2"])
def test_an_unmodified_script_logs_its_sources(corpora, tmp_path, parallel):
    ranks = 2 if parallel else 1
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    runs = Runs(corpora, tmp_path, SCRIPT, FIXED)
    schedule = runs.schedule("static.yaml", (0, START))
    flags = [*parallel.split(), "--train-iters=4", f"--save={tmp_path / 'saved'}"]
    command = runs.command(schedule, tmp_path / "out", *flags)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", str(ranks), "-m", "megatron_fastmix.megatron", *command]
    ended = subprocess.run(
        launch,
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    seen = [json.loads((tmp_path / "out" / f"{r}.json").read_text()) for r in range(ranks)]
    check_scalars(tensorboard(tmp_path / "out"), seen)
    assert (tmp_path / "saved" / "latest_checkpointed_iteration.txt").read_text() == "4"
