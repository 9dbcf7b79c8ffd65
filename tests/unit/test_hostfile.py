"""Hostfiles as people write them, and the launch scripts that read them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.start.accelerators import VISIBLE
from megatron_fastmix.start.ask_hosts import ask_over_ssh
from megatron_fastmix.start.host_report import _check_interfaces
from megatron_fastmix.start.hostfile import read_hostfile

LAUNCH = Path(__file__).parents[2] / "launch"


def launch(tmp_path: Path, hostfile: Path, **environment: str) -> str:
    """What `search_multinode.sh` gives DeepSpeed as the address of the first host."""
    commands = tmp_path / "bin"
    commands.mkdir(exist_ok=True)
    (commands / "pdsh").write_text("#!/bin/sh\n")
    (commands / "python").write_text(
        '#!/bin/bash\nif [[ "$*" == *check-hosts* ]]; then echo /run/config.yaml; '
        "else printf '%s\\n' \"$@\"; fi\n"
    )
    for command in commands.iterdir():
        command.chmod(0o755)
    done = subprocess.run(
        ["bash", str(LAUNCH / "search_multinode.sh"), "--config", "my.yaml"],
        env={
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHON": str(commands / "python"),
            "HOSTFILE": str(hostfile),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.split("\n")
    return words[words.index("--master_addr") + 1]


@pytest.mark.parametrize(
    ("content", "hosts", "first"),
    [
        (b"node-1 slots=8\nnode-2 slots=4\n", {"node-1": 8, "node-2": 4}, "node-1"),
        (b"amd@10.0.0.10 slots=2\nroot@h slots=1", {"amd@10.0.0.10": 2, "root@h": 1}, "10.0.0.10"),
        (b"# all\r\n\r\na_b@h.x slots=1\r\nh2\tslots=2\r\n", {"a_b@h.x": 1, "h2": 2}, "h.x"),
        (b"  h1   slots=2 # the first\n#h0 slots=1\n", {"h1": 2}, "h1"),
        (b"h1 slots=2 max_slots=4\nh2 slots=2 max-slots=2\n", {"h1": 2, "h2": 2}, "h1"),
        (b"me@fe80::1 slots=1\n", {"me@fe80::1": 1}, "fe80::1"),
    ],
)
def test_hosts_as_deepspeed_reads_them(
    tmp_path: Path, content: bytes, hosts: dict[str, int], first: str
) -> None:
    file = tmp_path / "hosts of mine"
    file.write_bytes(content)
    assert read_hostfile(file) == hosts == dict(fetch_hostfile(str(file)))
    assert launch(tmp_path, file) == first
    assert launch(tmp_path, file, MASTER_ADDR="me@10.1.1.1") == "10.1.1.1"


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")
def test_an_alias_of_ssh_is_given_as_the_host_that_it_stands_for(tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text("Host worker-1\n  HostName 10.0.0.7\n  User me\n")
    (tmp_path / "hostfile").write_text("worker-1 slots=8\nworker-2 slots=8\n")
    options = f"-F {tmp_path}/ssh_config"
    address = launch(tmp_path, tmp_path / "hostfile", PDSH_SSH_ARGS_APPEND=options)
    assert address == "10.0.0.7"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no host"),
        (b"# none\n", "names no host"),
        (b"h1\n", r":1: found 'h1'; write HOST slots=RANKS"),
        (b"h1 slots=0\n", "write HOST slots"),
        (b"h1 slots=-1\n", "write HOST slots"),
        (b"h1 slots=two\n", "write HOST slots"),
        ("h1 slots=\N{SUPERSCRIPT TWO}".encode(), "write HOST slots"),
        (b"ok slots=1\nh1 max_slots=4 slots=2\n", ":2: found"),
        (b"h1 slots=9999999999999999999999\n", "write HOST slots"),
        (b"-oProxyCommand=reboot slots=1\n", "write HOST slots"),
        (b"h;reboot slots=1\n", "write HOST slots"),
        (b"$(reboot) slots=1\n", "write HOST slots"),
        (b"'h' slots=1\n", "write HOST slots"),
        (b"a@@b slots=1\n", "write HOST slots"),
        (b"h slots=1\nh slots=1\n", ":2: h is named twice"),
        (b"a@h slots=1\nb@h slots=1\n", ":2: b@h is named twice"),
        (b"h\xff slots=1\n", "invalid UTF-8 at byte 2"),
        ("h slots=1\n".encode("utf-16"), "UTF-16"),
        (b"\xef\xbb\xbfh slots=1\n", "byte-order mark"),
        (b"h\0 slots=1\n", "write HOST slots"),
        (b"h1:2222 slots=1\n", ":1: .*no place for a port"),
        (b"me@h1:22 slots=1\n", "no place for a port"),
        (b"[fe80::1]:22 slots=1\n", "no place for a port"),
        (b"[fe80::1] slots=1\n", "without brackets"),
        (b"node[1-4] slots=8\n", "one host a line"),
        (b"Node-1 slots=1\nnode-1 slots=1\n", ":2: node-1 is named twice"),
        (b"h1 slots=1\na@H1. slots=1\n", ":2: a@H1. is named twice"),
        (b"localhost slots=1\nh2 slots=1\n", "localhost means every host itself"),
        (b"h2 slots=1\nme@127.0.0.1 slots=1\n", "me@127.0.0.1 means every host itself"),
        (b"h2 slots=1\n::1 slots=1\n", "::1 means every host itself"),
    ],
)
def test_what_is_no_hostfile(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "hostfile").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_hostfile(tmp_path / "hostfile")


def started_by_torchrun(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`search.sh` with what would start torchrun printed, and the rest of Python as it is."""
    commands = tmp_path / "bin"
    commands.mkdir(exist_ok=True)
    (commands / "python").write_text(
        '#!/bin/bash\nif [[ "$*" == *check-hosts* ]]; then echo /run/config.yaml; '
        f'elif [ "$1" = - ]; then exec {sys.executable} -; else echo "$@"; fi\n'
    )
    (commands / "python").chmod(0o755)
    hidden = {name: "" for name in VISIBLE if name not in environment}
    return subprocess.run(
        ["bash", str(LAUNCH / "search.sh"), "--config", "my.yaml"],
        env={
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHON": str(commands / "python"),
            "PYTHONPATH": str(LAUNCH.parent),
            "LAUNCHER": "torchrun",
            **hidden,
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_torchrun_gets_a_rank_for_each_device(tmp_path: Path) -> None:
    done = started_by_torchrun(tmp_path)
    assert "--nproc-per-node 2 -m megatron_fastmix.cli search" in done.stdout
    assert "found no accelerator; training on 2 CPU ranks" in done.stderr
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    done = started_by_torchrun(tmp_path, CUDA_VISIBLE_DEVICES="0,1,2")
    assert "--nproc-per-node 3 -m" in done.stdout
    assert done.stderr == ""
    done = started_by_torchrun(tmp_path, RANKS="5")
    assert "--nproc-per-node 5 -m" in done.stdout


@pytest.mark.parametrize("ranks", ["0", "-1", "two"])
def test_a_number_of_ranks_that_is_none(tmp_path: Path, ranks: str) -> None:
    done = started_by_torchrun(tmp_path, RANKS=ranks)
    assert done.returncode == 2
    assert f"RANKS is {ranks}; use 1 or more" in done.stderr
    assert done.stdout == ""


def batch_script(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`search.sbatch` with stubs that say what they are given."""
    commands = tmp_path / "bin"
    commands.mkdir(exist_ok=True)
    (commands / "scontrol").write_text("#!/bin/sh\necho node-1\n")
    (commands / "python").write_text(
        '#!/bin/sh\necho "tasks $SLURM_NTASKS nodes $SLURM_JOB_NUM_NODES" >&2\necho config.yaml\n'
    )
    (commands / "srun").write_text('#!/bin/sh\necho "srun $MASTER_ADDR"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    return subprocess.run(
        ["bash", str(LAUNCH / "search.sbatch"), "--config", "my.yaml"],
        env={
            "PATH": f"{commands}:{os.environ['PATH']}",
            "PYTHON": str(commands / "python"),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_batch_script_outside_of_a_job(tmp_path: Path) -> None:
    done = batch_script(tmp_path)
    assert done.returncode == 2
    assert "start it with: sbatch launch/search.sbatch" in done.stderr
    assert "unbound" not in done.stderr


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"SLURM_NTASKS": "16", "SLURM_JOB_NUM_NODES": "2"}, "tasks 16 nodes 2"),
        ({"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}, "tasks 16 nodes 2"),
        ({"SLURM_JOB_NUM_NODES": "3", "SLURM_TASKS_PER_NODE": "4(x3)"}, "tasks 12 nodes 3"),
        ({}, "tasks 1 nodes 1"),
    ],
)
def test_the_batch_script_with_what_versions_of_slurm_set(
    tmp_path: Path, environment: dict[str, str], said: str
) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-[1-2]"}
    done = batch_script(tmp_path, **job, **environment)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert "srun node-1" in done.stdout


def test_check_hosts_outside_of_a_job(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_NTASKS", raising=False)
    assert main(["check-hosts", "--srun", "--config", str(config_file)]) == 2
    assert re.search("SLURM_NTASKS is ''.*search.sbatch", capsys.readouterr().err)


@pytest.mark.parametrize("flags", [["--seeds", "3"], ["--num-ranks=2"]])
def test_flags_of_search_alone_say_what_to_do(
    config_file: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    assert main(["check-hosts", "--config", str(config_file), *flags]) == 2
    name = flags[0].split("=")[0]
    assert f"{name}: is no flag of the launch scripts; " in capsys.readouterr().err


@pytest.mark.parametrize("line", ["", "# NCCL_DEBUG=INFO", "export A=1", "A"])
def test_what_the_launcher_would_not_take_for_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no ssh
    Path(".deepspeed_env").write_text(f"A=1\n{line}\nB=2\n")
    with pytest.raises(ConfigError, match=rf"\.deepspeed_env:2: found '{line}'"):
        ask_over_ssh(["true"], "token", hosts=["h1"])
    Path(".deepspeed_env").write_text("A=1\nB = 2 3\n")
    assert "cannot be asked" in ask_over_ssh(["true"], "token", hosts=["h1"])["h1"]["problems"][0]


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ("^lo,docker", True),  # all of the list are left out, not the first alone
        ("lo", True),
        ("=lo,ib9", True),
        ("ib9,ib8", False),
        ("=ib9", False),
    ],
)
def test_interfaces_as_nccl_takes_them(
    monkeypatch: pytest.MonkeyPatch, wanted: str, fits: bool
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", wanted)
    assert bool(_check_interfaces()) is not fits
