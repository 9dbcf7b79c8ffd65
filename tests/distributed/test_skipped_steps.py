"""Steps that DeepSpeed skips, since their gradient is no number: the learning rate goes by the
step, and a search that is resumed after one equals one that was not stopped."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.distributed.searches import claim_once, load, parameters_of

pytestmark = pytest.mark.slow


def run_to(config: SearchConfig, fault: int, stop_at: int | None, on_rank: int | None) -> Any:
    """Runs a search whose optimizer step `fault` has an infinite gradient, on one rank or all of
    them; stops after `stop_at` steps."""
    claim_once(config)
    search = Search(config)
    parameter = next(iter(search.engine.module.parameters()))
    mine = on_rank in (None, search.world.rank)
    parameter.register_hook(
        lambda gradient: gradient * float("inf") if mine and search.step + 1 == fault else gradient
    )
    rates: list[float] = []
    original = search.batches.training

    def training(step: int, micro_step: int) -> Any:
        if micro_step == 0:
            rates.append(search.engine.get_lr()[0])
        search.stop_signalled = stop_at is not None and step + 1 >= stop_at
        return original(step, micro_step)

    search.batches.training = training  # type: ignore[method-assign]
    search.run()
    return {
        "rates": rates,
        "logits": search.mixture.logits.tolist(),
        "parameters": parameters_of(search).tolist(),
        "bad": search.nonfinite_gradients,
    }


@pytest.mark.parametrize(
    ("stage", "dtype", "on_rank"),
    [
        (2, "fp32", 1),
        slow(1, "bf16", None),
        slow(3, "fp32", None),
        slow(2, "bf16", 0),
        slow(0, "bf16", 1),
    ],
)
def test_a_resume_after_a_skipped_step(
    search_values: dict, tmp_path: Any, stage: int, dtype: str, on_rank: int | None
) -> None:
    changes = {"engine.zero_stage": stage, "engine.dtype": dtype, "training.lr_warmup_iters": 4}
    straight = load(search_values, run_dir=tmp_path / "straight", **changes)
    stopped = load(search_values, run_dir=tmp_path / "stopped", **changes)
    plain = load(search_values, run_dir=tmp_path / "plain", **changes)
    whole = run_ranks(2, run_to, straight, 2, None, on_rank)[0]
    undisturbed = run_ranks(2, run_to, plain, 99, None, None)[0]
    first = run_ranks(2, run_to, stopped, 2, 3, on_rank)[0]
    rest = run_ranks(2, run_to, stopped, 2, None, on_rank)[0]
    assert (whole["bad"], undisturbed["bad"]) == (1, 0)
    assert whole["rates"] == undisturbed["rates"]
    assert first["rates"] + rest["rates"] == whole["rates"]
    assert rest["logits"] == whole["logits"]
    assert rest["parameters"] == whole["parameters"]
    assert rest["parameters"] != undisturbed["parameters"]


@pytest.mark.parametrize(("stage", "dtype"), [(2, "fp32"), slow(1, "bf16"), slow(3, "fp32")])
def test_a_stop_before_adam_has_taken_a_step(
    search_values: dict, tmp_path: Any, stage: int, dtype: str
) -> None:
    """It has no moments then, and its checkpoint says so."""
    changes = {"engine.zero_stage": stage, "engine.dtype": dtype}
    straight = load(search_values, run_dir=tmp_path / "straight", **changes)
    stopped = load(search_values, run_dir=tmp_path / "stopped", **changes)
    whole = run_ranks(2, run_to, straight, 1, None, None)[0]
    assert run_ranks(2, run_to, stopped, 1, 1, None)[0]["bad"] == 1
    rest = run_ranks(2, run_to, stopped, 1, None, None)[0]
    assert rest["parameters"] == whole["parameters"]
    assert rest["logits"] == whole["logits"]


def run_with_first_steps_skipped(config: SearchConfig) -> str:
    """What a search says whose first two optimizer steps have an infinite gradient."""
    claim_once(config)
    search = Search(config)
    parameter = next(iter(search.engine.module.parameters()))
    parameter.register_hook(
        lambda gradient: gradient * float("inf") if search.step < 2 else gradient
    )
    try:
        search.run()
    except NonFiniteError as error:
        return str(error)
    return "complete"


@pytest.mark.parametrize(("stage", "dtype"), [slow(1, "bf16"), (2, "fp32"), slow(3, "fp32")])
def test_adam_preconditions_after_its_first_step(
    search_values: dict, tmp_path: Any, stage: int, dtype: str
) -> None:
    changes = {
        "engine.zero_stage": stage,
        "engine.dtype": dtype,
        "hypergradient.preconditioner": "adam",
        "hypergradient.estimator": "finite_difference",
    }
    late = load(search_values, run_dir=tmp_path / "late", **changes, **{"mixture.inner_steps": 3})
    assert run_ranks(2, run_with_first_steps_skipped, late) == ["complete", "complete"]
    early = load(search_values, run_dir=tmp_path / "early", **changes, **{"mixture.inner_steps": 1})
    for said in run_ranks(2, run_with_first_steps_skipped, early):
        assert "all 1 steps so far had a gradient that is no number" in said
