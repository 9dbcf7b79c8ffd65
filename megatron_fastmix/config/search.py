"""The configuration of a search: frozen dataclasses, one per subject.

Field names are Megatron's flag names where Megatron has the flag (`--seq-length`,
`--micro-batch-size`, `--train-iters`, ...). `load_config` reads a YAML file strictly and applies
`--key=value` overrides; a value that cannot work is refused here, before any rank starts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError


def _require(condition: bool, where: str, found: Any, fix: str) -> None:
    if not condition:
        raise ConfigError(f"{where}: found {found!r}; {fix}")


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One training source."""

    name: str
    """Name of the source in every artefact."""
    path: str
    """Prefix of the indexed dataset PATH.bin and PATH.idx, as in Megatron's --data-path."""
    min_weight: float = 0.0
    """The source's share α_k never falls below this."""
    max_weight: float = 1.0
    """The source's share α_k never rises above this."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.min_weight <= self.max_weight <= 1 and self.max_weight > 0,
            f"source {self.name}: min_weight and max_weight",
            [self.min_weight, self.max_weight],
            "use shares with 0 ≤ min_weight ≤ max_weight ≤ 1 and max_weight > 0",
        )


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """One held-out target: data whose loss the mixture is to lower."""

    name: str
    """Name of the target in every artefact."""
    path: str
    """Prefix of the indexed dataset, without .bin and .idx. Must not be a source."""
    weight: float = 1.0
    """ω_v, the target's weight in ℓ; weights are normalised to sum 1. `least_gain` chooses its
    own, and admits no unequal ones."""
    reference_loss: float = 0.0
    """Nats per token that count as good on this target, such as those of a model trained on it
    alone; `worst_case` compares what each target's loss has above it. Under `least_gain`, where
    other methods are compared, the proxy's loss under the initial mixture."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The tokenizer that wrote every dataset of the run."""

    tokenizer_type: str
    """Megatron's --tokenizer-type; `corpus.tokenizers` lists the ones that it loads."""
    tokenizer_model: str | None = None
    """Megatron's --tokenizer-model: the tokenizer's file; none for bytes."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How samples are cut from the sources."""

    seq_length: int = 256
    """Tokens per sample (Megatron's --seq-length)."""
    packing: bool = True
    """Whether rows of answer-only data share a row of seq_length tokens, each attending to itself
    alone; otherwise each has a row of its own, padded to the longest of the micro-batch."""
    max_cut_share: float = 0.05
    """Largest share of a dataset's rows whose answer seq_length may cut."""
    data_cache_path: str | None = None
    """Where Megatron caches dataset indices; default: `cache` in the run folder."""

    def __post_init__(self) -> None:
        _require(self.seq_length >= 2, "data.seq_length", self.seq_length, "use at least 2")
        _require(
            0 <= self.max_cut_share <= 1,
            "data.max_cut_share",
            self.max_cut_share,
            "use a share from 0 to 1",
        )


@dataclass(frozen=True, kw_only=True)
class ProxyConfig:
    """The small model that is trained during the search: a Megatron-core GPT of the sizes below, or
    a pretrained Hugging Face model."""

    kind: Literal["megatron", "huggingface"] = "megatron"
    """`huggingface` needs the extra of that name, and takes its sizes from `path`."""
    path: str | None = None
    """Directory of a Hugging Face causal language model (config.json, safetensors, tokenizer), or
    its name on the hub."""
    lora_rank: int = 0
    """Rank of LoRA adapters on every linear layer of a Hugging Face model; 0 trains all of it."""
    lora_alpha: float = 16.0
    """Scale of the adapters: their product counts lora_alpha / lora_rank times."""
    checkpoint: str | None = None
    """Run folder of an earlier search; its trained Megatron proxy is the starting point."""
    num_layers: int = 4
    """Transformer layers."""
    hidden_size: int = 128
    """Width of the residual stream."""
    num_attention_heads: int = 4
    """Attention heads; must divide hidden_size."""
    ffn_hidden_size: int | None = None
    """Width of the SwiGLU feed-forward; default 8/3 of hidden_size, rounded up to 32."""
    make_vocab_size_divisible_by: int = 128
    """Embedding rows are padded to a multiple of this times the tensor-parallel size."""
    untie_embeddings_and_output_weights: bool = False
    """Whether the output layer has weights of its own."""
    init_method_std: float = 0.02
    """Standard deviation of initial weights."""

    def __post_init__(self) -> None:
        pretrained = self.kind == "huggingface"
        _require(
            pretrained == (self.path is not None),
            "proxy.path",
            self.path,
            "proxy.kind huggingface needs the model's directory, and megatron takes none",
        )
        _require(
            self.lora_rank >= 0 and (pretrained or not self.lora_rank),
            "proxy.lora_rank",
            self.lora_rank,
            "adapters are for proxy.kind huggingface; use 0 without",
        )
        _require(
            not (pretrained and self.checkpoint),
            "proxy.checkpoint",
            self.checkpoint,
            "proxy.kind huggingface starts from proxy.path",
        )
        _require(self.num_layers >= 1, "proxy.num_layers", self.num_layers, "use at least 1")
        _require(
            self.hidden_size % self.num_attention_heads == 0
            and self.hidden_size // self.num_attention_heads % 2 == 0,
            "proxy.num_attention_heads",
            self.num_attention_heads,
            f"it must divide hidden_size {self.hidden_size} into heads of even size (rotary)",
        )

    @property
    def feed_forward_size(self) -> int:
        """`ffn_hidden_size`, or its default."""
        return self.ffn_hidden_size or -(-8 * self.hidden_size // 3 // 32) * 32


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The inner loop: how the proxy is trained."""

    train_iters: int = 400
    """Optimizer steps of the whole search."""
    micro_batch_size: int = 8
    """Samples per rank and forward pass."""
    global_batch_size: int = 32
    """Samples per optimizer step over all ranks and accumulation steps."""
    lr: float = 2e-3
    """Peak learning rate η of AdamW."""
    min_lr: float = 2e-4
    """Learning rate at the end of the decay."""
    lr_warmup_iters: int = 20
    """Steps of linear warm-up."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape of the decay from lr to min_lr over train_iters."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    clip_grad: float = 1.0
    """Gradient norm is clipped to this; 0 switches clipping off."""

    def __post_init__(self) -> None:
        for name in ("train_iters", "micro_batch_size", "global_batch_size"):
            _require(
                getattr(self, name) >= 1, f"training.{name}", getattr(self, name), "use at least 1"
            )
        _require(self.lr > 0, "training.lr", self.lr, "use a positive learning rate")
        _require(
            0 <= self.min_lr <= self.lr,
            "training.min_lr",
            self.min_lr,
            f"choose it between 0 and lr {self.lr}",
        )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the mixture is to lower: ℓ = Σ_v ω_v·ℓ_v + β·L_train + λ·Σ α_k log α_k."""

    target_aggregation: Literal["mean", "worst_case", "least_gain"] = "mean"
    """`mean` keeps ω_v as configured. `least_gain` chooses them at every step for the target whose
    loss gains least over the initial mixture, in nats, so that none is sacrificed; it needs a probe
    for each target, and a target that no source helps holds all others back. `worst_case` moves
    them to the targets with the largest loss above `reference_loss` (exponentiated weights; Sagawa
    et al., 2020, algorithm 1)."""
    target_lr: float = 0.1
    """Step of `worst_case`: ω_v grows by exp(target_lr·(ℓ_v − reference_loss_v)) per outer step."""
    train_loss_weight: float = 0.0
    """β: v becomes ∇ℓ_target + β·∇L_train (paper: 0.1 to 0.3 best)."""
    entropy_weight: float = 0.0
    """λ; positive values raise the entropy of the mixture (paper: < 1e-5)."""
    prior_weights: tuple[float, ...] | None = None
    """α₀ in the order of `sources`: λ·KL(α‖α₀) replaces λ·Σ α_k log α_k, and pulls α to α₀."""

    def __post_init__(self) -> None:
        for name in ("target_lr", "train_loss_weight"):
            _require(
                getattr(self, name) >= 0, f"objective.{name}", getattr(self, name), "use 0 or more"
            )


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """The outer loop: how the mixture logits move."""

    initial_weights: tuple[float, ...] | None = None
    """Starting mixture in the order of `sources`; default uniform."""
    inner_steps: int = 20
    """n1, optimizer steps between two outer steps (the paper's best value)."""
    weighting: Literal["loss", "sampling"] = "loss"
    """How α acts on the proxy's training: `loss` draws the sources evenly and weighs a sample's
    loss by K·α, `sampling` draws them by α. Both have the same expectation."""
    optimizer: Literal["adam", "sgd", "mirror_descent", "scaled_mirror_descent"] = "adam"
    """Outer optimizer: Adam or SGD on the logits z, or exponentiated gradient on α; of the latter
    `scaled_mirror_descent` is free of the hypergradient's scale, as Adam is, and the surest where
    outer steps are few and noisy."""
    lr: float = 0.1
    """Outer learning rate; 0 freezes the mixture. Adam's is the change of a logit per outer step,
    `scaled_mirror_descent`'s its root mean square over the sources; `sgd` and `mirror_descent`
    multiply the hypergradient, about 1e-5 to 1e-3, and so need 1e2 and more."""
    min_lr: float = 0.0
    """Outer learning rate at the end of the decay."""
    lr_warmup_steps: int = 0
    """Outer steps of linear warm-up."""
    lr_decay_style: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the decay from lr to min_lr over the outer steps of the run."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    """Of Adam, and of the scale in `scaled_mirror_descent`, for which 0.9 suits few outer steps."""
    adam_eps: float = 1e-12
    """Products are about 1e-4, so Adam's usual 1e-8 would be felt."""
    averaging_fraction: float = 0.5
    """The reported mixture averages the iterates of this last part of the run."""

    def __post_init__(self) -> None:
        _require(self.inner_steps >= 1, "mixture.inner_steps", self.inner_steps, "use at least 1")
        _require(self.lr >= 0, "mixture.lr", self.lr, "use 0 or more")
        _require(
            self.lr_decay_style == "constant" or 0 <= self.min_lr <= self.lr,
            "mixture.min_lr",
            self.min_lr,
            f"choose it between 0 and lr {self.lr}",
        )
        _require(
            0 < self.averaging_fraction <= 1,
            "mixture.averaging_fraction",
            self.averaging_fraction,
            "use a fraction in (0, 1]",
        )


@dataclass(frozen=True, kw_only=True)
class HypergradientConfig:
    """How ⟨v, ∇L_k⟩ is estimated."""

    estimator: Literal["finite_difference", "per_source", "last_layer"] = "finite_difference"
    """A name in `hypergradient.ESTIMATORS`."""
    target_samples: int = 64
    """Target samples per outer step over all ranks, from which v is computed."""
    probe_samples_per_source: int = 8
    """Probe samples of each source per outer step over all ranks, on average."""
    probe_allocation: Literal["even", "weighted"] = "even"
    """`weighted` gives every source 2 and the rest by its weight."""
    relative_step: float = 1e-4
    """r in ε = r·‖θ‖/‖v‖ of the finite difference; 1e-4 gave a relative error of 2e-4 in fp32."""
    per_target: bool = False
    """Whether the products of each target are estimated and logged apart: a probe for each target
    instead of one for all. `least_gain` implies it."""
    preconditioner: Literal["none", "adam"] = "none"
    """`adam` divides v by √(second moment) + eps, as the inner AdamW step divides the gradient:
    the derivative of the step that is taken, at another scale (λ must follow it)."""

    def __post_init__(self) -> None:
        for name in ("target_samples", "probe_samples_per_source"):
            _require(
                getattr(self, name) >= 1,
                f"hypergradient.{name}",
                getattr(self, name),
                "use at least 1",
            )
        _require(
            self.probe_allocation == "even" or self.probe_samples_per_source > 2,
            "hypergradient.probe_samples_per_source",
            self.probe_samples_per_source,
            "probe_allocation weighted gives 2 to each source and shares out the others: use 3 or "
            "more, or probe_allocation even",
        )
        _require(
            self.relative_step > 0,
            "hypergradient.relative_step",
            self.relative_step,
            "use a positive step",
        )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """DeepSpeed and parallelism."""

    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision in which the proxy trains. `finite_difference` runs its probe in fp32 either way,
    since a perturbation of bf16 parameters rounds away."""
    tensor_model_parallel_size: int = 1
    """Ranks that share each layer (Megatron's flag)."""
    pipeline_model_parallel_size: int = 1
    """Must be 1: DeepSpeed's ZeRO 2 and 3 exclude pipelines, and a proxy fits without."""
    distributed_timeout_minutes: int = 10
    """Longest wait in a collective before the run is stopped (Megatron's flag)."""

    def __post_init__(self) -> None:
        size = self.tensor_model_parallel_size
        _require(size >= 1, "engine.tensor_model_parallel_size", size, "use at least 1")
        _require(
            self.pipeline_model_parallel_size == 1,
            "engine.pipeline_model_parallel_size",
            self.pipeline_model_parallel_size,
            "use 1: ZeRO 2 and 3 exclude pipelines, and a proxy fits without; to split a large "
            "one, use engine.zero_stage 3 or engine.tensor_model_parallel_size",
        )


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """What the run leaves behind, and how often."""

    log_interval: int = 10
    """Steps between two lines of progress where there is no terminal."""
    save_interval: int = 100
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk."""
    token_budget: int | None = None
    """Tokens of the final run, for the epochs implied; default: all tokens of the sources."""
    tensorboard_dir: str | None = None
    """Folder of TensorBoard's event files (Megatron's --tensorboard-dir); default: none."""
    wandb_project: str | None = None
    """Project of Weights & Biases (Megatron's --wandb-project); default: none."""

    def __post_init__(self) -> None:
        for name in ("log_interval", "save_interval", "keep_checkpoints"):
            _require(
                getattr(self, name) >= 1, f"output.{name}", getattr(self, name), "use at least 1"
            )


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Everything that a search depends on."""

    run_dir: str
    """Folder of the run; created, or resumed when it holds a checkpoint."""
    sources: tuple[SourceConfig, ...]
    """The K sources."""
    targets: tuple[TargetConfig, ...]
    """The V targets."""
    tokenizer: TokenizerConfig
    seed: int = 1234
    """Seed of the draws, of the proxy's initial weights and of the probe."""
    data: DataConfig = field(default_factory=DataConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    hypergradient: HypergradientConfig = field(default_factory=HypergradientConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        _require(
            len(names) >= 2, "sources", names, "a mixture needs at least 2 sources to choose from"
        )
        _require(len(self.targets) >= 1, "targets", [], "name at least one held-out target")
        for where, found in (("sources", names), ("targets", [t.name for t in self.targets])):
            twice = [name for name, count in Counter(found).items() if count > 1]
            _require(not twice, where, twice, "each name may occur once; rename one of them")
        shared = {s.path for s in self.sources} & {t.path for t in self.targets}
        _require(not shared, "targets", sorted(shared), "a target must not be a source")
        total = sum(target.weight for target in self.targets)
        _require(
            all(t.weight >= 0 for t in self.targets) and total > 0,
            "targets",
            [t.weight for t in self.targets],
            "target weights must be 0 or more, and not all 0",
        )
        for where, weights in (
            ("mixture.initial_weights", self.mixture.initial_weights),
            ("objective.prior_weights", self.objective.prior_weights),
        ):
            _require(
                weights is None or (len(weights) == len(names) and all(w > 0 for w in weights)),
                where,
                weights and list(weights),
                f"give one positive weight for each of the {len(names)} sources",
            )
        lowest, highest = map(sum, self.bounds)
        _require(
            lowest <= 1 + 1e-9 and highest >= 1 - 1e-9,
            "sources",
            [[source.min_weight, source.max_weight] for source in self.sources],
            "the sum of min_weight must not exceed 1, nor that of max_weight fall below it",
        )
        self._check_proxy()
        shares = sorted({target.weight for target in self.targets})
        _require(
            self.objective.target_aggregation != "least_gain" or len(shares) == 1,
            "targets: weight",
            shares,
            "target_aggregation least_gain chooses the weights of targets itself: leave them out",
        )
        _require(
            self.mixture.inner_steps <= self.training.train_iters,
            "mixture.inner_steps",
            self.mixture.inner_steps,
            f"it must not exceed train_iters {self.training.train_iters}: no outer step would run",
        )

    def _check_proxy(self) -> None:
        size = self.engine.tensor_model_parallel_size
        unsplit = self.proxy.kind == "huggingface" or self.proxy.checkpoint
        _require(
            size == 1 or not unsplit,
            "engine.tensor_model_parallel_size",
            size,
            "use 1 with proxy.kind huggingface or proxy.checkpoint; zero_stage 3 shards them",
        )
        bf16_adapters = self.proxy.lora_rank and self.engine.dtype == "bf16"
        _require(
            not bf16_adapters or self.hypergradient.estimator != "finite_difference",
            "hypergradient.estimator",
            self.hypergradient.estimator,
            "the frozen weights around LoRA stay in bf16, which the finite difference cannot see "
            "through; use per_source, or engine.dtype fp32",
        )
        _require(
            not self.proxy.lora_rank or self.hypergradient.estimator != "last_layer",
            "hypergradient.estimator",
            self.hypergradient.estimator,
            "LoRA leaves the output layer frozen; use finite_difference or per_source",
        )
        for name in ("num_attention_heads", "feed_forward_size"):
            _require(
                getattr(self.proxy, name) % size == 0,
                "engine.tensor_model_parallel_size",
                size,
                f"it must divide proxy.{name} {getattr(self.proxy, name)}",
            )

    @property
    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Lower and upper bounds of α, in the order of `sources`."""
        return (
            tuple(source.min_weight for source in self.sources),
            tuple(source.max_weight for source in self.sources),
        )

    @property
    def outer_steps(self) -> int:
        """Outer steps of the whole run."""
        return self.training.train_iters // self.mixture.inner_steps

    def data_parallel_size(self, ranks: int) -> int:
        """Data-parallel size of `ranks` ranks; raises `ConfigError` where they do not divide."""
        size = self.engine.tensor_model_parallel_size
        _require(
            ranks % size == 0,
            "engine.tensor_model_parallel_size",
            size,
            f"it must divide the number of ranks, {ranks}",
        )
        return ranks // size

    @property
    def source_names(self) -> list[str]:
        return [source.name for source in self.sources]

    @property
    def estimates_per_target(self) -> bool:
        """Whether each target has a probe and products of its own."""
        least_gain = self.objective.target_aggregation == "least_gain"
        return self.hypergradient.per_target or least_gain

    @property
    def target_weights(self) -> list[float]:
        """ω_v, summing to 1."""
        total = sum(target.weight for target in self.targets)
        return [target.weight / total for target in self.targets]

    def accumulation_steps(self, data_parallel_size: int) -> int:
        """Micro-batches per rank and step; raises `ConfigError` where sizes do not divide."""
        per_pass = self.training.micro_batch_size * data_parallel_size
        _require(
            self.training.global_batch_size % per_pass == 0,
            "training.global_batch_size",
            self.training.global_batch_size,
            f"it must be a multiple of micro_batch_size {self.training.micro_batch_size} times "
            f"data-parallel size {data_parallel_size} = {per_pass}",
        )
        return self.training.global_batch_size // per_pass


OWN_SECTIONS = ("objective", "mixture", "hypergradient", "output")
"""Sections without a counterpart in Megatron: their keys take the prefix `--fastmix-` where
Megatron has a flag of that name, such as `--lr`."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Reads `path` and applies `--key=value` overrides. Raises `ConfigError`."""
    return _from_values(strict_yaml.load_yaml(path), overrides)


def override_config(config: SearchConfig, overrides: Sequence[str]) -> SearchConfig:
    """`config` with `--key=value` overrides. Raises `ConfigError`."""
    return _from_values(strict_yaml.to_dict(config), overrides)


def _from_values(values: dict[str, Any], overrides: Sequence[str]) -> SearchConfig:
    values = strict_yaml.apply_overrides(SearchConfig, values, overrides, OWN_SECTIONS)
    return strict_yaml.from_dict(SearchConfig, values)


def dump_config(config: SearchConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(strict_yaml.to_dict(config), sort_keys=False, allow_unicode=True)
