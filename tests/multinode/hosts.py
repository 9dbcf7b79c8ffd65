"""Two hosts on one machine: network namespaces joined by a cable, each with its address and sshd.

They share the file system and the process table, as two machines over NFS share the former.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

NEEDED = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "pdsh": "pdsh",
}
"""Commands and the Debian packages that have them."""

PORT = 2222


class NotAllowed(Exception):
    """Such hosts cannot be made here; says why."""


@dataclass(frozen=True, kw_only=True)
class Hosts:
    names: tuple[str, str]
    """Network namespaces; also the hosts' own names."""
    addresses: tuple[str, str]
    servers: tuple[int, ...]
    """Process ids of the sshds."""
    ssh_options: str

    def command(self, host: int, command: Sequence[str]) -> list[str]:
        """`command` as run on a host."""
        return [*_on(self.names[host]), *command]

    @contextlib.contextmanager
    def mounted(self, host: int, *arguments: str) -> Iterator[None]:
        """`mount ARGUMENTS` as one host alone sees it; the last one is the place."""
        inside = ("nsenter", "-t", str(self.servers[host]), "-m")
        _run(*inside, "mount", *arguments)
        try:
            yield
        finally:
            _run(*inside, "umount", arguments[-1])

    def cut_link(self) -> None:
        _run("ip", "-n", self.names[1], "link", "set", "eth0", "down")

    def mend_link(self) -> None:
        """Returns when the hosts reach each other again: the kernel takes its time to find out."""
        _run("ip", "-n", self.names[1], "link", "set", "eth0", "up")
        self.wait_for_servers()

    def wait_for_servers(self) -> None:
        """Returns when each host's sshd answers the other; `TimeoutExpired` after a minute."""
        for host, address in enumerate(reversed(self.addresses)):
            ask = f"until : < /dev/tcp/{address}/{PORT}; do sleep 0.1; done"
            _run(*self.command(host, ["bash", "-c", ask]), timeout=60)


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Raises `NotAllowed` where namespaces or packages are missing."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [package for command, package in NEEDED.items() if not shutil.which(command)]
    if missing:
        raise NotAllowed(f"needs the packages {' '.join(missing)}")
    if os.geteuid():
        raise NotAllowed("needs root, for network namespaces")
    if any(line.startswith("root:!") for line in Path("/etc/shadow").read_text().splitlines()):
        raise NotAllowed("root's account is locked (`passwd -u root`), so no sshd lets it in")
    names = (f"fastmix-a-{os.getpid()}", f"fastmix-b-{os.getpid()}")
    addresses = ("10.77.0.1", "10.77.0.2")
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                _run("ip", "netns", "add", name)
                stack.callback(_run, "ip", "netns", "delete", name)
            ends = ("eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0")
            _run("ip", "link", "add", *ends, "netns", names[1])
        except subprocess.CalledProcessError as error:
            raise NotAllowed(f"network namespaces: {error.stderr.strip()}") from None
        for name, address in zip(names, addresses, strict=True):
            _run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")
        options = _make_keys(folder)
        servers = []
        for name, address in zip(names, addresses, strict=True):
            server = subprocess.Popen(
                [
                    *(*_on(name), str(shutil.which("sshd")), "-D", "-f", f"{folder}/sshd_config"),
                    *("-o", f"ListenAddress={address}:{PORT}"),
                ]
            )
            stack.callback(_end, server)
            servers.append(server.pid)
        pair = Hosts(names=names, addresses=addresses, servers=tuple(servers), ssh_options=options)
        pair.wait_for_servers()
        yield pair


def _on(name: str) -> list[str]:
    named = f'hostname {name} && exec "$@"'
    return ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", named, "sh"]


def _make_keys(folder: Path) -> str:
    for key in ("host_key", "user_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    Path("/run/sshd").mkdir(exist_ok=True)
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/user_key.pub\nPidFile none\n"
        "StrictModes no\nPermitRootLogin prohibit-password\nUsePAM no\n"
    )
    return (
        f"-i {folder}/user_key -p {PORT} -o StrictHostKeyChecking=no "
        "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    )


def _end(server: subprocess.Popen[bytes]) -> None:
    """Ends an sshd and what runs in its sessions."""
    family = [*psutil.Process(server.pid).children(recursive=True), psutil.Process(server.pid)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    server.wait()


def _run(*command: str, timeout: float | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout)
