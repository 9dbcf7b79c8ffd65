"""Which versions of DeepSpeed a search knows: it uses names in them that are not public."""

from __future__ import annotations

import importlib.metadata

from megatron_fastmix.errors import ConfigError

OLDEST = (0, 19, 8)
NEWEST = (0, 19)
"""First release and last minor version that are known to be right. Before the one, bf16 rounds the
buffers of a model, such as the phases of its rotary embedding, with its weights; under 0.18.0 to
0.18.2 the products are wrong in silence under ZeRO-2, with torch 2.6 and with 2.13 alike. Their
private names were read: the fragments of parameters that an optimizer steps (`_hp_mapping`,
`grad_position`, `fp32_partitioned_groups_flat`), the shards of ZeRO-3 (`ds_tensor`,
`empty_partition_cache`), and the table of compiled ops."""


def check_deepspeed(version: str | None = None) -> None:
    """Raises `ConfigError` unless `version` (default: the installed one) is known. Imports no
    DeepSpeed."""
    try:
        version = version or importlib.metadata.version("deepspeed")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("DeepSpeed is not installed: pip install megatron-fastmix") from None
    parts = version.split("+")[0].split(".")
    known = tuple(int(part) for part in parts[:3] if part.isdigit())
    if known < OLDEST or known[:2] > NEWEST:
        oldest, newest = (".".join(map(str, v)) for v in (OLDEST, NEWEST))
        raise ConfigError(
            f"DeepSpeed {version} is not one that a search knows ({oldest} or a later {newest}): "
            f"pip install 'deepspeed>={oldest},<0.{NEWEST[1] + 1}'"
        )
