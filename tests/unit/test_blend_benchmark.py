"""The tool that measures the blend, at sizes of no meaning."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_blend.py"


@pytest.mark.slow
def test_every_figure_is_there_with_what_it_should_reach(tmp_path):
    flags = {
        "largest": 10_000,
        "sources": 3,
        "seq-length": 16,
        "repetitions": 1,
        "rounds": 1,
        "items": 8,
        "num-workers": 0,
        "json": tmp_path / "rows.json",
    }
    command = [sys.executable, "-W", "ignore", str(TOOL)]
    command += [f"--{key}={value}" for key, value in flags.items()]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "rows.json").read_text())
    rows = {row["figure"]: row for row in record["rows"]}
    assert record["settings"]["seq_length"] == 16
    assert rows["open: Megatron's / ours, 1e+04 samples"]["reach"] == 1000
    assert rows["open: ours, 1e+10 / 1e+04 samples"]["reach"] == 1.2
    assert rows["memory: ours / Megatron's, 1e+04 samples"]["reach"] == 0.001
    for what in ("random access", "DataLoader"):
        for size in ("1e+02", "1e+03", "1e+04", "1e+10 samples beside 1e+04"):
            size = size if "samples" in size else f"{size} samples"
            assert rows[f"{what}: time per sample, ours / Megatron's, {size}"]["reach"] == 1.1
            assert rows[f"{what}: ours, {size}"]["value"] > 0
    assert "open: Megatron's, 1e+10 samples" not in rows
    assert result.stdout.startswith("figure")
