"""The figures of `tools/benchmark_search.py` that do not depend on the clock."""

from pathlib import Path

import pytest

from megatron_fastmix.lab.benchmarks.search import Bench, Settings
from megatron_fastmix.lab.measurements import Measurement, table, write_measurements


@pytest.mark.slow
def test_an_outer_step_reduces_little_more_than_one_gradient(tmp_path: Path) -> None:
    rows = Bench(tmp_path, Settings(global_batch_size=16, seq_length=32)).bytes_reduced()
    assert [row.reached for row in rows] == [True, True, True]
    # v itself must cross the ranks.
    assert all(row.value > 0.99 for row in rows)


def test_a_table_tells_what_was_not_reached(tmp_path: Path) -> None:
    rows = [
        Measurement(figure="fast", value=1.2, reach=1.5, better="lower", unit="ratio"),
        Measurement(figure="slow", value=8.0, reach=10.0, better="higher", unit="ratio"),
        Measurement(figure="plain", value=3.0, reach=None, better="lower", unit="s"),
    ]
    assert [row.reached for row in rows] == [True, False, None]
    lines = table(rows).splitlines()[2:]
    assert [line.endswith("not reached") for line in lines] == [False, True, False]
    write_measurements(tmp_path / "rows.json", rows, repetitions=3)
    assert '"repetitions": 3' in (tmp_path / "rows.json").read_text()
