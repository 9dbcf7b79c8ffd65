"""Whether the hosts of a run are fit for it, before any rank starts: reachable, with the same
package versions, configuration and data, and one run folder that all can write to.

Each host reports on itself (`host_report`); the reports are compared where the run is started.
Imports neither torch nor Megatron.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_fastmix.checkpoint.store import complete_steps
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
from megatron_fastmix.start.claim import check_content, check_folder, mark
from megatron_fastmix.start.host_report import PROBE_FOLDER, Report, report


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


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) == 64 else str(value)
