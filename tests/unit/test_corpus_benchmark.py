"""The benchmark of preprocessing: both flows write the same bytes, and every figure has its row."""

import pytest

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.errors import ConfigError
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


def test_a_text_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    def texts():
        yield "first"
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "_installed_texts", texts)
    with pytest.raises(KeyboardInterrupt):
        benchmark.write_text(tmp_path / "text.jsonl", 1000)
    assert not (tmp_path / "text.jsonl").exists()


@pytest.mark.slow
def test_what_a_measured_process_refuses_is_said(tmp_path):
    text = tmp_path / "text_1MB.jsonl"
    text.write_text('{"text": "a"}\n')
    with pytest.raises(ConfigError, match="tokenizer_type: found 'Nope'"):
        benchmark.compare([1], folder=tmp_path, tokenizer=TokenizerConfig(tokenizer_type="Nope"))
