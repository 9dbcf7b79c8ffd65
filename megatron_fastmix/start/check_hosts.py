"""Whether the hosts of a run are fit for it, before any rank starts: reachable, with the same
package versions, configuration and data, and one run folder that all can write to.

Each host reports on itself (`report`); the reports are compared where the run is started. Imports
neither torch nor Megatron.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_fastmix.checkpoint.identity import fingerprint_of, sample_bytes_for
from megatron_fastmix.checkpoint.store import complete_steps
from megatron_fastmix.config import SearchConfig, dump_config, load_config
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError, FastMixError
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
from megatron_fastmix.start.claim import check_content, check_folder, mark
from megatron_fastmix.start.host_names import bare_name, check_loopback, unfit_name
from megatron_fastmix.start.limits import check_limits
from megatron_fastmix.storage import reason_of
from megatron_fastmix.text_files import parse_json, read_file, read_text

PACKAGES = ("megatron-fastmix", "megatron-core", "deepspeed", "torch", "numpy", "sentencepiece")
_OF_KIND = {"huggingface": ("transformers", "peft")}
"""Packages besides, by proxy.kind."""
PROBE_FOLDER = ".hosts"
"""Folder in the run folder where hosts show each other that they share it."""

_SAMPLE_BYTES = 4 << 30
"""Of all datasets together, where a start reads less."""
_ANSWER_SECONDS = 600
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")

# Nothing that ssh or a shell would take for more than a name.
_HOST_LINE = re.compile(
    r"(?P<host>(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_\[:][\w.:%\[\]-]*)\s+slots=(?P<slots>[0-9]{1,6})"
    r"(?:\s+max[-_]slots=[0-9]+)?",
    re.ASCII,
)

Report = dict[str, Any]
"""JSON: `host`, `facts` (what must be equal everywhere) and `problems` (this host's own)."""


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


def report(config: SearchConfig, token: str, *, compared: bool = True) -> Report:
    """This host's part. `token` names the file that the starting host left in the run folder.
    Unless it is `compared`, no more is read of each dataset than shows that it is there."""
    packages = (*PACKAGES, *_OF_KIND.get(config.proxy.kind, ()))
    facts = {
        "Python": platform.python_version(),
        **{f"package {name}": _version(name) for name in packages},
        "configuration": hashlib.sha256(dump_config(config).encode()).hexdigest(),
        **{key: _content(path) for key, path in _paths(config).items()},
    }
    problems = []
    sample = _sample_bytes(config) if compared else 0
    for kind, datasets in (("source", config.sources), ("target", config.targets)):
        for dataset in datasets:
            try:
                prefixes = dataset.prefixes()
                facts[f"{kind} {dataset.name}"] = fingerprint_of(prefixes, sample)
            except OSError as error:
                problems.append(f"{kind} {dataset.name}: {error.filename}: {error.strerror}")
            except FastMixError as error:
                problems.append(str(error))
    try:
        facts["tokenizer"] = load_tokenizer(**vars(config.tokenizer)).sha256
    except FastMixError as error:
        problems.append(f"tokenizer: {error}")
    try:
        check_limits(config)
    except FastMixError as error:
        problems += [] if str(error) in problems else [str(error)]
    problems += _check_folder(config, token) + _check_interfaces()
    return {"host": socket.gethostname(), "facts": facts, "problems": problems}


def check_hosts(
    config: SearchConfig,
    ask: Callable[[str], dict[str, Report]],
    *,
    accept_changes: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Compares the hosts' reports with this host's; `ask(token)` gets them, by host.

    Claims the run folder, takes back an earlier request to stop, and returns the configuration in
    it. Raises `ConfigError` that names each host that differs and in what.
    """
    RunLock(RunFolder(Path(config.run_dir))).check_free()
    run = check_folder(config, accept_changes=accept_changes)
    if complete_steps(run):
        tokenizer = load_tokenizer(**vars(config.tokenizer))
        check_content(run, config, tokenizer.sha256, accept_changes=accept_changes)
    mark(run, config)
    run.clear_stop()
    folder = run.path
    token = uuid.uuid4().hex
    probes = folder / PROBE_FOLDER
    probes.mkdir(exist_ok=True)
    (probes / token).touch()
    try:
        theirs = ask(token)
        ours = report(config, token, compared=bool(theirs))
        seen = {path.name for path in probes.iterdir()}
    finally:
        for path in probes.glob(f"{token}*"):
            path.unlink(missing_ok=True)
    problems = compare(ours, theirs)
    problems += [
        f"{host}: what it writes to {folder} is not seen here; put run_dir on a file system that "
        "all hosts share"
        for host, answer in theirs.items()
        if not answer["problems"] and answer["wrote"] not in seen
    ]
    if problems:
        raise ConfigError("hosts are not fit for this run:\n  " + "\n  ".join(problems))
    count = max(1, len(theirs))
    hosts = "1 host" if count == 1 else f"{count} hosts"
    say(f"{hosts}: same packages, configuration and data; {folder} can be written to")
    return run.config


def compare(ours: Report, theirs: dict[str, Report]) -> list[str]:
    """What is wrong, by host. Where hosts disagree, those that differ from most are named."""
    problems = [f"this host: {problem}" for problem in ours["problems"]]
    for host, answer in theirs.items():
        problems += [f"{host}: {problem}" for problem in answer["problems"]]
    reports = {"this host": ours["facts"]}
    reports |= {host: answer["facts"] for host, answer in theirs.items() if "facts" in answer}
    for what in ours["facts"]:
        values = {host: facts.get(what) for host, facts in reports.items() if what in facts}
        usual, _ = Counter(values.values()).most_common(1)[0]
        problems += [
            f"{host}: {what} is {_short(value)}, elsewhere {_short(usual)}"
            for host, value in values.items()
            if value != usual
        ]
    return problems


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


def _check_folder(config: SearchConfig, token: str) -> list[str]:
    probes = Path(config.run_dir) / PROBE_FOLDER
    if not (probes / token).exists():
        return [_not_shared(config.run_dir)]
    try:
        (probes / wrote(token)).touch()
    except OSError as error:
        return [f"cannot write to {config.run_dir}: {reason_of(error)}"]
    return []


def wrote(token: str) -> str:
    """Name of the file that this host leaves as its answer."""
    return f"{token}.{socket.gethostname()}.{os.getpid()}"


def _check_interfaces() -> list[str]:
    present = [name for _, name in socket.if_nameindex()]
    problems = []
    for variable in _INTERFACE_VARIABLES:
        wanted = os.environ.get(variable, "")
        # NCCL takes prefixes, and =NAME and ^NAME besides.
        plain = [name for name in wanted.split(",") if name and name[0] not in "=^"]
        if plain and not any(have.startswith(name) for name in plain for have in present):
            problems.append(f"{variable} is {wanted}; it has {', '.join(present)}")
    return problems


def _environment_lines() -> list[str]:
    """NAME=VALUE lines of the `.deepspeed_env` that DeepSpeed's launcher will read."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    lines = []
    for folder in (Path.home(), Path()):
        file = folder / name
        if file.is_file():
            text = read_text(file, "the variables for the ranks", error=ConfigError)
            lines += [line for line in text.splitlines() if "=" in line]
    return lines


def _sample_bytes(config: SearchConfig) -> int:
    """More than a start reads, where that takes no longer: hosts are compared once."""
    try:
        count = len(config.prefixes())
    except FastMixError:
        count = 1  # the source is named below
    return max(_SAMPLE_BYTES // count, sample_bytes_for(count))


def _paths(config: SearchConfig) -> dict[str, Path]:
    """What the ranks of every host read besides the datasets, by key; a model's name on the hub is
    no path."""
    named = {
        "proxy.path": config.proxy.path,
        "proxy.checkpoint": config.proxy.checkpoint,
        "engine.deepspeed_config": config.engine.deepspeed_config,
    }
    return {key: Path(path) for key, path in named.items() if path is not None}


def _content(path: Path) -> str:
    """A digest of a file, or of a folder's names and sizes."""
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*")):
                if file.is_file():
                    digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        else:
            digest.update(path.read_bytes())
    except OSError as error:
        return error.strerror or "unreadable"
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)


def print_report(config_path: str, token: str) -> None:
    """Prints this host's report as one line of JSON; `config_path` is in the run folder."""
    if Path(config_path).exists():
        answer = report(load_config(config_path), token)
    else:
        problem = _not_shared(Path(config_path).parent)
        answer = {"host": socket.gethostname(), "facts": {}, "problems": [problem]}
    print(json.dumps(answer | {"wrote": wrote(token)}), flush=True)


def _not_shared(folder: str | Path) -> str:
    return (
        f"{folder} here is not that of the starting host; put run_dir on a file system that all "
        "hosts share"
    )
