"""The modules of a model that use its trained parameters, and those that `one_pass` cannot take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.hypergradient.directional import forward_class

_WHOLE = ("peft.tuners.lora.layer.ParamWrapper",)
"""Modules that use the weights of those inside them themselves; each is differentiated whole."""

_COLUMN = "megatron.core.tensor_parallel.layers.ColumnParallelLinear"
_ROW = "megatron.core.tensor_parallel.layers.RowParallelLinear"
_ROUTER = "megatron.core.transformer.moe.router.TopKRouter"
_EXPERT = re.compile(r"(?P<layer>.*\.)experts\.local_experts\.(?P<number>\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A module that uses trained parameters."""

    name: str
    module: torch.nn.Module
    parameters: dict[str, torch.nn.Parameter]
    """By their names in the module."""

    @property
    def takes_a_weight(self) -> bool:
        """Whether its weight, if any, comes with each call: Megatron's output layer is called with
        the embedding's where the two are tied."""
        return not self.parameters

    @property
    def routes_for(self) -> str | None:
        """The layer whose experts get the tokens that this module, a router, sends them."""
        is_router = forward_class(self.module) == _ROUTER
        return self.name.removesuffix("router") if is_router else None

    @property
    def expert(self) -> tuple[str, int] | None:
        """(layer, number) of the expert that the module is part of, if it gets tokens routed."""
        found = _EXPERT.match(self.name)
        return (found["layer"], int(found["number"])) if found else None


def find_sites(model: torch.nn.Module) -> list[Site]:
    """All of them, in the model's order. Needs no weights: a model on the meta device serves.

    Raises `ConfigError` with the name of a module that the estimator cannot take.
    """
    found: list[Site] = []
    whole: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(whole):
            continue
        kind = forward_class(module)
        if kind in _WHOLE:
            whole += (f"{name}.",)
        trained = {
            key: parameter
            for key, parameter in module.named_parameters(recurse=kind in _WHOLE)
            if parameter.requires_grad
        }
        if trained or kind == _COLUMN:
            _check(name, module, kind, trained)
            found.append(Site(name=name, module=module, parameters=trained))
    return found


def check_supported(model: torch.nn.Module) -> None:
    """Raises `ConfigError` with the name of a module of `model`, which may be on the meta device,
    that `one_pass` cannot take, and the estimators to use instead."""
    find_sites(model)


def refusal(name: str, module: torch.nn.Module, why: str) -> ConfigError:
    """What to raise where the estimator cannot take a module."""
    return ConfigError(
        f"hypergradient.estimator: one_pass cannot take {name or 'the model'} "
        f"({type(module).__name__}), which {why}; use finite_difference (in fp32) or per_source"
    )


def _check(
    name: str, module: torch.nn.Module, kind: str, trained: dict[str, torch.nn.Parameter]
) -> None:
    own = [key for key in trained if "." not in key]
    if own and any("." in key for key, _ in module.named_parameters()):
        # What it does with the weights of the modules inside it is hidden from their hooks: a Mamba
        # mixer hands them to one kernel.
        raise refusal(name, module, f"has {', '.join(own)} beside modules with parameters")
    if re.search(r"experts\.\d+\.", name) and not _EXPERT.match(name):
        raise refusal(name, module, "gets some of the tokens, in an order that is not known")
    if kind not in (_COLUMN, _ROW):
        return
    parallel: Any = module
    if getattr(parallel, "sequence_parallel", False):
        raise refusal(name, module, "is sequence-parallel")
    if getattr(parallel, "gather_output", False) and parallel.tp_group.size() > 1:
        raise refusal(name, module, "gathers its output over the tensor-parallel ranks")
    if "bias" in trained and parallel.skip_bias_add:
        raise refusal(name, module, "leaves its bias to others (skip_bias_add)")
