"""What a search meets on clusters: accelerators, versions, memory, the hub, open files."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.checkpoint.stored_parameters import MASTER, StoredParameters
from megatron_fastmix.cli import main as cli
from megatron_fastmix.deepspeed_engine.versions import check_deepspeed
from megatron_fastmix.errors import ConfigError, OutOfMemoryError
from megatron_fastmix.parallel import environment
from megatron_fastmix.parallel.device import local_device
from megatron_fastmix.start import accelerators
from megatron_fastmix.start.accelerators import (
    device_files,
    hidden_on_purpose,
    visible_accelerators,
)
from megatron_fastmix.start.worker import is_out_of_memory

LAUNCH = Path(__file__).parents[2] / "launch"


@pytest.mark.parametrize("ranks", ["0", "-1"])
def test_fewer_than_one_rank_is_refused(
    config_file: Path, capsys: pytest.CaptureFixture[str], ranks: str
) -> None:
    assert cli.main(["search", "--config", str(config_file), f"--num-ranks={ranks}"]) == 2
    assert f"--num-ranks: found {ranks}; use 1 or more" in capsys.readouterr().err


def test_devices_of_either_driver_are_seen(tmp_path: Path) -> None:
    assert device_files(tmp_path) == []
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/0"
    node.mkdir(parents=True)
    (node / "gpu_id").write_text("0\n")  # the processor
    (node.parent / "2" / "gpu_id").mkdir(parents=True)  # cannot be read, as where it is not given
    assert device_files(tmp_path) == []
    (node.parent / "1").mkdir()
    (node.parent / "1" / "gpu_id").write_text("51426\n")
    assert device_files(tmp_path) == [str(tmp_path / "dev/kfd")]
    (tmp_path / "dev" / "nvidia0").touch()
    assert device_files(tmp_path)[0] == str(tmp_path / "dev/nvidia0")


@pytest.mark.parametrize("tool", [None, "echo 'Driver/library version mismatch'; exit 18"])
def test_a_device_that_torch_cannot_use_is_no_reason_to_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str | None
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no other nvidia-smi
    if tool is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{tool}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    for name in accelerators.VISIBLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(accelerators, "device_files", lambda: ["/dev/kfd"])
    (tmp_path / "torch.py").write_text(
        "__version__ = '2.9+cpu'\nclass cuda:\n device_count = int\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"has /dev/kfd, but torch sees no .*torch 2\.9\+cpu"):
        visible_accelerators()
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")
    assert visible_accelerators() == []
    if tool is not None:  # a job without GPUs on a node that has them
        monkeypatch.delenv("HIP_VISIBLE_DEVICES")
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho No devices found.; exit 6\n")
        assert visible_accelerators() == []
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{tool}\n")
    (tmp_path / "torch.py").write_text(
        "__version__ = '2'\nclass cuda:\n device_count = lambda: 4\n"
    )
    assert visible_accelerators() == ["0", "1", "2", "3"]
    if tool is None:  # ranks get these numbers for their own CUDA_VISIBLE_DEVICES
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
        assert visible_accelerators() == ["4", "5", "6", "7"]
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert visible_accelerators() == []


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("GPU-8932f937, 1", ["GPU-8932f937", "1"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
    ],
)
def test_devices_that_are_shown_to_a_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, devices: list[str]
) -> None:
    listing = "GPU 0: H100 (UUID: GPU-1)\\nGPU 1: H100 (UUID: GPU-2)\\n"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{listing}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name in (*accelerators.VISIBLE, "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_accelerators() == devices
    assert hidden_on_purpose() == (not devices)


@pytest.mark.parametrize(
    ("devices", "local_rank", "expected"),
    [(8, "5", "cuda:5"), (1, "5", "cuda:0"), (1, "0", "cuda:0"), (4, "6", "cuda:2")],
)
def test_tasks_of_slurm_may_each_see_one_gpu(
    monkeypatch: pytest.MonkeyPatch, devices: int, local_rank: str, expected: str
) -> None:
    import torch

    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: devices)
    assert str(local_device()) == expected
    # DeepSpeed asks LOCAL_RANK for the device: where the process group is made, and in ZeRO-3.
    monkeypatch.setattr(environment, "_told", None)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_RANK", local_rank)
    environment.number_device(local_device().index)
    assert os.environ["LOCAL_RANK"] == expected.removeprefix("cuda:")
    assert os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == os.environ["LOCAL_RANK"]
    assert (environment.local_rank(), str(local_device())) == (int(local_rank), expected)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert str(local_device()) == "cpu"


@pytest.mark.parametrize("version", ["0.19.8", "0.19.12", "0.19.9+cu126"])
def test_known_versions_of_deepspeed(version: str) -> None:
    check_deepspeed(version)


@pytest.mark.parametrize("version", ["0.18.0", "0.19.7", "0.20.0", "1.0", "weird"])
def test_other_versions_of_deepspeed_are_refused(version: str) -> None:
    with pytest.raises(ConfigError, match=f"DeepSpeed {version} is not one that a search knows"):
        check_deepspeed(version)


def test_memory_errors_are_told_from_others() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)  # more than any host has
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert OutOfMemoryError.exit_code == 8


def test_the_hub_that_cannot_be_reached_is_one_message(
    search_values: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("huggingface_hub")
    import yaml

    search_values["proxy"] = {"kind": "huggingface", "path": "nobody/no-such-model"}
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(search_values))
    program = [sys.executable, "-m", "megatron_fastmix.cli", "search", "--config", str(file)]
    done = subprocess.run(
        program,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "proxy.path: nobody/no-such-model is no folder here" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkpoint_of_many_ranks_needs_few_open_files(
    tmp_path: Path,
) -> None:
    files = []
    for rank in range(20):
        files.append(tmp_path / f"{rank}.npz")
        np.savez(files[-1], **{f"{MASTER}:{3 * rank}:3:w": np.full(3, rank, dtype=np.float32)})
    gc.collect()  # what other tests have left is not closed between the two counts
    before = len(os.listdir("/proc/self/fd"))
    stored = StoredParameters(files)
    for _ in range(2):
        assert stored.read(MASTER, "w", 0, 60).tolist() == np.repeat(np.arange(20), 3).tolist()
        assert len(os.listdir("/proc/self/fd")) == before


def test_an_extra_that_there_is_not_is_named(tmp_path: Path) -> None:
    script = ["bash", str(LAUNCH / "install.sh"), "corpora"]
    environment = os.environ | {"VENV": str(tmp_path / "venv")}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "corpora is no extra; there are: baselines corpus" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_an_environment_with_its_own_torch_keeps_it(tmp_path: Path) -> None:
    """`install.sh --system-site-packages`: pip is told to leave every version that is there."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").write_text(f"#!/bin/sh\necho {venv}\n")
    (venv / "bin" / "pip").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\n')
    for program in (venv / "bin").iterdir():
        program.chmod(0o755)
    environment = os.environ | {"PYTHON": sys.executable, "VENV": str(venv)}
    script = ["bash", str(LAUNCH / "install.sh"), "--system-site-packages"]
    subprocess.run(script, env=environment, check=True)
    arguments = (tmp_path / "arguments").read_text().split()
    file = Path(arguments[arguments.index("--constraint") + 1])
    assert arguments[-2:] == ["--editable", ".[corpus]"]
    kept = file.read_text().splitlines()
    for name in ("torch", "numpy", "deepspeed"):
        assert f"{name}=={importlib.metadata.version(name)}" in kept
    # Those of the environment that the new one is made from, where it is a virtual one itself.
    assert (venv / "shared.pth").read_text().strip() == sysconfig.get_path("purelib")


FAKE_SRUN = """#!/usr/bin/env bash
printf '%s\\n' "$*, $SRUN_CPUS_PER_TASK cores, port $MASTER_PORT" >> "$LOG"
case "$*" in *check-hosts*) echo run/config.yaml ;; esac
"""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"CONTAINER_IMAGE": "nvcr.io#nvidia/pytorch:25.09-py3", "CONTAINER_MOUNTS": "/d:/d"},
            ["--container-image=nvcr.io#nvidia/pytorch:25.09-py3", ",/d:/d", "--container-workdir"],
        ),
        (
            {"APPTAINER_IMAGE": "image.sif", "CONTAINER_ARGS": "--rocm"},
            ["apptainer exec --rocm --bind", "image.sif"],
        ),
    ],
)
def test_tasks_run_in_the_container_that_is_named(
    tmp_path: Path, variables: dict[str, str], expected: list[str]
) -> None:
    for name, text in {
        "srun": FAKE_SRUN,
        "scontrol": "#!/usr/bin/env bash\necho node1\n",
        "apptainer": "#!/usr/bin/env bash\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = (
        {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}
        | variables
        | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "LOG": str(log),
            "PYTHON": "python_inside",
            "SLURM_JOB_ID": "4910012",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_CPUS_PER_TASK": "8",
        }
    )
    script = ["bash", str(LAUNCH / "search.sbatch"), "--config", "my.yaml"]
    subprocess.run(script, env=environment, check=True)
    check, search = log.read_text().split("\n", 1)
    for words in expected:
        assert words in check
        assert words in search
    assert "python_inside -m megatron_fastmix.cli check-hosts --config my.yaml" in check
    assert "search --config run/config.yaml, 8 cores, port 20012" in search
