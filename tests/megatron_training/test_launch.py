"""`launch/pretrain_gpt.sh`: its arguments are Megatron's and ours."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_fastmix.megatron.options import split_arguments

SCRIPT = Path(__file__).parents[2] / "launch" / "pretrain_gpt.sh"


def command(mode: str, *more: str, **environment: str) -> list[str]:
    printed = subprocess.run(
        ["bash", str(SCRIPT), mode, *more],
        env=os.environ | {"DRY_RUN": "1", "RUN": "my runs/a", "MEGATRON": "/m"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return shlex.split(printed.stdout)


def test_the_static_blend_needs_nothing_of_ours():
    words = command("blend", "--seed", "7")
    assert not any("fastmix" in word for word in words)
    assert words[words.index("--nproc-per-node") + 2] == "/m/pretrain_gpt.py"
    assert words[words.index("--data-args-path") + 1] == "my runs/a/blend.txt"
    assert words[-2:] == ["--seed", "7"]


@pytest.mark.parametrize("mode", ["mixture", "schedule"])
def test_the_mixtures_flags_are_ours(mode):
    words = command(mode, MAX_EPOCHS="2.5")
    place = words.index("megatron_fastmix.megatron")
    options, theirs = split_arguments(words[place + 1 :])
    assert options.mixture == Path("my runs/a")
    assert options.max_epochs == 2.5
    schedule = Path("my runs/a/phases/schedule.yaml")
    assert options.schedule == (schedule if mode == "schedule" else None)
    plain = command("blend")
    assert theirs == plain[plain.index("/m/pretrain_gpt.py") :]


def test_megatrons_parser_takes_every_argument(monkeypatch):
    arguments = pytest.importorskip("megatron.training.arguments")
    from tests.megatron_training.cpu_names import CudaMeansCpu

    words = command("blend")
    monkeypatch.setattr(sys, "argv", words[words.index("/m/pretrain_gpt.py") :])
    monkeypatch.setenv("WORLD_SIZE", words[words.index("--nproc-per-node") + 1])
    with CudaMeansCpu():
        # With what Megatron itself asks of arguments that go together.
        args = arguments.validate_args(arguments.parse_args())
    assert (args.data_parallel_size, args.micro_batch_size, args.global_batch_size) == (8, 2, 256)
    assert args.train_samples * args.seq_length == pytest.approx(50e9, rel=1e-3)
    assert args.data_args_path == "my runs/a/blend.txt"


@pytest.mark.parametrize(
    ("mode", "message"),
    [("live", "found 'live'; use blend, mixture or schedule"), ("blend", "no pretrain_gpt.py")],
)
def test_what_cannot_start_is_said(tmp_path, mode, message):
    ended = subprocess.run(
        ["bash", str(SCRIPT), mode],
        env=os.environ | {"MEGATRON": str(tmp_path), "CHECKPOINTS": str(tmp_path / "c")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert message in ended.stderr
