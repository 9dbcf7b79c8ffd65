"""Which ranks are still there, once a collective has failed.

A collective says that a peer is missing, not which. Every rank leaves its host and process in the
rendezvous store at the start; where a collective fails, those that live sign there again, and who
does not is named. What several ranks of a host have to say is said by the first of them. Costs
nothing while all goes well.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

WAIT_SECONDS = 10.0
"""Ranks notice a failure about together: those of one collective have the same time limit."""


def register() -> None:
    """Says in the store where this rank runs. Every rank must call; no collective."""
    if dist.is_initialized():
        _store().set(f"fastmix/home/{dist.get_rank()}", f"{socket.gethostname()} {os.getpid()}")


def missing_ranks(wait_seconds: float = WAIT_SECONDS) -> list[str]:
    """The ranks that do not sign within `wait_seconds`, such as `rank 3 (process 71 on node-1)`.

    Every rank that lives must call.
    """
    if not dist.is_initialized():
        return []
    answer = [f"the rendezvous store, which rank 0 keeps, on {os.environ.get('MASTER_ADDR')}"]
    _wait_for(1.5 * wait_seconds, _ask, wait_seconds, answer)
    return answer


def is_first_to_say(text: str, *, otherwise: bool) -> bool:
    """Whether no rank of this host has asked this of `text` before; `otherwise` where there is no
    store."""
    answer = [otherwise]
    if dist.is_initialized():
        _wait_for(WAIT_SECONDS, _claim, text, answer)
    return answer[0]


def _wait_for(seconds: float, act: Callable[..., None], *arguments: Any) -> None:
    # In a thread, since the store's client waits for ever where the link to it is cut.
    thread = threading.Thread(target=act, args=arguments, daemon=True)
    thread.start()
    thread.join(seconds)


def _claim(text: str, answer: list[bool]) -> None:
    digest = hashlib.sha256(text.encode()).hexdigest()
    with contextlib.suppress(RuntimeError):  # as in `_ask`
        answer[0] = _store().add(f"fastmix/said/{socket.gethostname()}/{digest}", 1) == 1


def _ask(wait_seconds: float, answer: list[str]) -> None:
    """Replaces `answer` by the ranks that are missing, as soon as that is known."""
    rank, size = dist.get_rank(), dist.get_world_size()
    store = _store()
    with contextlib.suppress(RuntimeError):  # the store went with rank 0, or a launcher's agent
        store.set(f"fastmix/alive/{rank}", "1")
        deadline = time.monotonic() + wait_seconds
        waiting = set(range(size))
        while waiting and time.monotonic() < deadline:
            waiting = {other for other in waiting if not store.check([f"fastmix/alive/{other}"])}
            time.sleep(0.1)
        answer[:] = [_named(store, other) for other in sorted(waiting)]


def _named(store: dist.Store, rank: int) -> str:
    host, process = store.get(f"fastmix/home/{rank}").decode().rsplit(" ", 1)
    return f"rank {rank} (process {process} on {host})"


def _store() -> dist.Store:
    return distributed_c10d._get_default_store()
