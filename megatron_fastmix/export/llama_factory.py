"""LLaMA-Factory. Source: `DataArguments`, whose `interleave_probs` count rows."""

from __future__ import annotations

import yaml

from megatron_fastmix.export.blend import Blend
from megatron_fastmix.export.rows import row_shares


def interleaved(blend: Blend) -> str:
    """The data section of a training YAML; datasets are named as in dataset_info.json."""
    shares = row_shares(blend, "documents")
    section = {
        "dataset": ",".join(shares),
        "mix_strategy": "interleave_over",
        "interleave_probs": ",".join(f"{share:.6f}" for share in shares.values()),
    }
    return yaml.safe_dump(section, sort_keys=False, allow_unicode=True)
