"""`launch/search_multinode.sh` over two hosts, and the link between them cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.distributed.searches import load, run_search
from tests.distributed.test_launch import finish, lines, wait_for_step
from tests.multinode.hosts import Hosts, NotAllowed, two_hosts
from tests.processes import wait_until_gone

pytestmark = [pytest.mark.multinode, pytest.mark.slow]

SCRIPT = Path(__file__).parents[2] / "launch/search_multinode.sh"
VARIABLES = {
    "GLOO_SOCKET_IFNAME": "eth0",
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    try:
        with two_hosts(tmp_path_factory.mktemp("ssh")) as pair:
            yield pair
    except NotAllowed as reason:
        pytest.skip(f"no second host can be made here: {reason}")


@pytest.fixture
def place(hosts: Hosts, search_values: dict, tmp_path: Path) -> Path:
    """A directory to launch from: configuration, hostfile and `.deepspeed_env`."""
    # A collective that waits this long fails; a minute is the shortest.
    search_values["engine"] = {"distributed_timeout_minutes": 1}
    search_values["training"]["train_iters"] = 60
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search_values))
    (tmp_path / "hostfile").write_text("".join(f"{a} slots=1\n" for a in hosts.addresses))
    (tmp_path / ".deepspeed_env").write_text("".join(f"{k}={v}\n" for k, v in VARIABLES.items()))
    return tmp_path


def launch(hosts: Hosts, place: Path, launcher: str = "pdsh") -> subprocess.Popen[str]:
    settings = {
        "LAUNCHER": launcher,
        "MPI_ARGS": "--allow-run-as-root",
        "PYTHON": sys.executable,
        "HOSTFILE": str(place / "hostfile"),
        "PDSH_SSH_ARGS_APPEND": hosts.ssh_options,
    }
    without = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    return subprocess.Popen(
        hosts.command(0, ["bash", str(SCRIPT), "--config", "search.yaml"]),
        env={k: v for k, v in os.environ.items() if k not in without} | VARIABLES | settings,
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks(run_dir: Path) -> list[psutil.Process]:
    """The processes of this search's ranks and launchers, on both hosts."""
    marker = str(run_dir / "config.yaml")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if marker in (process.info["cmdline"] or [])
    ]


def test_a_search_over_two_hosts_survives_a_cut_link_and_equals_that_of_one(
    hosts: Hosts, place: Path, search_values: dict
) -> None:
    run_dir = place / "run"
    straight = load(search_values, run_dir=place / "straight")
    run_ranks(2, run_search, straight)

    cut = launch(hosts, place)
    wait_for_step(run_dir, 8, cut)
    processes = ranks(run_dir)
    assert len(processes) >= 4
    hosts.cut_link()
    code, output = finish(cut)
    assert code != 0
    assert f"rank 0 on {hosts.names[0]}: collective " in output, output
    assert "the same command resumes from the checkpoint of step" in output
    wait_until_gone(processes, 150)

    hosts.mend_link()
    # The other launcher, where it is installed, goes on with it.
    code, output = finish(launch(hosts, place, "openmpi" if shutil.which("mpirun") else "pdsh"))
    assert code == 0, output
    assert "2 hosts: same packages, configuration and data" in output
    found, expected = (
        json.loads((folder / "mixture.json").read_text())
        for folder in (run_dir, place / "straight")
    )
    assert [s["weight"] for s in found["sources"]] == [s["weight"] for s in expected["sources"]]
    assert lines(run_dir) == lines(place / "straight")


def test_a_host_that_differs_is_named(hosts: Hosts, place: Path, search_values: dict) -> None:
    first, second = hosts.addresses
    source = Path(search_values["sources"][1]["path"]).with_suffix(".idx")
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    (place / "changed.idx").write_bytes(content)
    with hosts.mounted(1, "--bind", str(place / "changed.idx"), str(source)):
        said = refused(hosts, place)
    assert f"{second}: source backward is " in said
    assert f"{first}: " not in said

    with hosts.mounted(1, "-t", "tmpfs", "tmpfs", str(place / "run")):
        said = refused(hosts, place)
    assert f"{second}: " in said
    assert "put run_dir on a file system that all hosts share" in said
    assert f"{first}: " not in said

    with hosts.mounted(1, "-t", "tmpfs", "tmpfs", str(source.parent)):
        said = refused(hosts, place)
    assert f"{second}: source forward: {source.parent / 'forward'}.idx: No such file" in said

    variables = place / ".deepspeed_env"
    variables.write_text("GLOO_SOCKET_IFNAME=ib0\n")
    said = refused(hosts, place)
    assert f"{second}: GLOO_SOCKET_IFNAME is ib0; it has lo, eth0" in said

    (place / "hostfile").write_text(f"{first} slots=1\n10.77.0.9 slots=1\n")
    assert "10.77.0.9: cannot be reached: " in refused(hosts, place)


def refused(hosts: Hosts, place: Path) -> str:
    process = launch(hosts, place)
    code, output = finish(process)
    assert code == 2, output
    assert "hosts are not fit for this run" in output
    return output
