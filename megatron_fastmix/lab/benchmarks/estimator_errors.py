"""How far each estimator is from exact products, in fp32 and in bf16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.config import HypergradientConfig, ProxyConfig
from megatron_fastmix.deepspeed_engine.engine import DTYPES
from megatron_fastmix.hypergradient import ESTIMATORS, Probe, Products, target_gradient
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters, Vector
from megatron_fastmix.proxy.build import build_model
from megatron_fastmix.proxy.megatron_gpt import batch_losses, initialize_parallel_state

SOURCES, SAMPLES = 8, 4
VOCABULARY = 256


def estimator_errors(dtype: str, proxy: ProxyConfig, seq_length: int) -> Mapping[str, float]:
    """Of each estimator with a proxy whose weights are of `dtype` (`fp32`, `bf16`): the largest
    error of a difference between a source's product and the mean over sources, over the largest
    such difference.

    Exact are the products of `per_source` in fp32 at the same weights with the same v, which is the
    gradient of one target in `dtype`; in fp32 it is left out, as the measure itself. The finite
    difference of bf16 weights runs in fp32. One rank, by itself.
    """
    initialize_parallel_state()
    model = build_model(
        proxy,
        vocab_size=VOCABULARY,
        seq_length=seq_length,
        seed=1,
        dtype=DTYPES[dtype],
        tensor_model_parallel_size=1,
    )
    target = _rows(np.full(SAMPLES, 2), seq_length, seed=5)
    share = torch.full((SAMPLES,), 1 / SAMPLES)
    v = target_gradient(
        lambda batch: batch_losses(model, batch), _parameters(model), [(target, share)]
    )
    batches = [
        _rows(np.arange(SOURCES), seq_length, seed=number) for number in range(10, 10 + SAMPLES)
    ]
    found = {name: _differences(name, model, batches, v) for name in ESTIMATORS}
    exact = _differences("per_source", model.float(), batches, v)
    scale = np.abs(exact).max()
    return {
        name: float(np.abs(each - exact).max() / scale)
        for name, each in found.items()
        if dtype != "fp32" or name != "per_source"
    }


def _parameters(model: torch.nn.Module) -> Parameters:
    return Parameters(list(model.parameters()), DataParallelGroup())


def _differences(name: str, model: Any, batches: list[Batch], v: Vector) -> np.ndarray:
    probe = Probe(
        batches=batches,
        losses=lambda batch: batch_losses(model, batch),
        model=model,
        parameters=_parameters(model),
        num_sources=SOURCES,
        relative_step=HypergradientConfig().relative_step,
    )
    # An estimator may lose what it is given.
    (products,) = ESTIMATORS[name](probe, [[part.clone() for part in v]])
    values = Products.mean_by_source(products, SOURCES, DataParallelGroup()).values
    return values - values.mean()


def _rows(sources: np.ndarray, seq_length: int, seed: int) -> Batch:
    """One row of random ids for each of `sources`, from a part of the vocabulary of the source's
    own that overlaps the next one's."""
    generator = torch.Generator().manual_seed(seed)
    width = VOCABULARY // SOURCES
    ids = torch.randint(0, 2 * width, (len(sources), seq_length + 1), generator=generator)
    ids = (ids + width * torch.from_numpy(sources)[:, None]) % VOCABULARY
    labels = ids[:, 1:]
    return Batch.of_sources(
        sources, tokens=ids[:, :-1], labels=labels, loss_mask=torch.ones(labels.shape)
    )
