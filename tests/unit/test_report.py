"""Metrics, progress, table and picture of a run."""

import io
import json
import math
import re
import shlex
import time

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_fastmix.errors import DataError
from megatron_fastmix.report.plots import plot_weights, spread_out
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.run.metrics import MetricsLog, read_metrics
from megatron_fastmix.run.progress import Progress, leading_sources


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


def test_the_next_line_does_not_join_a_torn_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "inner", "step": 1}\n{"kind": "in')
    with MetricsLog(path) as log:
        log.write("inner", 2)
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_a_malformed_line_is_refused_with_its_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "inner", "step": 1}\nnonsense\n{"kind": "inner", "step": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        read_metrics(path)
    path.write_text('{"kind": "inner"}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: expected an object with kind and step"):
        read_metrics(path)
    path.unlink()
    with pytest.raises(DataError, match="cannot read the metrics"):
        read_metrics(path)


def test_metrics_can_be_read_while_they_are_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "inner", "step": 1}\n{"kind": "inner", "st')
    assert [line["step"] for line in read_metrics(path)] == [1]
    path.write_text("")
    assert read_metrics(path) == []


def update(progress: Progress, step: int) -> None:
    progress.update(
        step,
        loss=4.0,
        target_loss=None if step < 2 else 4.5,
        weights={"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4},
        tokens_per_second=1234.0,
        seconds=0.5,
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


def test_the_speed_is_that_of_all_since_the_line_before():
    stream = io.StringIO()
    with Progress(4, log_interval=2, stream=stream) as progress:
        update(progress, 1)
        time.sleep(0.3)  # an outer step
        update(progress, 2)
    (line,) = stream.getvalue().splitlines()
    milliseconds, speed = (
        float(re.search(rf"{what}: ([\d.]+)", line)[1])
        for what in (r"per iteration \(ms\)", "tokens per second")
    )
    assert speed * 2 * milliseconds / 1000 == pytest.approx(2 * 1234.0 * 0.5, rel=0.01)


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("count", [2, 6, 40])
def test_80_columns_have_step_time_and_speed_first_and_whole_sources(count, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    weights = {f"source_{k}": (count - k) / 100 for k in range(count)}
    stream = Terminal()
    with Progress(4000, initial=1, stream=stream) as progress:
        figures = {"tokens_per_second": 12345.0, "seconds": 1.0}
        progress.update(2, loss=4.0, target_loss=4.5, weights=weights, **figures)
        progress._bar.refresh()
    shown = stream.getvalue().split("\r")[-1].split("\n")[0].rstrip()
    assert len(shown) <= 80
    assert re.match(r"2/4000 [\d:?]+ left 12\.3k tok/s loss 4\.000 target 4\.500 source_0", shown)
    assert re.search(r"source_0 0\.\d\d$|source_\d+ 0\.\d\d$", shown)  # no name is cut


def test_as_many_sources_as_fit_are_named():
    weights = {"a": 0.5, "bb": 0.3, "ccc": 0.2}
    assert leading_sources(weights, 100) == "a 0.50, bb 0.30, ccc 0.20"
    assert leading_sources(weights, 16) == "a 0.50, bb 0.30"[:15]
    assert leading_sources(weights, 3) == ""


def test_the_table_says_what_was_learned_and_how_to_use_it(make_mixture):
    text = final_table(
        make_mixture({"small": 0.1, "large": 0.9}), blend_txt="run/blend.txt", blend_json=None
    )
    rows = text.splitlines()
    assert rows[2].split() == ["large", "0.5000", "0.9000", "0.0100", "5,000", "1.80"]
    assert rows[3].startswith("small")
    assert "--data-args-path run/blend.txt --seq-length 32" in text
    assert "--per-split" not in text
    assert "Loss on target target: 5.5000" in text
    assert "not finished" not in text


def test_the_table_quotes_paths_and_says_that_a_run_is_not_finished(make_mixture):
    mixture = make_mixture(
        {"a": 1.0},
        complete=False,
        config={"tokenizer": {"tokenizer_type": "T", "tokenizer_model": "/my data/t.model"}},
    )
    text = final_table(mixture, blend_txt=None, blend_json="/my run/blend.json")
    assert "The run is not finished: 60 optimizer steps are done." in text
    flags = shlex.split(text.splitlines()[-1])
    assert flags[:2] == ["--per-split-data-args-path", "/my run/blend.json"]
    assert flags[-1] == "/my data/t.model"
    assert "No blend.txt: --data-args-path cannot express a path with white space." in text
    assert "Train with" not in final_table(mixture, blend_txt=None, blend_json=None)


@pytest.fixture
def draw(tmp_path, make_mixture, make_metrics):
    """Draws a search over the named sources; returns the pixels, (height, width, 4)."""

    def draw(names, **changes) -> np.ndarray:
        (tmp_path / "metrics.jsonl").unlink(missing_ok=True)
        make_metrics(tmp_path / "metrics.jsonl", names)
        mixture = make_mixture({name: 1 / len(names) for name in names}, **changes)
        plot_weights(tmp_path / "metrics.jsonl", tmp_path / "weights.png", mixture)
        return matplotlib.image.imread(tmp_path / "weights.png")

    return draw


def test_the_picture_grows_so_that_many_sources_can_be_labelled(draw):
    few, many = draw(["a", "b"]), draw([f"source {i}" for i in range(20)])
    assert few.std() > 0.01  # not an empty sheet
    assert many.std() > 0.01
    assert many.shape[1] == few.shape[1]
    assert many.shape[0] > 1.1 * few.shape[0]


def test_the_picture_of_hundreds_of_sources_has_the_heaviest_alone(draw):
    some, hundreds = draw([f"source {i}" for i in range(40)]), draw([str(i) for i in range(400)])
    assert hundreds.shape == some.shape


def test_the_averaged_tail_is_shaded(draw):
    def shaded(picture: np.ndarray) -> float:
        grey = np.abs(picture[..., :3] - 0.94).max(axis=2) < 0.005
        return float(grey.mean())

    tails = [shaded(draw(["a", "b"], averaged_outer_steps=steps)) for steps in (3, 6, 12)]
    assert tails[0] > 0.05
    assert tails[0] < tails[1] < tails[2]


@pytest.mark.parametrize("name", ["cost_$5_to_$6", "a" * 200, "Ελλάδα"])
def test_any_name_can_be_drawn(draw, name):
    assert draw([name, "b"]).std() > 0.01


def test_metrics_that_cannot_be_drawn_are_refused(tmp_path, make_mixture, make_metrics):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": "inner", "step": 1}) + "\n")
    mixture = make_mixture({"a": 0.5, "b": 0.5})
    with pytest.raises(DataError, match="no outer step is logged"):
        plot_weights(path, tmp_path / "weights.png", mixture)
    path.unlink()
    make_metrics(path, ["a", "c"])
    with pytest.raises(DataError, match="not about the sources"):
        plot_weights(path, tmp_path / "weights.png", mixture)
    assert not (tmp_path / "weights.png").exists()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0.01, 0.2))
def test_labels_are_spread_so_that_none_overlap(positions, gap):
    placed = spread_out(positions, gap)
    assert all(-1e-9 <= place <= 1 for place in placed)
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    distances = np.diff([placed[i] for i in order])
    if len(positions) > 1:
        assert distances.min() > min(gap, 1 / (len(positions) - 1)) - 1e-9


def test_labels_with_room_stay_where_they_are():
    assert spread_out([0.9, 0.1, 0.5], 0.2) == [0.9, 0.1, 0.5]
