"""The figures of `tools/benchmark_scale.py` that do not depend on the clock."""

from __future__ import annotations

from pathlib import Path

from megatron_fastmix.lab.benchmarks.scale import Settings, measure


def test_what_grows_with_the_number_of_sources(tmp_path: Path) -> None:
    rows = measure(tmp_path, Settings(sources=(4, 24), shards=(24,), steps=2), lambda _: None)
    found = {row.figure: row.value for row in rows}
    assert len(found) == len(rows) == 3 * 12
    more = found["24 sources: files held by a rank"] - found["4 sources: files held by a rank"]
    assert more == 6 * 20 or more == 3 * 20  # indices that a rank has made itself are not mapped
    assert found["24 sources: outer line of metrics.jsonl"] < 24
    assert found["24 sources: inner step"] > 0
    # A line of eight sources, whatever their shards.
    line = "outer line of metrics.jsonl"
    assert found[f"24 shards: {line}"] < found[f"24 sources: {line}"]
