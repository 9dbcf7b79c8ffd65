"""A search: its parts, and what must hold between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

from megatron_fastmix.config.data import DataConfig, SourceConfig, TargetConfig, TokenizerConfig
from megatron_fastmix.config.engine import EngineConfig
from megatron_fastmix.config.groups import GroupConfig, check_groups
from megatron_fastmix.config.hypergradient import HypergradientConfig
from megatron_fastmix.config.mixture import MixtureConfig
from megatron_fastmix.config.objective import ObjectiveConfig
from megatron_fastmix.config.output import OutputConfig
from megatron_fastmix.config.proxy import ProxyConfig
from megatron_fastmix.config.require import folder_as_in_a_shell, require
from megatron_fastmix.config.tokens import tokens
from megatron_fastmix.config.training import TrainingConfig
from megatron_fastmix.dataset_paths import is_pattern
from megatron_fastmix.errors import DataError
from megatron_fastmix.same_file import dataset_keys


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Everything that a search depends on."""

    run_dir: str
    """Folder of the run; created, or resumed when it holds a checkpoint. A ~ at its beginning is
    the home folder, as in a shell."""
    sources: tuple[SourceConfig, ...]
    """The K sources."""
    targets: tuple[TargetConfig, ...]
    """The V targets."""
    tokenizer: TokenizerConfig
    groups: tuple[GroupConfig, ...] = ()
    """Bounds and priors of groups of sources (`sources[].group`); others have none."""
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
        object.__setattr__(self, "run_dir", folder_as_in_a_shell(self.run_dir, "run_dir"))
        require(
            0 <= self.seed < 2**32,
            "seed",
            self.seed,
            "use 0 to 4294967295, the seeds of NumPy's generators, which cut the samples",
        )
        names = [source.name for source in self.sources]
        require(
            len(names) >= 2, "sources", names, "a mixture needs at least 2 sources to choose from"
        )
        require(len(self.targets) >= 1, "targets", [], "name at least one held-out target")
        for where, found in (("sources", names), ("targets", [t.name for t in self.targets])):
            twice = [name for name, count in Counter(found).items() if count > 1]
            require(not twice, where, twice, "each name may occur once; rename one of them")
        self._check_datasets()
        total = sum(target.weight for target in self.targets)
        require(
            total > 0,
            "targets",
            [target.weight for target in self.targets],
            "target weights must not all be 0",
        )
        for where, weights in (
            ("mixture.initial_weights", self.mixture.initial_weights),
            ("objective.prior_weights", self.objective.prior_weights),
        ):
            require(
                weights is None or (len(weights) == len(names) and all(w > 0 for w in weights)),
                where,
                weights and list(weights),
                f"give one positive weight for each of the {len(names)} sources",
            )
        lowest, highest = map(sum, self.bounds)
        require(
            lowest <= 1 + 1e-9 and highest >= 1 - 1e-9,
            "sources",
            [[source.min_weight, source.max_weight] for source in self.sources],
            "the sum of min_weight must not exceed 1, nor that of max_weight fall below it",
        )
        check_groups(
            self.sources,
            self.groups,
            learn=self.mixture.learn,
            entropy_weight=self.objective.entropy_weight,
            prior_weights=self.objective.prior_weights,
        )
        self._check_budget()
        self._check_proxy()
        shares = sorted({target.weight for target in self.targets})
        require(
            not self.objective.needs_products_by_target or len(shares) == 1,
            "targets: weight",
            shares,
            "target_aggregation least_gain chooses the weights of targets itself: leave them out",
        )
        require(
            self.mixture.inner_steps > 1
            or (self.hypergradient.probe, self.hypergradient.preconditioner)
            != ("training", "adam"),
            "mixture.inner_steps",
            self.mixture.inner_steps,
            "with hypergradient.probe training the first outer step would come before Adam has "
            "moments for hypergradient.preconditioner: use 2 or more",
        )
        require(
            self.mixture.inner_steps <= self.training.train_iters,
            "mixture.inner_steps",
            self.mixture.inner_steps,
            f"it must not exceed train_iters {self.training.train_iters}: no outer step would run",
        )
        require(
            self.mixture.lr_warmup_steps <= self.outer_steps,
            "mixture.lr_warmup_steps",
            self.mixture.lr_warmup_steps,
            f"it must not exceed the {self.outer_steps} outer steps of the run",
        )

    def _check_budget(self) -> None:
        budget, older = self.data.budget, tokens(self.output.token_budget, "output.token_budget")
        require(
            budget is None or older in (None, budget),
            "output.token_budget",
            older,
            f"it is the older name of data.token_budget, which is {budget}: leave it out",
        )
        require(
            budget is None or self.mixture.weighting == "sampling",
            "mixture.weighting",
            self.mixture.weighting,
            "data.token_budget has the search repeat sources as the run will, and so needs draws "
            "that follow the mixture: use sampling; or set output.token_budget, which only counts "
            "the epochs implied",
        )

    def _check_datasets(self) -> None:
        """What is not there yet is no reason to refuse a configuration; it is when it is opened."""
        owners: dict[Hashable, SourceConfig] = {}
        for source in self.sources:
            pattern = is_pattern(source.path)
            for prefix in _present(source):
                keys = dataset_keys(prefix)
                twice = next((owners[key] for key in keys if key in owners), None)
                require(
                    twice is None or not (pattern or is_pattern(twice.path)),
                    "sources",
                    prefix,
                    f"both {twice and twice.name} and {source.name} hold it; narrow their paths: a "
                    "dataset has one source",
                )
                owners |= dict.fromkeys(keys, source)
        shared = [
            prefix
            for target in self.targets
            for prefix in _present(target)
            if not dataset_keys(prefix).isdisjoint(owners)
        ]
        require(not shared, "targets", shared, "a target must not be a source, by whatever path")

    def _check_proxy(self) -> None:
        size = self.engine.tensor_model_parallel_size
        require(
            size == 1 or self.proxy.kind != "huggingface",
            "engine.tensor_model_parallel_size",
            size,
            "use 1 with proxy.kind huggingface; zero_stage 3 shards its models",
        )
        bf16_adapters = self.proxy.lora_rank and self.engine.dtype == "bf16"
        require(
            not bf16_adapters or self.hypergradient.estimator != "finite_difference",
            "hypergradient.estimator",
            self.hypergradient.estimator,
            "the frozen weights around LoRA stay in bf16, which the finite difference cannot see "
            "through; use one_pass, per_source, or engine.dtype fp32",
        )
        require(
            not self.proxy.lora_rank or self.hypergradient.estimator != "last_layer",
            "hypergradient.estimator",
            self.hypergradient.estimator,
            "LoRA leaves the output layer frozen; use one_pass or another",
        )
        resets = (self.data.reset_position_ids, self.data.reset_attention_mask)
        require(
            self.proxy.kind != "huggingface" or resets[0] == resets[1],
            "data.reset_position_ids and data.reset_attention_mask",
            list(resets),
            "transformers tells documents apart by their positions: set both alike with proxy.kind "
            "huggingface",
        )
        require(
            self.proxy.kind != "provider" or self.proxy.recompute_granularity is None,
            "proxy.recompute_granularity",
            self.proxy.recompute_granularity,
            "with proxy.kind provider your function says what is run again: leave it out",
        )
        pattern = self.proxy.hybrid_layer_pattern
        require(
            pattern is None or "M" not in pattern or self.hypergradient.estimator != "one_pass",
            "hypergradient.estimator",
            self.hypergradient.estimator,
            f"proxy.hybrid_layer_pattern {pattern} has Mamba layers, which hand their weights to "
            "one kernel: use finite_difference or per_source",
        )
        require(
            pattern is None or "M" not in pattern or not self.data.packing,
            "data.packing",
            self.data.packing,
            f"proxy.hybrid_layer_pattern {pattern} has Mamba layers, which would carry their state "
            "from one sample of a row to the next: use false",
        )
        require(
            size == 1 or self.proxy.num_experts is None,
            "engine.tensor_model_parallel_size",
            size,
            "use 1 with proxy.num_experts; zero_stage 3 shards them",
        )
        # Each rank holds the whole norm and sees the gradient of its own heads alone: nothing adds
        # these up, so the copies would drift apart, and the products with them.
        require(
            size == 1 or not self.proxy.qk_layernorm,
            "engine.tensor_model_parallel_size",
            size,
            "use 1 with proxy.qk_layernorm, whose weights all heads share; zero_stage 3 shards "
            "the proxy",
        )
        for name in ("num_attention_heads", "query_groups", "feed_forward_size"):
            require(
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

    def prefixes(self) -> list[str]:
        """Those of all datasets of sources and targets, as they are there now. Raises `DataError`
        for a source or target without one."""
        found = [prefix for source in self.sources for prefix in source.prefixes()]
        return found + [prefix for target in self.targets for prefix in target.prefixes()]

    @property
    def token_budget(self) -> int | None:
        """Loss tokens of the final run, for epochs and exports; None for those of all sources."""
        return self.data.budget or tokens(self.output.token_budget, "output.token_budget")

    @property
    def outer_steps(self) -> int:
        """Outer steps of the whole run."""
        return self.training.train_iters // self.mixture.inner_steps

    def data_parallel_size(self, ranks: int) -> int:
        """Data-parallel size of `ranks` ranks; raises `ConfigError` where they do not divide."""
        size = self.engine.tensor_model_parallel_size
        require(
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
        return self.hypergradient.per_target or self.objective.needs_products_by_target

    @property
    def target_weights(self) -> list[float]:
        """ω_v, summing to 1."""
        total = sum(target.weight for target in self.targets)
        return [target.weight / total for target in self.targets]

    def accumulation_steps(self, data_parallel_size: int) -> int:
        """Micro-batches per rank and step; raises `ConfigError` where sizes do not divide."""
        batch, micro = self.training.global_batch_size, self.training.micro_batch_size
        per_pass = micro * data_parallel_size
        fitting = [size for size in range(1, data_parallel_size) if batch % (micro * size) == 0]
        fewer = f", or use {fitting[-1]} ranks for one copy of the proxy each" if fitting else ""
        require(
            batch % per_pass == 0,
            "training.global_batch_size",
            batch,
            f"it must be a multiple of micro_batch_size {micro} times data-parallel size "
            f"{data_parallel_size} = {per_pass}: raise it{fewer}",
        )
        return batch // per_pass


def _present(dataset: SourceConfig | TargetConfig) -> tuple[str, ...]:
    try:
        return dataset.prefixes()
    except DataError:
        return ()


OWN_SECTIONS = ("objective", "mixture", "hypergradient", "output")
"""Sections without a counterpart in Megatron: their keys take the prefix `--fastmix-` where
Megatron has a flag of that name, such as `--lr`."""
