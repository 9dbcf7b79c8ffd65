"""The configuration of a search, and the strict YAML that it is read from."""

from megatron_fastmix.config.search import (
    DataConfig,
    EngineConfig,
    HypergradientConfig,
    MixtureConfig,
    ObjectiveConfig,
    OutputConfig,
    ProxyConfig,
    SearchConfig,
    SourceConfig,
    TargetConfig,
    TokenizerConfig,
    TrainingConfig,
    dump_config,
    load_config,
    override_config,
)

__all__ = [
    "DataConfig",
    "EngineConfig",
    "HypergradientConfig",
    "MixtureConfig",
    "ObjectiveConfig",
    "OutputConfig",
    "ProxyConfig",
    "SearchConfig",
    "SourceConfig",
    "TargetConfig",
    "TokenizerConfig",
    "TrainingConfig",
    "dump_config",
    "load_config",
    "override_config",
]
