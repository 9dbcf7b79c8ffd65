"""What the host asks of the device in an optimizer step: on an accelerator each such read waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.loop import Search
from tests.conftest import SOURCES
from tests.distributed.searches import load

READS = {
    *("cpu", "numpy", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__"),
    *("__index__", "__array__", "masked_select", "unique", "where"),
}


class CountReads(TorchFunctionMode):
    """Counts the calls that bring numbers of tensors to the host, as if they were elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in READS and not (name == "where" and len(args) > 1):
            self.reads[name] += 1
        return function(*args, **(kwargs or {}))


def reads_of_a_step(config: Any) -> tuple[int, dict[str, int]]:
    """Micro-batches of a step, and the reads in one, DeepSpeed's own left out."""
    search = Search(config)
    counting = CountReads()
    for name in ("backward", "step"):
        original = getattr(search.engine, name)

        def uncounted(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            before = counting.reads.copy()
            result = original(*args, **kwargs)
            counting.reads = before
            return result

        setattr(search.engine, name, uncounted)
    ones = np.ones(len(SOURCES))
    inner_step(search.engine, search.batches, 0, ones)
    with counting:
        sums, _ = inner_step(search.engine, search.batches, 1, ones)
    assert (sums > 0).all()
    return search.batches.accumulation_steps, dict(counting.reads)


@pytest.mark.parametrize("answers", [False, True])
def test_a_step_reads_its_losses_once(
    search_values: dict, answer_corpora: Any, answers: bool
) -> None:
    if answers:
        search_values["sources"] = [
            {"name": name, "path": str(answer_corpora / name)} for name in SOURCES
        ]
        search_values["targets"] = [{"name": "target", "path": str(answer_corpora / "target")}]
    ((micro_batches, reads),) = run_ranks(1, reads_of_a_step, load(search_values))
    assert micro_batches == 4
    assert reads == {"cpu": 1, "numpy": 1}


def test_the_counter_sees_a_read() -> None:
    with CountReads() as counting:
        assert bool(torch.ones(2).sum() > 1)
        assert torch.ones(1).item() == 1
    assert counting.reads["__bool__"] + counting.reads["item"] == 2
