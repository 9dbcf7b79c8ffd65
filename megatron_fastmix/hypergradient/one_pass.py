"""Exact products of all samples at once, from one forward and one activation-only backward pass.

A sample's loss depends on the weights w of a module through the module's output y alone, so their
share of ⟨v, ∇ℓ_b⟩ is Σ_t ⟨∂ℓ_b/∂y_t, (∂y_t/∂w)·v_w⟩ over the tokens t of sample b. Samples do not
attend to one another, so one backward pass of Σ_b ℓ_b gives ∂ℓ_b/∂y_t for all of them; the weights
are frozen for it, and nothing of their size but v is held. Wang et al., arXiv 2406.11011.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from megatron_fastmix.batch.batch import Batch
from megatron_fastmix.hypergradient.directional import Call, reads_ids, rule_of
from megatron_fastmix.hypergradient.probe import Probe
from megatron_fastmix.hypergradient.products import SampleProducts
from megatron_fastmix.hypergradient.sites import Site, find_sites, refusal
from megatron_fastmix.hypergradient.token_samples import TokenSamples
from megatron_fastmix.parallel.parameters import Parameters, Vector
from megatron_fastmix.proxy.recompute import LayerRuns, layer_runs


def one_pass(probe: Probe, vectors: Iterable[Vector]) -> list[SampleProducts]:
    """⟨v, ∇ℓ_b⟩ of every sample, for all v at once, over all parameters.

    Every rank must call. Raises `ConfigError` for a module that it cannot take.
    """
    vectors = list(vectors)
    estimator = OnePass(probe.model, probe.parameters)
    found = [estimator.products(probe.losses, batch, vectors) for batch in probe.batches]
    return [
        SampleProducts.of_batches(probe.batches, [values[number] for values in found])
        for number in range(len(vectors))
    ]


class OnePass:
    """⟨v, ∇ℓ_b⟩ of every sample b of a batch."""

    def __init__(self, model: torch.nn.Module, parameters: Parameters) -> None:
        """`parameters` are the trained ones of `model`. Raises as `check_supported`."""
        self.parameters = parameters
        self.index = {id(p): i for i, p in enumerate(parameters.parameters)}
        self.sites = find_sites(model)
        self.positions_first = any("megatron.core" in type(m).__module__ for m in model.modules())
        self.samples_run_alone = getattr(model, "samples_run_alone", False)

    def products(
        self,
        losses: Callable[[Batch], torch.Tensor],
        batch: Batch,
        vectors: Sequence[Vector],
    ) -> np.ndarray:
        """⟨v, ∇ℓ_b⟩ of each v in `vectors` and each sample b of this rank, (V, B) float64.

        `losses` gives the per-sample losses (B,) through the model. Every rank must call: under
        ZeRO-3 forward passes and a module's v are gathered, and tensor-parallel ranks add up their
        parts. Raises `ConfigError` for a module that it cannot take.
        """
        of_batch = Pass(self, batch, vectors)
        with _frozen(self.parameters.parameters), contextlib.ExitStack() as stack:
            stack.callback(self.parameters.release)
            stack.enter_context(of_batch.watching())
            with torch.enable_grad():
                loss = losses(batch).sum()
            of_batch.check_all_called()
            torch.autograd.grad(loss, of_batch.leaves, allow_unused=True)
        return of_batch.sums()


class Pass:
    """One forward and backward pass: what its hooks gather."""

    def __init__(
        self,
        estimator: OnePass,
        batch: Batch,
        vectors: Sequence[Vector],
        *,
        weights_are_frozen: bool = True,
    ) -> None:
        """With frozen weights the graph begins at the first modules that have trained ones; in a
        training pass it begins at the weights."""
        self.estimator = estimator
        self.weights_are_frozen = weights_are_frozen
        self.batch = batch
        self.parameters = estimator.parameters
        self.samples = TokenSamples(
            batch,
            positions_first=estimator.positions_first,
            samples_run_alone=estimator.samples_run_alone,
        )
        self.vectors = vectors
        self.totals = torch.zeros(
            len(vectors), batch.num_samples, dtype=torch.float64, device=batch.tokens.device
        )
        self.leaves: list[torch.Tensor] = []
        """Where the graph begins: outputs of the first modules with trained weights."""
        self.called: set[str] = set()
        self.routing: dict[str, torch.Tensor] = {}
        """By layer of experts, which of them each token goes to, bool (R·S, experts)."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Forward passes meanwhile are of `batch`; their backward pass may come later."""
        with contextlib.ExitStack() as stack:
            for site in self.estimator.sites:
                # Before DeepSpeed's own hooks: under ZeRO-3 the weights are whole until those ran,
                # and in the backward pass from when they ran.
                handle = site.module.register_forward_hook(
                    self.hook(site), with_kwargs=True, prepend=True
                )
                stack.callback(handle.remove)
            yield

    def sums(self) -> np.ndarray:
        """⟨v, ∂L/∂θ⟩ by sample, (V, B), of the loss L that the backward pass was of, which is over.
        Every rank must call."""
        # Hooks of outputs hold this pass, and v is as large as the model: it would stay until
        # Python looks for cycles, or where experts keep an output, until their next call.
        self.leaves.clear()
        self.vectors = ()
        if self.parameters.tensor_group is not None:
            self.parameters.tensor_group.sum_tensor_(self.totals)
        return self.totals.cpu().numpy()

    def hook(self, site: Site) -> Callable[..., Any]:
        """A forward hook that adds the share of one call of a module as soon as ∂L/∂y is known."""

        def on_call(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            self.called.add(site.name)
            used = site.parameters
            if site.takes_a_weight:
                weight = kwargs.get("weight", args[1] if len(args) > 1 else None)
                used = {"weight": weight} if id(weight) in self.estimator.index else {}
            if not used:
                return output
            call = Call(
                name=site.name,
                module=module,
                arguments=args,
                keywords=kwargs,
                parameters={key: self.estimator.index[id(p)] for key, p in used.items()},
            )
            if site.routes_for is not None:
                self.routing[site.routes_for] = output[1]
            routed = None
            if site.expert is not None:
                layer, number = site.expert
                # Megatron's dispatcher keeps the order of the tokens that an expert gets.
                routed = self.routing[layer][:, number].nonzero().flatten()
            # A training's backward pass comes when these hooks are gone, and then keeps its inputs.
            runs = layer_runs() if self.weights_are_frozen else None
            place = None if runs is None else runs.place(site.name)
            if isinstance(output, tuple):
                return tuple(
                    self._watched(y, dataclasses.replace(call, output=number), routed, runs, place)
                    for number, y in enumerate(output)
                )
            return self._watched(output, call, routed, runs, place)

        return on_call

    def check_all_called(self) -> None:
        """Raises `ConfigError`, on every rank, for a module whose trained weights are used behind
        its back. Every rank must call.

        What has no part in the target's loss, as the image tower of a model that reads text, has
        none in the products. Under ZeRO-3 a rank sees its shard of v alone, so the ranks agree.
        """
        sites = self.estimator.sites
        missing = self._over_ranks([site.name not in self.called for site in sites])
        if not missing.any():
            return
        places = [[self.estimator.index[id(p)] for p in site.parameters.values()] for site in sites]
        used = self._over_ranks(
            [
                bool(absent) and any(bool(v[i].any()) for v in self.vectors for i in each)
                for absent, each in zip(missing, places, strict=True)
            ]
        )
        for site, behind_its_back in zip(sites, used, strict=True):
            if behind_its_back:
                raise refusal(site.name, site.module, "is not called, though its weights are used")

    def _over_ranks(self, flags: Sequence[bool]) -> np.ndarray:
        """On how many ranks each flag is set."""
        counts = self.parameters.group.sum(np.array(flags, dtype=np.float64))
        tensor_group = self.parameters.tensor_group
        return counts if tensor_group is None else tensor_group.sum(counts)

    def _watched(
        self,
        y: Any,
        call: Call,
        routed: torch.Tensor | None,
        runs: LayerRuns | None,
        place: tuple[str, int] | None,
    ) -> Any:
        """The output y of a call, whose gradient adds the call's share. In a recomputed layer it
        takes the inputs that the second run has, so that the first keeps none."""
        if not isinstance(y, torch.Tensor) or not y.is_floating_point():
            return y
        if not y.requires_grad and not self.weights_are_frozen:
            return y  # no weight of this call is trained
        y = self.samples.spread(y)
        if not y.requires_grad:
            y = y.detach().requires_grad_()
            if runs is None or not runs.again:
                self.leaves.append(y)
        elif call.output is not None:
            # Keeps apart what reaches this output from what does through another of the module's.
            y = y.view_as(y)
        if runs is None:
            waiting = [call]  # popped, so that what is kept is let go with the gradient
            inputs_known = waiting.pop
        elif runs.again:
            runs.kept[place, call.output] = call
            return y
        else:
            inputs_known = functools.partial(runs.kept.pop, (place, call.output))
        strides = y.stride()
        y.register_hook(lambda gradient: self._add_share(gradient, inputs_known(), strides, routed))
        return y

    def _add_share(
        self,
        gradient: torch.Tensor,
        call: Call,
        strides: tuple[int, ...],
        routed: torch.Tensor | None,
    ) -> None:
        """Adds a module's share of the products to the totals."""
        rule = rule_of(call.module)
        # What all tensor-parallel ranks hold alike counts once.
        mine = {key: i for key, i in call.parameters.items() if self.parameters.counts_here(i)}
        if not mine:
            return
        with self.parameters.gathered(call.module):
            for total, vector in zip(self.totals, self.vectors, strict=True):
                v = {key: self.parameters.whole(i, vector[i]) for key, i in mine.items()}
                dots = rule(call, gradient, v)
                try:
                    total += self.samples.sums(
                        dots, of_ids=reads_ids(rule), strides=strides, routed=routed
                    )
                except ValueError as error:
                    raise refusal(call.name, call.module, f"has {error}") from None


@contextlib.contextmanager
def _frozen(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """No weight takes a gradient; autograd then keeps no input for one either."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
