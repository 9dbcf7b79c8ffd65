"""The benchmark of preprocessing: both flows write the same bytes, and every figure has its row."""

import pytest

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.lab.benchmarks import corpus as benchmark


@pytest.mark.slow
def test_both_flows_agree_and_every_figure_is_there(tmp_path):
    # Other bytes than the peer's would raise.
    comparisons = benchmark.compare(
        [0.2, 0.4],
        folder=tmp_path,
        tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        workers=2,
        repetitions=1,
        report=lambda line: None,
    )
    assert comparisons[0].ours.tokens == comparisons[0].peer.tokens > 100_000
    rows = benchmark.measurements(comparisons)
    assert [row.reach for row in rows] == [3.0, None, None, 3.0, None, None, 1.1]
    assert all(row.value > 0 for row in rows)
