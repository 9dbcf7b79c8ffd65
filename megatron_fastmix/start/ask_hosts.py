"""The reports of other hosts, over ssh or in a job of SLURM."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.start.host_report import Report
from megatron_fastmix.text_files import parse_json, read_text

_ANSWER_SECONDS = 600


def ask_nobody(command: Sequence[str], token: str) -> dict[str, Report]:
    """For a run on this host alone."""
    return {}


def ask_over_ssh(command: Sequence[str], token: str, *, hosts: Sequence[str]) -> dict[str, Report]:
    """The hosts' reports; `command`, run in this directory there, prints them."""
    full = [*command, "--token", token]
    with ThreadPoolExecutor(max_workers=min(64, len(hosts))) as pool:
        return dict(zip(hosts, pool.map(lambda host: _ask_host(host, full), hosts), strict=True))


def ask_with_srun(command: Sequence[str], token: str) -> dict[str, Report]:
    """The reports of the nodes of this SLURM job; raises `ConfigError` where one gives none."""
    nodes = str(slurm_count("SLURM_JOB_NUM_NODES"))
    srun = ["srun", "--nodes", nodes, "--ntasks", nodes, "--ntasks-per-node", "1"]
    try:
        done = _run([*srun, *command, "--token", token])
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"srun: the nodes gave no report: {error}") from None
    reports = [answer for answer in map(_parse, done.stdout.splitlines()) if answer is not None]
    if len(reports) != int(nodes):
        raise ConfigError(
            f"srun: {len(reports)} of {nodes} nodes gave a report (exit code {done.returncode}): "
            f"{done.stderr.strip() or 'no message'}"
        )
    return {answer["host"]: answer for answer in reports}


def slurm_count(name: str) -> int:
    """A number that SLURM sets for a job. Raises `ConfigError` where it is not set."""
    text = os.environ.get(name, "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
        raise ConfigError(
            f"--srun: {name} is {text!r}; it is for jobs of SLURM: use launch/search.sbatch"
        )
    return int(text)


def _ask_host(host: str, command: Sequence[str]) -> Report:
    """The report of `host`, or one whose problem is that there is none."""
    options = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
    # In quotes: the value of a variable must not run as a command here.
    exports = [f"export {shlex.quote(line)};" for line in _environment_lines()]
    remote = " ".join([f"cd {shlex.quote(os.getcwd())} &&", *exports, shlex.join(command)])
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", *options, host, remote]
    try:
        done = _run(ssh)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problems": [f"cannot be asked: {error}"]}
    if done.returncode == 255:
        return {"problems": [f"cannot be reached: {done.stderr.strip() or 'ssh failed'}"]}
    for line in done.stdout.splitlines():
        answer = _parse(line)
        if answer is not None:
            return answer
    said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
    return {"problems": [f"{command[0]} gave no report (exit code {done.returncode}): {said}"]}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
    )


def _parse(line: str) -> Report | None:
    """The report in a line of output; None for another line, such as a greeting."""
    try:
        answer = parse_json(line)
        found = {key: answer[key] for key in ("host", "facts", "problems", "wrote")}
    except (ValueError, LookupError, TypeError):
        return None
    types = {"host": str, "facts": dict, "problems": list, "wrote": str}
    return found if all(isinstance(found[key], kind) for key, kind in types.items()) else None


def _environment_lines() -> list[str]:
    """NAME=VALUE lines of the `.deepspeed_env` that DeepSpeed's launcher will read. Raises
    `ConfigError` for any other line: an empty one ends the launcher, and a comment with = in it
    comments out all that it would run on the hosts, so that nothing starts and nobody says so."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    lines = []
    for folder in (Path.home(), Path()):
        file = folder / name
        if file.is_file():
            text = read_text(file, "the variables for the ranks", error=ConfigError)
            for number, line in enumerate(text.splitlines(), 1):
                if not re.match(r"\s*[A-Za-z_]\w*\s*=", line, re.ASCII):
                    raise ConfigError(
                        f"{file}:{number}: found {line!r}; DeepSpeed's launcher takes NAME=VALUE "
                        "lines alone, no comments and no empty ones: remove the line"
                    )
                lines.append(line)
    return lines
