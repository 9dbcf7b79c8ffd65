"""What the host asks of the device in an optimizer step: on an accelerator each such read waits."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import deepspeed
import megatron.core
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import megatron_fastmix
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.conftest import SOURCES
from tests.distributed.searches import load

READS = {
    *("cpu", "numpy", "item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__"),
    *("__array__", "__format__", "is_nonzero", "equal", "allclose", "masked_select", "unique"),
    "where",
}
OWNERS = {
    "ours": Path(megatron_fastmix.__file__).parent,
    "DeepSpeed": Path(deepspeed.__file__).parent,
    "Megatron": Path(megatron.core.__file__).parent,
    # AdamW reads its count of steps, which it keeps on the host wherever the parameters are.
    "AdamW": Path(torch.optim.__file__).parent,
}


def owner() -> str:
    """Whose code asks: the innermost of the packages that are told apart."""
    frame = sys._getframe(2)
    while frame is not None:
        for name, folder in OWNERS.items():
            if folder in Path(frame.f_code.co_filename).parents:
                return name
        frame = frame.f_back  # type: ignore[assignment]
    return "others"


class CountReads(TorchFunctionMode):
    """Counts the calls that bring numbers of tensors to the host, as if they were elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[tuple[str, str]] = Counter()
        """By owner and name."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        if name in READS and not (name == "where" and len(args) > 1):
            self.reads[owner(), name] += 1
        return function(*args, **(kwargs or {}))


class CountCollectives(TorchDispatchMode):
    """Counts collectives, by owner and name."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "c10d":
            self.collectives[owner(), function._schema.name.removeprefix("c10d::")] += 1
        return function(*args, **(kwargs or {}))


def counts_of_a_step(config: Any) -> tuple[int, dict[str, dict[tuple[str, str], int]]]:
    """Micro-batches of a step; reads and collectives of one whole step by owner: those until
    DeepSpeed has made the update, and those after."""
    search = Search(config)
    counted: dict[str, dict[tuple[str, str], int]] = {}
    with search.open_report() as report:
        search.inner_step(report)  # what happens once alone
        reads, collectives = CountReads(), CountCollectives()
        step, done = search.engine.step, []

        def counted_step() -> None:
            step()
            done.append(True)
            if len(done) == search.batches.accumulation_steps:
                counted["reads before"] = dict(reads.reads)
                counted["collectives before"] = dict(collectives.collectives)
                reads.reads.clear()
                collectives.collectives.clear()

        search.engine.step = counted_step
        with reads, collectives:
            search.inner_step(report)
    counted["reads after"] = dict(reads.reads)
    counted["collectives after"] = dict(collectives.collectives)
    return search.batches.accumulation_steps, counted


def of(counts: dict[tuple[str, str], int], name: str) -> dict[str, int]:
    """Those of one owner."""
    return {what: number for (whose, what), number in counts.items() if whose == name}


@pytest.mark.parametrize(
    ("stage", "dtype", "answers"),
    [
        (2, "bf16", False),
        (3, "bf16", True),
        slow(0, "fp32", False),
        slow(1, "bf16", False),
        slow(2, "fp32", True),
        slow(3, "fp32", False),
    ],
)
def test_a_step_waits_to_log_and_not_before(
    search_values: dict, answer_corpora: Path, stage: int, dtype: str, answers: bool
) -> None:
    if answers:
        search_values["sources"] = [
            {"name": name, "path": str(answer_corpora / name)} for name in SOURCES
        ]
        search_values["targets"] = [{"name": "target", "path": str(answer_corpora / "target")}]
    changes = {"engine.zero_stage": stage, "engine.dtype": dtype, "training.global_batch_size": 24}
    for micro_batches, counted in run_ranks(2, counts_of_a_step, load(search_values, **changes)):
        assert micro_batches == 4
        # Ours: nothing until the update is made; then the losses, their one reduction, the norm.
        assert of(counted["reads before"], "ours") == {}
        assert of(counted["collectives before"], "ours") == {}
        norm = {"__float__": 1} if stage else {}
        assert of(counted["reads after"], "ours") == {"cpu": 2, "numpy": 2, **norm}
        assert of(counted["collectives after"], "ours") == {"allreduce_": 1}
        # DeepSpeed's: whether the gradients' norm is finite, for the whole step and not for each of
        # its micro-batches.
        assert sum(of(counted["reads before"], "DeepSpeed").values()) <= 4
        reduced = of(counted["collectives before"], "DeepSpeed")
        assert (sum(reduced.values()) > 0) and set(reduced) <= {
            *("allreduce_", "reduce_scatter_", "_reduce_scatter_base_", "_allgather_base_"),
        }
        assert of(counted["reads after"], "DeepSpeed") == {}
        assert of(counted["collectives after"], "DeepSpeed") == {}
        assert of(counted["reads before"], "others") == of(counted["reads after"], "others") == {}


def test_the_counters_see_reads_and_collectives() -> None:
    with CountReads() as counting:
        assert bool(torch.ones(2).sum() > 1)
        assert torch.ones(1).item() == 1
    assert counting.reads == {("others", "__bool__"): 1, ("others", "item"): 1}
    assert run_ranks(2, collectives_of_a_sum) == [{("ours", "allreduce_"): 1}] * 2


def collectives_of_a_sum() -> dict[tuple[str, str], int]:
    with CountCollectives() as counting:
        assert DataParallelGroup().sum(np.ones(2)).tolist() == [2, 2]
    return dict(counting.collectives)
