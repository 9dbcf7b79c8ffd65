"""Every key of a configuration with its type, default and explanation, from the dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import types
import typing
from dataclasses import dataclass

from megatron_fastmix.config.search import SearchConfig
from megatron_fastmix.errors import ConfigError

MEGATRON = {
    "bf16": "engine.dtype: bf16",
    "fp16": "engine.dtype: bf16 (fp16 is refused: the outer step has no loss scaling)",
    "data-path": "sources: [{name, path}, …]; `megatron-fastmix init --data-path …` writes them",
    "train-data-path": "sources: [{name, path}, …]",
    "valid-data-path": "targets: [{name, path}, …]",
    "data-args-path": "sources; `megatron-fastmix init --data-path FILE` writes them",
    "save": "run_dir",
    "load": "proxy.checkpoint for what the proxy starts from; a search resumes from its run_dir",
    "finetune": "proxy.checkpoint takes the weights alone",
    "ckpt-format": "proxy.checkpoint reads torch_dist",
    "split": "`megatron-fastmix preprocess --split` makes a dataset of each part; a search reads "
    "datasets whole",
    "num-workers": "a thread reads ahead",
    "dataloader-type": "draws are a function of seed, mixture and step",
    "mock-data": "`megatron-fastmix demo`",
    "pretrained-checkpoint": "proxy.checkpoint, or proxy.path for a Hugging Face folder",
    "num-gpus": "`megatron-fastmix search --num-ranks N`",
    "nproc-per-node": "`megatron-fastmix search --num-ranks N`",
    "nnodes": "launch/search_multinode.sh and its hostfile, or sbatch launch/search.sbatch",
    "node-rank": "launch/search_multinode.sh and its hostfile, or torchrun's own",
    "local-rank": "set by the launcher in LOCAL_RANK",
    "num-query-groups": "proxy.num_query_groups",
    "group-query-attention": "proxy.num_query_groups alone switches it on",
    "num-experts": "proxy.num_experts",
    "position-embedding-type": "rope always; see proxy.rotary_base and proxy.rotary_percent",
    "max-position-embeddings": "data.seq_length alone",
    "expert-model-parallel-size": "not there: every rank holds all experts; engine.zero_stage: 3 "
    "shards them",
    "recompute-method": "proxy.recompute_granularity: full recomputes every layer",
    "recompute-num-layers": "proxy.recompute_granularity: full recomputes every layer",
    "transformer-impl": "local always: estimators need each layer's inputs",
    "use-flash-attn": "torch's scaled_dot_product_attention chooses the kernel",
    "attention-backend": "torch's scaled_dot_product_attention chooses the kernel",
    "swiglu": "always on",
    "disable-bias-linear": "always on",
    "recompute-activations": "proxy.recompute_granularity: full",
    "use-distributed-optimizer": "engine.zero_stage: 1, or 2 or 3",
    "sequence-parallel": "not there; engine.zero_stage: 3 saves memory",
    "context-parallel-size": "not there; lower data.seq_length",
    "deepspeed_config": "engine.deepspeed_config",
    "exit-interval": "touch RUN_DIR/stop, or Ctrl-C",
    "lr-warmup-fraction": "training.lr_warmup_iters",
    "lr-warmup-samples": "training.lr_warmup_iters",
    "lr-decay-iters": "the decay ends at training.train_iters",
    "train-samples": "training.train_iters × training.global_batch_size",
    "eval-iters": "hypergradient.target_samples, at every outer step",
    "eval-interval": "targets are measured at every outer step, mixture.inner_steps apart",
    "hidden-dropout": "0 always: losses must be functions of the parameters and the batch alone",
    "attention-dropout": "0 always",
}
"""What users of Megatron and DeepSpeed look for under names that are no key here."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One field."""

    name: str
    """Dotted; `sources[].path` is a field of each source."""
    type: str
    default: str
    """As YAML has it; `required` without."""
    explanation: str


def keys() -> list[Key]:
    """All keys, in the order of the dataclasses."""
    return _keys_of(SearchConfig, "")


def find_keys(asked: str) -> list[Key]:
    """The key of that name, or those of the section. A flag of Megatron's form (`--train-iters`)
    and a last part alone are understood.

    Raises `ConfigError` with what Megatron's users mean by it, or the three nearest keys.
    """
    flag = asked.lower().removeprefix("--").removeprefix("fastmix-")
    name = flag.replace("-", "_")
    all_keys = keys()
    exact = [key for key in all_keys if name in (key.name, key.name.replace("[]", ""))]
    section = [key for key in all_keys if key.name.startswith((f"{name}.", f"{name}[]."))]
    last = [key for key in all_keys if key.name.rpartition(".")[2] == name]
    if found := exact or section or last:
        return found
    for spelling in (flag, flag.replace("_", "-")):
        if spelling in MEGATRON:
            raise ConfigError(f"{asked} is no key; here it is: {MEGATRON[spelling]}")
    near = sorted(all_keys, key=lambda key: -_likeness(name, key))[:3]
    raise ConfigError(
        f"{asked}: no such key; the nearest are {', '.join(key.name for key in near)}"
    )


def _likeness(asked: str, key: Key) -> float:
    """How well a key answers to a name that is none: by its spelling, and by its explanation."""
    section, _, last = asked.rpartition(".")
    own_section, _, own_last = key.name.replace("[]", "").rpartition(".")
    alike = difflib.SequenceMatcher(None, last, own_last).ratio()
    alike += 0.5 * (last in own_last.split("_")) + 0.3 * (last in own_last)
    words = re.findall(r"\w+", key.explanation.lower())
    alike += 0.6 * all(word in words for word in last.split("_"))
    return alike + 0.4 * (bool(section) and section == own_section)


def _keys_of(cls: type, prefix: str) -> list[Key]:
    hints, texts = typing.get_type_hints(cls), _explanations(cls)
    found = []
    for field in dataclasses.fields(cls):
        hint, name = hints[field.name], f"{prefix}{field.name}"
        inner = next(iter(typing.get_args(hint)), None)
        if dataclasses.is_dataclass(hint):
            found += _keys_of(typing.cast(type, hint), f"{name}.")
        elif dataclasses.is_dataclass(inner):
            found += _keys_of(typing.cast(type, inner), f"{name}[].")
        else:
            found.append(
                Key(
                    name=name,
                    type=_type_name(hint),
                    default=_default(field),
                    explanation=texts.get(field.name, ""),
                )
            )
    return found


def _explanations(cls: type) -> dict[str, str]:
    """The string below each field."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for one, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(one, ast.AnnAssign)
            and isinstance(one.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            texts[one.target.id] = " ".join(str(following.value.value).split())
    return texts


def _type_name(hint: typing.Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    arguments = typing.get_args(hint)
    if type(None) in arguments:
        return " or ".join(_type_name(a) for a in arguments if a is not type(None)) + " or null"
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(map(_type_name, arguments))
    if typing.get_origin(hint) is tuple:
        return f"list of {_type_name(arguments[0])}"
    return getattr(hint, "__name__", str(hint))


def _default(field: dataclasses.Field[typing.Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    plain = {None: "null", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)
