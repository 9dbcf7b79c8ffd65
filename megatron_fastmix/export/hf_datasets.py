"""Hugging Face datasets. Source: `datasets.interleave_datasets`, whose probabilities count rows."""

from __future__ import annotations

import json

from megatron_fastmix.export.blend import Blend

HEAD = "from datasets import interleave_datasets\n\nSOURCES = {\n"
FUNCTION = '''

def blend(datasets, seed=1234, stopping_strategy="all_exhausted"):
    """Interleaves datasets, given by source name; all_exhausted repeats the ones that end first."""
    return interleave_datasets(
        [datasets[name] for name in SOURCES],
        probabilities=[source["probability"] for source in SOURCES.values()],
        seed=seed,
        stopping_strategy=stopping_strategy,
    )
'''


def interleave(blend: Blend) -> str:
    """A Python file: the sources with their probabilities, and the call that interleaves them."""
    lines: list[str] = []
    for entry in blend.sources:
        values = {"path": entry.path, "probability": float(entry.weight)}
        name = json.dumps(entry.name, ensure_ascii=False)
        lines.append(f"    {name}: {json.dumps(values, ensure_ascii=False)},")
    lines.append("}")
    return HEAD + "\n".join(lines) + "\n" + FUNCTION
