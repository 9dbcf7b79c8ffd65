"""One training of the search's proxy, on batches that the caller composes, with its cost counted.

The same datasets, model, optimizer and learning rate as in a search, in one process without
DeepSpeed, so that methods differ in nothing but what they do with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.batch.batches import Batches, Sample
from megatron_fastmix.batch.sources import build_source_blend, build_targets
from megatron_fastmix.config import SearchConfig
from megatron_fastmix.deepspeed_engine.engine import build_optimizer, learning_rate
from megatron_fastmix.errors import NonFiniteError
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.parallel.device import local_device
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.proxy.build import build_model
from megatron_fastmix.proxy.cost import flops_per_token
from megatron_fastmix.proxy.megatron_gpt import batch_losses, initialize_world_of_one
from megatron_fastmix.search.budget import offered_shares
from megatron_fastmix.search.inputs import check_inputs

WeightedBatch = tuple[Batch, torch.Tensor]
"""A micro-batch of samples and their weights (B,); `Batch.index` is the source of each."""


class ProxyRun:
    """A proxy and its optimizer. `config.seed` sets the initial weights and the order of data."""

    def __init__(self, config: SearchConfig, cache_path: str) -> None:
        """`cache_path` is a folder for Megatron's indices. Raises what `check_inputs` raises."""
        initialize_world_of_one()
        self.config = config
        self.inputs = check_inputs(config, 1)
        self.num_sources = len(config.sources)
        tokenizer = self.inputs.tokenizer
        mixture = Mixture(config.source_names, config.mixture)
        group = DataParallelGroup(device=local_device())
        self._batches = Batches(
            config,
            build_source_blend(
                config, mixture, tokenizer, cache_path, offered_shares(config, self.inputs)
            ),
            build_targets(config, tokenizer, cache_path),
            group,
        )
        self.model = build_model(
            config.proxy,
            vocab_size=tokenizer.vocab_size,
            seq_length=config.data.seq_length,
            seed=config.seed,
        ).to(group.device)
        self.optimizer = build_optimizer(self.model, config.training)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.step = 0
        """Optimizer steps done."""
        self.flops = 0.0
        """Floating-point operations so far: forward and backward passes of every kind."""
        self._tokens_per_sample = self.inputs.tokens_per_sample(config.data.seq_length)
        per_token = flops_per_token(config.proxy, tokenizer.vocab_size, config.data.seq_length)
        self._forward_flops = self._tokens_per_sample * per_token / 3
        self._read = np.zeros(self.num_sources, dtype=np.int64)
        self._generator = np.random.default_rng([config.seed, 0xBA5E])

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        samples = self.step * self.config.training.global_batch_size
        return round(samples * self._tokens_per_sample)

    @property
    def lr(self) -> float:
        """η of the optimizer step to come."""
        return learning_rate(self.config.training, self.step)

    def draw(self, weights: np.ndarray) -> np.ndarray:
        """The source of each sample of a global batch, int (B,), by `weights` (K,): systematic
        sampling, so that the count of each is within 1 of its share."""
        count = self.config.training.global_batch_size
        points = (self._generator.random() + np.arange(count)) / count
        edges = np.cumsum(weights / np.sum(weights))
        sources = np.minimum(np.searchsorted(edges, points, side="right"), self.num_sources - 1)
        return self._generator.permutation(sources)

    def read(self, sources: Sequence[int] | np.ndarray) -> list[WeightedBatch]:
        """The next sample of each of `sources` (N,), weighing 1/N each, as micro-batches. Every
        source is walked on its own, epoch after epoch."""
        samples = []
        for source in np.asarray(sources).tolist():
            read = partial(self._batches.blend.sample, "training", source, int(self._read[source]))
            self._read[source] += 1
            samples.append(Sample(read=read, index=source, weight=1 / len(sources)))
        return self._batches.split(samples)

    def read_target(self, target: int, first: int, count: int) -> list[WeightedBatch]:
        """Samples `first` … of a target's walk, weighing 1/count each."""
        walk = self._batches.targets[target]
        samples = [
            Sample(
                read=partial(walk.sample, first + j),
                index=target,
                role=Role.TARGET,
                weight=1 / count,
            )
            for j in range(count)
        ]
        return self._batches.split(samples)

    def train(self, batches: Sequence[WeightedBatch]) -> np.ndarray:
        """One AdamW step on the sum of weight · loss; returns the mean loss of each source (K,),
        NaN for one without a sample. Raises `NonFiniteError`."""
        sums, counts = np.zeros(self.num_sources), np.zeros(self.num_sources)
        self.optimizer.zero_grad(set_to_none=True)
        for batch, weights in batches:
            found = batch_losses(self.model, batch)
            (found * weights).sum().float().backward()
            np.add.at(sums, batch.index, found.detach().cpu().numpy())
            np.add.at(counts, batch.index, batch.sample_weights())
            self.count_passes(batch.num_samples, backward=True)
        self.apply_gradients()
        with np.errstate(invalid="ignore"):
            return sums / counts

    def apply_gradients(self) -> None:
        """One AdamW step with the gradients that the parameters hold, clipped as in a search.
        Raises `NonFiniteError`."""
        limit = self.config.training.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        # A loss that is NaN or Inf has such a gradient, of however many sources it is made.
        if not torch.isfinite(norm):
            raise NonFiniteError(
                f"step {self.step + 1}: the gradient is not finite; lower training.lr"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def gradient(self, batches: Sequence[WeightedBatch]) -> torch.Tensor:
        """The gradient of Σ weight · loss (P,); parameters and their own gradients stay as they
        were."""
        total = torch.zeros(sum(p.numel() for p in self.parameters))
        for batch, weights in batches:
            value = (batch_losses(self.model, batch) * weights).sum()
            found = torch.autograd.grad(value.float(), self.parameters)
            total += torch.cat([g.flatten() for g in found]).to(total.device)
            self.count_passes(batch.num_samples, backward=True)
        return total

    @torch.no_grad()
    def target_losses(self, samples: int) -> np.ndarray:
        """Mean loss of each target (V,), nats per token, on the first `samples` of its walk. Raises
        `NonFiniteError`."""
        found = []
        for target in range(len(self.config.targets)):
            total = count = 0.0
            for batch, _ in self.read_target(target, 0, samples):
                total += float(batch_losses(self.model, batch).sum())
                count += float(batch.sample_weights().sum())
                self.count_passes(batch.num_samples, backward=False)
            if not math.isfinite(total):
                name = self.config.targets[target].name
                raise NonFiniteError(
                    f"target {name}, after step {self.step}: the loss is not finite; lower "
                    "training.lr"
                )
            found.append(total / count)
        return np.array(found)

    def count_passes(self, samples: int, *, backward: bool) -> None:
        """Adds the cost of a forward, and a backward, pass of `samples` samples."""
        self.flops += samples * self._forward_flops * (3 if backward else 1)
