"""A model's parameters as one vector, replicated (ZeRO 0 to 2) or sharded (ZeRO 3).

The estimators need four things of the parameters θ, whatever the sharding: a gradient that leaves
the engine alone, inner products with it, norms, and a perturbation that is undone bit for bit.
Under tensor parallelism each rank has a part of most parameters, and all of the others.

Gradients are taken with `torch.autograd.grad`, which fires no hook of DeepSpeed's, through a hook
of our own on each parameter. It hands the gradient on and returns zeros without storage, so that
autograd never holds more than one parameter's gradient at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch

from megatron_fastmix.parallel.groups import DataParallelGroup

_PIECE = 1 << 20
"""Elements."""

Vector = list[torch.Tensor]
"""One tensor per parameter: its shape, or (shard length,) under ZeRO-3."""


class Parameters:
    """Replicated parameters: every rank holds all of θ, and all of v."""

    are_sharded = False
    """Whether a data-parallel rank holds a part alone, which is then reduced over the others'
    samples already."""

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        group: DataParallelGroup,
        tensor_group: DataParallelGroup | None = None,
    ) -> None:
        """`tensor_group` are the ranks that share each layer; None where each has it all."""
        self.parameters = parameters
        self.group = group
        self.tensor_group = tensor_group
        first = tensor_group is None or tensor_group.rank == 0
        # What all tensor-parallel ranks hold alike must enter sums over them once.
        self._counts = [first or getattr(p, "tensor_model_parallel", False) for p in parameters]

    def local(self) -> Vector:
        """This rank's storage of θ."""
        return [parameter.data for parameter in self.parameters]

    def zeros(self) -> Vector:
        """A zero vector in fp32."""
        return [torch.zeros_like(part, dtype=torch.float32) for part in self.local()]

    def each_gradient(
        self, loss: torch.Tensor, receive: Callable[[int, torch.Tensor], None]
    ) -> None:
        """Calls `receive(i, gradient of parameter i)` as the backward pass reaches it.

        The gradient is this rank's own contribution; under ZeRO-3 it is this rank's shard of the
        sum over ranks. Every rank must call, for the same number of losses.
        """

        def hook(index: int) -> Callable[[torch.Tensor], torch.Tensor]:
            def deliver(gradient: torch.Tensor) -> torch.Tensor:
                receive(index, self._local_gradient(gradient))
                return gradient.new_zeros(()).expand_as(gradient)

            return deliver

        handles = [p.register_hook(hook(i)) for i, p in enumerate(self.parameters)]
        try:
            torch.autograd.grad(loss, self.parameters, allow_unused=True)
        finally:
            for handle in handles:
                handle.remove()

    def accumulate_gradient(self, loss: torch.Tensor, into: Vector) -> None:
        """Adds this loss's gradient to `into`. Every rank must call; see `finish_gradient`."""
        self.each_gradient(loss, lambda i, gradient: into[i].add_(gradient))

    def finish_gradient(self, vector: Vector) -> None:
        """Sums an accumulated gradient over the ranks, in place. Every rank must call."""
        if self.group.size > 1:
            # One collective for all parameters costs a copy of them; one each costs latency.
            for bucket in _buckets(vector):
                flat = torch.cat([part.reshape(-1) for part in bucket])
                self.group.sum_tensor_(flat)
                for part, reduced in zip(
                    bucket, flat.split([p.numel() for p in bucket]), strict=True
                ):
                    part.copy_(reduced.view_as(part))

    def dot(self, index: int, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """This rank's share of the inner product of two parts `index`, float64, of shape ()."""
        # In pieces: a float64 copy of a whole layer would be the largest thing in memory.
        pieces = zip(one.reshape(-1).split(_PIECE), other.reshape(-1).split(_PIECE), strict=True)
        product = torch.stack([(a.double() * b).sum() for a, b in pieces]).sum()
        return product if self._counts[index] else torch.zeros_like(product)

    def counts_here(self, index: int) -> bool:
        """Whether this rank's part `index` enters sums over the tensor-parallel ranks."""
        return self._counts[index]

    def whole(self, index: int, part: torch.Tensor) -> torch.Tensor:
        """Part `index` of a vector in the parameter's own shape. Every rank must call: ZeRO-3
        gathers it."""
        return part

    def gathered(self, module: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
        """While it lasts, all weights of a module are whole. Every rank must enter: ZeRO-3 gathers
        those that are not."""
        return contextlib.nullcontext()

    def norm(self, vector: Vector) -> float:
        """Euclidean norm of a whole vector, float64. Every rank must call."""
        square = torch.stack([self.dot(i, part, part) for i, part in enumerate(vector)]).sum()
        return math.sqrt(float(self._sum_of_shards(square)))

    @contextlib.contextmanager
    def perturbed_both_ways(self, vector: Vector, scale: float) -> Iterator[Callable[[], None]]:
        """Sets θ to θ + scale·v; the function that it yields sets it to θ − scale·v.

        The perturbed θ takes the memory of v, which is lost, and the model is pointed there: θ
        itself is never written to, and bf16 parameters are perturbed in fp32. Both steps are
        equally long even after rounding, since the second mirrors what the first became.
        """
        theta = self.local()

        def mirror() -> None:
            for part, moved in zip(theta, vector, strict=True):
                moved.neg_().add_(part, alpha=2)
            self._point_at(vector)

        try:
            for part, moved in zip(theta, vector, strict=True):
                moved.mul_(scale).add_(part)
            self._point_at(vector)
            yield mirror
        finally:
            self._point_at(theta)

    def subset(self, keep: Callable[[torch.nn.Parameter], bool]) -> Parameters:
        """The vector of those parameters alone."""
        return Parameters([p for p in self.parameters if keep(p)], self.group, self.tensor_group)

    def outside_training(self) -> contextlib.AbstractContextManager[None]:
        """For a forward pass whose backward pass is ours: the engine takes no gradient from it.

        DeepSpeed hangs its reduction of a block of experts onto the block's backward pass, which
        `torch.autograd.grad` runs too, and a forward pass decides whether it is there.
        """
        return contextlib.nullcontext()

    def release(self) -> None:
        """Leaves the engine's view of θ as it was before a backward pass of ours."""

    def _point_at(self, storage: Vector) -> None:
        """Makes `storage` what the next forward pass reads."""
        for parameter, part in zip(self.parameters, storage, strict=True):
            parameter.data = part

    def _sum_of_shards(self, value: torch.Tensor) -> torch.Tensor:
        """Sums over the ranks that hold different parts. Every rank must call."""
        return value if self.tensor_group is None else self.tensor_group.sum_tensor_(value)

    def _local_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def _buckets(vector: Vector, numel: int = 1 << 25) -> Iterator[Vector]:
    """Runs of parts of at most `numel` elements, so that the flat copy stays small."""
    bucket: Vector = []
    size = 0
    for part in vector:
        if bucket and size + part.numel() > numel:
            yield bucket
            bucket, size = [], 0
        bucket.append(part)
        size += part.numel()
    if bucket:
        yield bucket
