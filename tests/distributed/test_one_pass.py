"""one_pass in a search: the same products on any number of ranks, and training left alone."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.hypergradient.one_pass import OnePass
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters
from tests.cases import slow
from tests.distributed.pretrained import MIXTRAL, QWEN3_MOE, fine_tuning_values
from tests.distributed.searches import load, plain_training, products_of, run_search

EXACT = {"engine.zero_stage": 0, "hypergradient.estimator": "per_source"}


def assert_same_products(values: dict, ranks: int, tolerance: float = 1e-4, **changes: Any) -> None:
    """Those of one_pass on `ranks` ranks are those of per_source on one, at every outer step."""
    run_dir = Path(values["run_dir"])
    exact = load(values, **changes | EXACT, run_dir=run_dir / "exact")
    config = load(values, **{"hypergradient.estimator": "one_pass"} | changes)
    assert_equal_products(exact, config, ranks, tolerance)


def assert_equal_products(
    exact: SearchConfig, config: SearchConfig, ranks: int, tolerance: float = 1e-4
) -> None:
    run_ranks(1, run_search, exact)
    run_ranks(ranks, run_search, config)
    expected, found = products_of(exact.run_dir), products_of(config.run_dir)
    scale = np.abs(expected).max(axis=1, keepdims=True)
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "stage"),
    [
        *(slow(ranks, 1, stage) for ranks in (1, 2, 4) for stage in (0, 1, 2)),
        (2, 1, 3),
        slow(4, 1, 3),
        slow(2, 2, 0),
        slow(2, 2, 2),
        slow(4, 2, 1),
        slow(4, 2, 3),
    ],
)
def test_products_do_not_depend_on_sharding(
    search_values: dict, ranks: int, tensor_parallel: int, stage: int
) -> None:
    search_values["mixture"]["lr"] = 0
    changes = {"engine.zero_stage": stage, "engine.tensor_model_parallel_size": tensor_parallel}
    exact = load(search_values, **EXACT, run_dir=Path(search_values["run_dir"]) / "exact")
    config = load(search_values, **changes, **{"hypergradient.estimator": "one_pass"})
    assert_equal_products(exact, config, ranks)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective.train_loss_weight": 0.3, "hypergradient.per_target": True},
        {"objective.target_aggregation": "least_gain"},
        {"hypergradient.preconditioner": "adam"},
        {"training.micro_batch_size": 1, "engine.zero_stage": 2},
    ],
)
@pytest.mark.slow
def test_products_of_every_objective(
    search_values: dict, corpora: Path, changes: dict[str, Any]
) -> None:
    search_values["targets"].append({"name": "down", "path": str(corpora / "target_backward")})
    search_values["mixture"]["lr"] = 0
    assert_same_products(search_values, 2, **{"engine.zero_stage": 3} | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"proxy.num_experts": 4, "proxy.moe_router_topk": 2},
        slow({"proxy.recompute_granularity": "full"}),
        slow({"proxy.qk_layernorm": True, "proxy.normalization": "LayerNorm"}),
    ],
)
@pytest.mark.slow
def test_products_of_other_layers(search_values: dict, changes: dict[str, Any]) -> None:
    search_values["mixture"]["lr"] = 0
    assert_same_products(search_values, 2, **{"engine.zero_stage": 3} | changes)


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.slow
def test_training_is_what_it_is_without_a_search(
    search_values: dict, tmp_path: Path, stage: int
) -> None:
    assert_trains_alike(search_values, tmp_path / "plain", stage)


def assert_trains_alike(values: dict, plain_dir: Path, stage: int) -> None:
    """Bitwise, with a mixture that outer steps leave where it is."""
    changes = {"engine.zero_stage": stage, "hypergradient.estimator": "one_pass", "mixture.lr": 0}
    searched = run_ranks(2, run_search, load(values, **changes))[0]
    plain = run_ranks(2, plain_training, load(values, run_dir=plain_dir, **changes))[0]
    assert searched["losses"] == plain["losses"]
    assert searched["parameters"].tobytes() == plain["parameters"].tobytes()


@pytest.fixture
def fine_tuning(search_values: dict, answer_corpora: Path, tmp_path: Path) -> Any:
    """A function: a family's name and settings to the values of a search that fine-tunes it."""
    return partial(fine_tuning_values, search_values, answer_corpora, tmp_path)


@pytest.mark.parametrize(
    ("family", "stage", "changes"),
    [
        slow(MIXTRAL, 3, {}),
        slow(QWEN3_MOE, 3, {}),
        slow(("Qwen2", {"tie_word_embeddings": True}), 3, {"data.packing": True}),
        slow(("Llama", {}), 2, {"data.packing": True}),
        slow(("Llama", {}), 3, {"proxy.lora_rank": 4}),
        slow(QWEN3_MOE, 2, {"proxy.lora_rank": 4}),
    ],
)
def test_products_of_pretrained_models(
    fine_tuning: Any, family: tuple[str, dict[str, Any]], stage: int, changes: dict[str, Any]
) -> None:
    assert_same_products(fine_tuning(*family), 2, **{"engine.zero_stage": stage} | changes)


@pytest.mark.slow
def test_blocks_of_experts_are_trained_as_without_a_search(
    fine_tuning: Any, tmp_path: Path
) -> None:
    """DeepSpeed reduces their gradients in a hook of the backward pass, which ours must not run."""
    assert_trains_alike(fine_tuning(*MIXTRAL), tmp_path / "plain", 3)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["per_source", "finite_difference"])
def test_other_estimators_pass_blocks_of_experts_under_zero_3(
    fine_tuning: Any, estimator: str
) -> None:
    # Routing flips along a finite step, which is the finite difference's own error.
    tolerance = 1e-4 if estimator == "per_source" else 0.5
    changes = {"engine.zero_stage": 3, "hypergradient.estimator": estimator}
    assert_same_products(fine_tuning(*MIXTRAL), 2, tolerance, **changes)


SECRETIVE = """
import torch

class Secretive(torch.nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab_size, 8)
        self.output_layer = torch.nn.Linear(8, vocab_size)

    def forward(self, tokens, positions, attention_mask, labels=None):
        hidden = self.embedding(tokens)
        # The weight is used a second time, and no hook of the module sees it.
        logits = self.output_layer(hidden) + hidden @ self.output_layer.weight.T
        if labels is None:
            return logits
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")

def secretive(proxy, *, vocab_size, **sizes):
    return Secretive(vocab_size)
"""


def test_a_model_that_hides_the_use_of_a_weight_is_refused_at_the_start(
    search_values: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secretive_models.py").write_text(SECRETIVE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    search_values["proxy"] = {"kind": "provider", "provider": "secretive_models:secretive"}
    with pytest.raises(AssertionError, match=r"one_pass misses the target's own slope.*per_source"):
        run_ranks(2, run_search, load(search_values))
    assert not list((Path(search_values["run_dir"]) / "checkpoints").glob("*"))


class Bypassed(torch.nn.Module):
    """Uses the weight of a layer behind that layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.output = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.output(self.table.weight[tokens]).sum((1, 2))


def raised_by_this_rank(rank: int) -> str:
    """v is of the rank's own shard: that of the table is 0 on the second rank."""
    model = Bypassed()
    vector = [torch.full_like(p, float(rank == 0)) for p in model.parameters()]
    batch = Batch(
        tokens=torch.zeros(2, 3, dtype=torch.long),
        labels=torch.zeros(2, 3, dtype=torch.long),
        loss_mask=torch.ones(2, 3),
        index=np.zeros(2, dtype=np.int64),
        role=np.array([Role.SOURCE] * 2),
    )
    estimator = OnePass(model, Parameters(list(model.parameters()), DataParallelGroup()))
    try:
        estimator.products(lambda b: model(b.tokens), batch, [vector])
    except ConfigError as error:
        return str(error)
    return ""


def hidden_weights(folder: Path) -> None:
    rank = torch.distributed.get_rank()
    (folder / str(rank)).write_text(raised_by_this_rank(rank))


def test_hidden_weights_are_an_error_of_every_rank(tmp_path: Path) -> None:
    run_ranks(2, hidden_weights, tmp_path)
    texts = {path.read_text() for path in tmp_path.iterdir()}
    assert len(texts) == 1
    assert "table (Embedding), which is not called" in texts.pop()
