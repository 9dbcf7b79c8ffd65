"""One module's share of ⟨v, ∇ℓ⟩ per token: ⟨∂L/∂y, (∂y/∂w)·v⟩ from its input and ∂L/∂y alone.

The "ghost dot-product" of Wang et al., Data Shapley in One Training Run (arXiv 2406.11011), with a
given direction v in place of another sample's gradient. A rule for each kind of module, found by
the class that defines its `forward`; any other module goes through forward-mode differentiation of
itself alone, or a central difference where an operation of its has no forward mode.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from megatron_fastmix.errors import ConfigError

_PIECE = 1 << 22
"""Elements: what is multiplied in fp32 at a time."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a module in the forward pass."""

    name: str
    """The module's name in the model."""
    module: torch.nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    parameters: dict[str, int]
    """Its trained parameters: by their names in it, their places in `Parameters`."""
    output: int | None = None
    """Which of the module's outputs y is; None where it has one alone."""


Direction = Mapping[str, torch.Tensor]
"""v of the module's trained parameters, by their names in it, whole and in fp32."""

Rule = Callable[[Call, torch.Tensor, Direction], torch.Tensor]
"""(call, ∂L/∂y, v) → ⟨∂L/∂y, (∂y/∂w)·v⟩ summed over y's last dimension, in fp32."""


def linear(call: Call, gradient: torch.Tensor, v: Direction) -> torch.Tensor:
    """y = x·Wᵀ + b, also where the tensor-parallel ranks hold parts of W."""
    dots = gradient.new_zeros(gradient.shape[:-1], dtype=torch.float32)
    if "weight" in v:
        dots += _bilinear(_input(call), gradient, v["weight"])
    if "bias" in v:
        dots += _dot_last(gradient, v["bias"])
    return dots


def linear_in_out(call: Call, gradient: torch.Tensor, v: Direction) -> torch.Tensor:
    """y = x·W + b (GPT-2's `Conv1D`)."""
    turned = {name: part.T if name == "weight" else part for name, part in v.items()}
    return linear(call, gradient, turned)


def embedding(call: Call, gradient: torch.Tensor, v: Direction) -> torch.Tensor:
    """y = W[ids]."""
    ids = _input(call)
    dots = _dot_last(F.embedding(ids, v["weight"]), gradient)
    return _without_padding(call.module, ids, dots)


def vocabulary_part(call: Call, gradient: torch.Tensor, v: Direction) -> torch.Tensor:
    """y = W[ids], of which this tensor-parallel rank holds a range of rows."""
    module: Any = call.module
    ids = _input(call) - module.vocab_start_index
    mine = (ids >= 0) & (ids < v["weight"].shape[0])
    dots = _dot_last(F.embedding(ids * mine, v["weight"]), gradient)
    return dots * mine


def norm(call: Call, gradient: torch.Tensor, v: Direction) -> torch.Tensor:
    """y = x̂·w + b, torch's own RMSNorm and LayerNorm over the last dimension."""
    module: Any = call.module
    if len(module.normalized_shape) > 1:
        return differentiated(call, gradient, v)
    x, shape = _input(call).float(), module.normalized_shape
    if isinstance(module, torch.nn.RMSNorm):
        eps = module.eps if module.eps is not None else torch.finfo(gradient.dtype).eps
        scaled = F.rms_norm(x, shape, None, eps)
    else:
        scaled = F.layer_norm(x, shape, None, None, module.eps)
    tangent = torch.zeros_like(scaled)
    if "weight" in v:
        tangent += scaled * v["weight"]
    if "bias" in v:
        tangent += v["bias"]
    return _dot_last(tangent, gradient)


def differentiated(call: Call, gradient: torch.Tensor, v: Direction) -> torch.Tensor:
    """Any module: its own forward mode, or a central difference of it alone at the same inputs."""
    with _without_hooks(call.module):
        try:
            tangent = _forward_mode(call, v)
        except (NotImplementedError, RuntimeError) as error:
            if not _lacks_forward_mode(error):
                raise
            tangent = _central_difference(call, v)
    dots = _dot_last(tangent, gradient)
    ids = call.arguments[0] if call.arguments else None
    return _without_padding(call.module, ids, dots)


RULES: dict[str, Rule] = {
    "torch.nn.modules.linear.Linear": linear,
    "torch.nn.modules.sparse.Embedding": embedding,
    "torch.nn.modules.normalization.RMSNorm": norm,
    "torch.nn.modules.normalization.LayerNorm": norm,
    "transformers.pytorch_utils.Conv1D": linear_in_out,
    "megatron.core.tensor_parallel.layers.ColumnParallelLinear": linear,
    "megatron.core.tensor_parallel.layers.RowParallelLinear": linear,
    "megatron.core.tensor_parallel.layers.VocabParallelEmbedding": vocabulary_part,
}
"""By the class whose `forward` a module runs, named so that none of these packages is needed."""


def rule_of(module: torch.nn.Module) -> Rule:
    """The rule for a module; `differentiated` for what no rule is written for."""
    return RULES.get(forward_class(module), differentiated)


def reads_ids(rule: Rule) -> bool:
    """Whether the rule is for modules that read token or position ids, (R, S) in every model."""
    return rule in (embedding, vocabulary_part)


def forward_class(module: torch.nn.Module) -> str:
    """The full name of the class that defines the module's `forward`; "" where it was replaced."""
    if "forward" in vars(module):
        return ""
    owner = next(cls for cls in type(module).__mro__ if "forward" in vars(cls))
    return f"{owner.__module__}.{owner.__qualname__}"


def _input(call: Call) -> torch.Tensor:
    """The first argument, however it was passed."""
    return call.arguments[0] if call.arguments else next(iter(call.keywords.values()))


def _bilinear(x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """⟨∂L/∂y, x·Vᵀ⟩ per token: through the narrower of the two sides, so that the product of a
    layer with a whole vocabulary of outputs is never held."""
    dtype = _product_dtype(gradient, gradient.dtype)
    x, gradient, weight = x.to(dtype), gradient.to(dtype), weight.to(dtype)
    if weight.shape[0] > weight.shape[1]:
        return _dot_last(gradient @ weight, x)
    return _dot_last(F.linear(x, weight), gradient)


def _product_dtype(where: torch.Tensor, native: torch.dtype) -> torch.dtype:
    """In what matrices are multiplied: what training uses, or fp32 where it is as fast."""
    return native if where.is_cuda or native == torch.float64 else torch.float32


def _dot_last(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """⟨one, other⟩ over the last dimension, multiplied and summed in fp32 (or what is finer)."""
    one, other = torch.broadcast_tensors(one, other)
    lead, size = one.shape[:-1], one.shape[-1]
    rows = max(1, _PIECE // size)
    if one.numel() <= _PIECE:
        return (_wide(one) * _wide(other)).sum(-1)
    pieces = zip(
        one.reshape(-1, size).split(rows), other.reshape(-1, size).split(rows), strict=True
    )
    return torch.cat([(_wide(a) * _wide(b)).sum(-1) for a, b in pieces]).view(lead)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _without_padding(module: Any, ids: Any, dots: torch.Tensor) -> torch.Tensor:
    """An embedding's row of padding takes no gradient, though v has one where it is tied."""
    padding = getattr(module, "padding_idx", None)
    if padding is None or not isinstance(ids, torch.Tensor) or ids.shape != dots.shape:
        return dots
    return dots.masked_fill(ids == padding, 0)


def _forward_mode(call: Call, v: Direction) -> torch.Tensor:
    weights = {name: call.module.get_parameter(name).detach() for name in v}
    dtype = None
    if all(part.dim() == 1 for part in v.values()):
        dtype = torch.float32  # norms and biases: it costs nothing
    with torch.no_grad(), forward_ad.dual_level():
        dual = {}
        for name, weight in weights.items():
            weight = weight if dtype is None else weight.to(dtype)
            dual[name] = forward_ad.make_dual(weight, v[name].to(weight.dtype))
        with _parameters_set_to(call.module, dual), _experts_in_a_loop(call.module):
            output = _output(call, dtype)
        tangent = forward_ad.unpack_dual(output).tangent
        return torch.zeros_like(output) if tangent is None else tangent


def _central_difference(call: Call, v: Direction) -> torch.Tensor:
    """[y(w + εv) − y(w − εv)] / 2ε in a finer dtype, with everything else of the module fixed."""
    weights = {name: call.module.get_parameter(name).detach() for name in v}
    size = float(torch.stack([part.double().norm() for part in v.values()]).norm())
    norm = float(torch.stack([w.double().norm() for w in weights.values()]).norm())
    # (dtype, r): ε = r·‖w‖/‖v‖ balances rounding against the third derivative.
    steps = [(torch.float32, 1e-2)]
    if next(iter(weights.values())).dtype == torch.float32:
        steps.insert(0, (torch.float64, 1e-4))
    for dtype, step in steps:
        epsilon = step * (norm or 1.0) / (size or 1.0)
        ends = []
        try:
            for sign in (1, -1):
                moved = {n: w.to(dtype) + sign * epsilon * v[n] for n, w in weights.items()}
                with torch.no_grad(), _parameters_set_to(call.module, moved):
                    ends.append(_output(call, dtype))
        except (NotImplementedError, RuntimeError) as error:
            # In fp32, which takes half as much, there may be memory enough.
            if isinstance(error, torch.OutOfMemoryError) and dtype is torch.float32:
                raise
            continue
        return (ends[0] - ends[1]) / (2 * epsilon)
    raise ConfigError(
        f"hypergradient.estimator: one_pass cannot differentiate {call.name} "
        f"({type(call.module).__name__}), which has no forward mode and does not run in fp32; "
        "use finite_difference or per_source"
    )


def _output(call: Call, dtype: torch.dtype | None) -> torch.Tensor:
    """The module's output y, with its inputs in `dtype` unless None."""

    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            value = value.detach()
            return value.to(dtype) if dtype is not None and value.is_floating_point() else value
        return value

    output = call.module.forward(
        *map(cast, call.arguments), **{key: cast(value) for key, value in call.keywords.items()}
    )
    return output if call.output is None else output[call.output]


@contextlib.contextmanager
def _parameters_set_to(
    module: torch.nn.Module, values: Mapping[str, torch.Tensor]
) -> Iterator[None]:
    owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in values}
    places = {name: (owners[name]._parameters, name.rpartition(".")[2]) for name in values}
    kept = {name: held[key] for name, (held, key) in places.items()}
    try:
        for name, (held, key) in places.items():
            held[key] = values[name]  # type: ignore[assignment]  # the module only reads it
        yield
    finally:
        for name, (held, key) in places.items():
            held[key] = kept[name]


@contextlib.contextmanager
def _without_hooks(module: torch.nn.Module) -> Iterator[None]:
    """Calls of the modules inside it are no part of the forward pass that hooks know of."""
    names = ("_forward_hooks", "_forward_pre_hooks")
    kept = [(m, name, getattr(m, name)) for m in module.modules() for name in names]
    try:
        for each, name, _ in kept:
            setattr(each, name, OrderedDict())
        yield
    finally:
        for each, name, hooks in kept:
            setattr(each, name, hooks)


@contextlib.contextmanager
def _experts_in_a_loop(module: torch.nn.Module) -> Iterator[None]:
    """Has experts of `transformers` computed one by one: grouped products have no forward mode."""
    key = "_experts_implementation"
    configs = {id(c): c for m in module.modules() if hasattr(c := getattr(m, "config", None), key)}
    kept = [(config, getattr(config, key)) for config in configs.values()]
    try:
        for config, _ in kept:
            setattr(config, key, "eager")
        yield
    finally:
        for config, name in kept:
            setattr(config, key, name)


def _lacks_forward_mode(error: Exception) -> bool:
    """Whether an operation said so: torch has no error class of its own for it."""
    text = str(error)
    return "forward AD" in text or "Jacobian-vector product" in text or "jvp" in text
