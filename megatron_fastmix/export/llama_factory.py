"""LLaMA-Factory. Source: `DataArguments`, whose `interleave_probs` count rows."""

from __future__ import annotations

import yaml

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import Blend


def interleaved(blend: Blend) -> str:
    """The data section of a training YAML; datasets are named as in dataset_info.json. Raises
    `DataError` for a name with a comma."""
    for entry in blend.sources:
        if "," in entry.name:
            raise DataError(
                f"source {entry.name}: LLaMA-Factory splits the list of datasets at commas; rename "
                "the source in mixture.json"
            )
    section = {
        "dataset": ",".join(entry.name for entry in blend.sources),
        "mix_strategy": "interleave_over",
        "interleave_probs": ",".join(entry.weight for entry in blend.sources),
    }
    return yaml.safe_dump(section, sort_keys=False, allow_unicode=True)
