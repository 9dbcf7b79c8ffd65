"""A search whose numbers stop being finite: what it says, and what it leaves on disk."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.checkpoint.store import complete_steps, latest
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.state import snapshot
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.distributed.searches import claim_once, load


def run_with_fault(config: SearchConfig, at: int) -> str:
    """Runs a search whose optimizer step `at` has an infinite gradient, while its loss is a number;
    returns the error, if any."""
    claim_once(config)
    search = Search(config)
    parameter = next(iter(search.engine.module.parameters()))
    parameter.register_hook(
        lambda gradient: gradient * float("inf") if search.step + 1 == at else gradient
    )
    try:
        search.run()
    except NonFiniteError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("ranks", "stage", "dtype"),
    [(2, 2, "fp32"), slow(2, 3, "fp32"), slow(1, 0, "bf16"), slow(2, 2, "bf16")],
)
def test_an_infinite_gradient_is_counted_and_said(
    search_values: dict, ranks: int, stage: int, dtype: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load(search_values, **{"engine.zero_stage": stage, "engine.dtype": dtype})
    assert run_ranks(ranks, run_with_fault, config, 4) == [""] * ranks
    folder = RunFolder(Path(config.run_dir))
    inner = [line for line in read_metrics(folder.metrics) if line["kind"] == "inner"]
    assert [line["nonfinite_gradients"] for line in inner] == [0, 0, 0, 1, 1, 1]
    assert [line["grad_norm"] is None for line in inner] == [False] * 3 + [True] + [False] * 2
    out = capfd.readouterr().out
    assert "step 4: the norm of the gradient is NaN or Inf" in out
    assert "number of skipped iterations:   1 | number of nan iterations:   1" in out
    state = latest(folder)
    assert state is not None
    assert state.nonfinite_gradients == 1


def test_parameters_that_are_no_numbers_displace_no_checkpoint(search_values: dict) -> None:
    """In fp32 without ZeRO, DeepSpeed takes the step, and the parameters become NaN."""
    changes = {"engine.zero_stage": 0, "output.save_interval": 1, "mixture.inner_steps": 6}
    config = load(search_values, **changes)
    (error,) = run_ranks(1, run_with_fault, config, 5)
    assert error.startswith("step 5: NaN or Inf in the proxy's parameters or Adam's moments, in ")
    assert complete_steps(RunFolder(Path(config.run_dir))) == [3, 4]


def save_a_broken_share(config: SearchConfig) -> str:
    """A checkpoint whose part on rank 1 alone holds an Inf."""
    claim_once(config)
    search = Search(config)
    search.run()
    arrays = snapshot(search.engine, search.group)
    if search.world.rank == 1:
        next(iter(arrays.values()))[:] = np.inf
    with pytest.raises(NonFiniteError) as caught:
        search.checkpoints.begin(replace(search.state(), step=7), arrays)
    return str(caught.value)


def test_a_share_that_is_no_number_on_one_rank_stops_all(search_values: dict) -> None:
    config = load(search_values)
    first, second = run_ranks(2, save_a_broken_share, config)
    assert "another rank's share" in first
    assert "embedding" in second
    assert complete_steps(RunFolder(Path(config.run_dir))) == [3, 6]


def lose_a_parameter(config: SearchConfig, where: str) -> str:
    """A parameter of rank 1 alone becomes NaN, as by a broken device: before optimizer step 4, or
    before the outer step after it."""
    claim_once(config)
    search = Search(config)
    owner, name, at = {
        "inner": (search.batches, "training", 3),
        "outer": (search.outer_loop, "step", 4),
    }[where]
    original = getattr(owner, name)

    def disturbed(*args: Any, **more: Any) -> Any:
        if search.world.rank == 1 and search.step == at:
            next(search.engine.module.parameters()).data.fill_(float("nan"))
        return original(*args, **more)

    setattr(owner, name, disturbed)
    before = search.mixture.logits.copy()
    with pytest.raises(NonFiniteError) as caught:
        search.run()
    assert np.isfinite(search.mixture.logits).all()
    assert search.mixture.logits.shape == before.shape
    return str(caught.value)


@pytest.mark.parametrize(
    ("where", "stage", "said"),
    [
        ("inner", 2, r"step 4: the loss of source forward is nan"),
        ("outer", 2, r"outer step 1: (target target: loss|source forward: ⟨v, ∇L⟩) is nan"),
        slow("inner", 0, r"step 4: the loss of source forward is nan"),
        slow("outer", 1, r"outer step 1: (target target: loss|source forward: ⟨v, ∇L⟩) is nan"),
    ],
)
def test_nan_on_one_rank_stops_all_with_step_and_source(
    search_values: dict, where: str, stage: int, said: str
) -> None:
    config = load(search_values, **{"engine.zero_stage": stage})
    for message in run_ranks(2, lose_a_parameter, config, where):
        assert re.search(said, message)
    assert complete_steps(RunFolder(Path(config.run_dir))) == [3]
