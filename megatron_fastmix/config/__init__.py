"""The configuration of a search: frozen dataclasses, one file per subject.

Field names are Megatron's flag names where Megatron has the flag (`--seq-length`,
`--micro-batch-size`, `--train-iters`, ...). `load_config` reads a YAML file strictly and applies
`--key=value` overrides; a value that cannot work is refused here, before any rank starts.
"""

from megatron_fastmix.config.data import DataConfig, SourceConfig, TargetConfig, TokenizerConfig
from megatron_fastmix.config.engine import EngineConfig
from megatron_fastmix.config.hypergradient import HypergradientConfig
from megatron_fastmix.config.load import dump_config, load_config, override_config
from megatron_fastmix.config.mixture import MixtureConfig
from megatron_fastmix.config.objective import ObjectiveConfig
from megatron_fastmix.config.output import OutputConfig
from megatron_fastmix.config.proxy import ProxyConfig
from megatron_fastmix.config.search import SearchConfig
from megatron_fastmix.config.training import TrainingConfig

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
