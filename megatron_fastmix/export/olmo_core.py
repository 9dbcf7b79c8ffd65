"""OLMo-core. Source: `SourceMixtureList` in `olmo_core/data/source_mixture.py`."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import yaml

from megatron_fastmix.export.blend import Blend


def source_mixture(blend: Blend) -> str:
    """The YAML of a `SourceMixtureList`, good for `requested_tokens` up to the token budget.

    OLMo-core maps its files into memory as bare token ids, which is what a .bin file holds, and
    counts all of them: of answer-only rows the questions', too.
    """
    sources: list[dict[str, Any]] = [
        {
            "source_name": entry.name,
            "target_ratio": float(entry.weight),
            "max_repetition_ratio": _repetitions(blend.epochs(entry)),
            "paths": [f"{entry.path}.bin"],
        }
        for entry in blend.sources
    ]
    text = yaml.safe_dump({"sources": sources}, sort_keys=False, allow_unicode=True)
    return f"# for requested_tokens up to {math.floor(round(blend.budget, 3))}\n{text}"


def _repetitions(epochs: Fraction) -> float:
    """Epochs of the source, in hundredths; 1 at the least, which is OLMo-core's own floor.

    One hundredth is slack: OLMo-core rounds tokens down and refuses what is one token short.
    """
    return max(1.0, (math.ceil(100 * epochs) + 1) / 100)
