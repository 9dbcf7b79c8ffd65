"""The hostfile of DeepSpeed: hosts and their ranks."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.start.host_names import bare_name, check_loopback, unfit_name
from megatron_fastmix.text_files import read_file

# Nothing that ssh or a shell would take for more than a name.
_HOST_LINE = re.compile(
    r"(?P<host>(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_\[:][\w.:%\[\]-]*)\s+slots=(?P<slots>[0-9]{1,6})"
    r"(?:\s+max[-_]slots=[0-9]+)?",
    re.ASCII,
)


def read_hostfile(path: str | Path) -> dict[str, int]:
    """Hosts and their ranks, of lines `HOST slots=N` or `USER@HOST slots=N` as DeepSpeed reads
    them, which what mpirun knows besides may follow. Raises `ConfigError` with the line."""
    hosts: dict[str, int] = {}
    fix = "see launch/hostfile.example"
    content, text = read_file(path, "the hostfile", fix=fix, error=ConfigError)
    if content.startswith(codecs.BOM_UTF8):
        raise ConfigError(
            f"{path}: begins with a byte-order mark, which DeepSpeed takes for a part of the first "
            "host's name; save it as plain UTF-8"
        )
    # As Python's text mode, and so DeepSpeed, ends lines.
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        bare = line.split("#")[0].strip()
        if not bare:
            continue
        found = _HOST_LINE.fullmatch(bare)
        if found is None or int(found["slots"]) < 1:
            raise ConfigError(f"{path}:{number}: found {line!r}; write HOST slots=RANKS")
        host = found["host"]
        problem = unfit_name(host)
        if problem:
            raise ConfigError(f"{path}:{number}: found {line!r}; {problem}")
        if bare_name(host) in map(bare_name, hosts):
            raise ConfigError(f"{path}:{number}: {host} is named twice; name it once")
        hosts[host] = int(found["slots"])
    if not hosts:
        raise ConfigError(f"{path}: names no host; see launch/hostfile.example")
    check_loopback(path, hosts)
    return hosts
