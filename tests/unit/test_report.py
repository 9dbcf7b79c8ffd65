"""Metrics, progress, table and picture of a run."""

import io
import json
import math

import numpy as np
import pytest

from megatron_fastmix.errors import DataError
from megatron_fastmix.report.metrics import MetricsLog, read_metrics
from megatron_fastmix.report.plots import plot_weights, spread_out
from megatron_fastmix.report.progress import Progress
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.report.weight_history import weight_history


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write("inner", 1, loss=np.float64(2.5), bad=math.nan, nested={"a": [np.int64(3)]})
    (line,) = read_metrics(log.path)
    assert (line["kind"], line["step"], line["loss"]) == ("inner", 1, 2.5)
    assert line["bad"] is None
    assert line["nested"] == {"a": [3]}
    log.close()


def test_a_torn_last_line_is_dropped_and_later_steps_are_truncated(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(1, 6):
            log.write("inner", step, loss=step / 7)
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    with open(path, "ab") as file:
        file.write(b'{"kind": "in')
    with MetricsLog(path) as log:
        log.truncate_after(3)
        assert path.read_bytes() == b"".join(kept)
        log.write("inner", 4, loss=0.5)
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]


def test_a_malformed_line_is_refused_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "inner", "step": 1}\nnonsense\n{"kind": "inner", "step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        read_metrics(path)


def update(progress: Progress, step: int) -> None:
    progress.update(
        step,
        loss=4.0,
        target_loss=None if step < 2 else 4.5,
        weights={"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4},
        tokens_per_second=1234.0,
    )


def test_plain_lines_come_every_interval_and_at_the_end():
    stream = io.StringIO()
    with Progress(5, log_interval=2, stream=stream) as progress:
        for step in range(1, 6):
            update(progress, step)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert "iteration        2/       5 |" in lines[0]
    assert "target loss: 4.500000E+00" in lines[0]
    assert "leading sources: d 0.40, c 0.30, b 0.20" in lines[0]
    assert "time left: 0:00:00" in lines[-1]


def test_a_terminal_gets_a_bar_with_lines_above_it():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Progress(5, stream=stream) as progress:
        update(progress, 5)
        progress.line("a warning")
    assert "5/5" in stream.getvalue()
    assert "target 4.500" in stream.getvalue()
    assert "a warning\n" in stream.getvalue()


def test_the_table_says_what_was_learned_and_how_to_use_it(make_mixture):
    text = final_table(
        make_mixture({"small": 0.1, "large": 0.9}), blend_txt="run/blend.txt", blend_json=None
    )
    rows = text.splitlines()
    assert rows[2].split() == ["large", "0.5000", "0.9000", "±", "0.0100", "5,000", "1.80"]
    assert rows[3].startswith("small")
    assert "--data-args-path run/blend.txt --seq-length 32" in text
    assert "--per-split" not in text
    assert "Loss on target target: 5.5000" in text


def test_the_history_starts_at_the_initial_weights_and_averages_the_tail(tmp_path, make_metrics):
    make_metrics(tmp_path / "metrics.jsonl", ["a", "b", "c"])
    history = weight_history(read_metrics(tmp_path / "metrics.jsonl"))
    assert history.steps == list(range(13))
    assert history.weights["a"][0] == pytest.approx(1 / 3)
    assert history.averaged == 6
    assert history.mean["a"] == pytest.approx(np.mean(history.weights["a"][-6:]))
    assert sum(history.mean.values()) == pytest.approx(1)


@pytest.mark.parametrize("count", [2, 20])
def test_a_picture_is_drawn_for_few_and_many_sources(tmp_path, make_metrics, count):
    make_metrics(tmp_path / "metrics.jsonl", [f"source {i}" for i in range(count)])
    plot_weights(tmp_path / "metrics.jsonl", tmp_path / "weights.png")
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_without_an_outer_step_have_no_picture(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": "inner", "step": 1}) + "\n")
    with pytest.raises(DataError, match="no outer step yet"):
        plot_weights(path, tmp_path / "weights.png")


def test_labels_are_spread_so_that_none_overlap():
    positions = [0.5, 0.5, 0.51, 0.99, 1.0]
    placed = spread_out(positions, 0.1)
    assert all(0 <= y <= 1 for y in placed)
    gaps = np.diff(sorted(placed))
    assert np.all(gaps > 0.1 - 1e-9)
    assert [placed.index(y) for y in sorted(placed)] == [0, 1, 2, 3, 4]
