"""Names of hosts in a hostfile: which ones mean the same, and which ones ssh or pdsh would not
understand."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from pathlib import Path

from megatron_fastmix.errors import ConfigError


def bare_name(host: str) -> str:
    """The name without its user, as DNS compares it."""
    return host.rpartition("@")[2].casefold().rstrip(".")


def check_loopback(path: str | Path, hosts: Collection[str]) -> None:
    """Raises `ConfigError` where one of several hosts has a name by which each means itself."""
    loops = [host for host in hosts if _is_loopback(bare_name(host))]
    if loops and len(hosts) > 1:
        raise ConfigError(
            f"{path}: {loops[0]} means every host itself, so that the others would look for it at "
            "home; write the name by which the others reach it"
        )


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.startswith("localhost."):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def unfit_name(host: str) -> str | None:
    """Why neither ssh nor the launcher would reach the host, and what to write; None where they
    may."""
    name = host.rpartition("@")[2]
    if re.fullmatch(r"(\[.*\]|[^:]+):[0-9]+", name):
        return (
            "a hostfile has no place for a port: give it in ~/.ssh/config, or in "
            "PDSH_SSH_ARGS_APPEND as -p PORT"
        )
    if name.startswith("[") and name.endswith("]"):
        return "ssh takes an IPv6 address without brackets"
    if "[" in name or "]" in name:
        return "DeepSpeed reads one host a line: write the hosts of the range one by one"
    return None
