"""TensorBoard, Weights & Biases and the lines that stand in for a terminal."""

import importlib.util
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_fastmix.config import OutputConfig, load_config
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.mixture.mixture import Mixture
from megatron_fastmix.run.events import InnerStep, OuterStep
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.metrics import read_metrics
from megatron_fastmix.run.progress import Progress
from megatron_fastmix.run.sinks import TrackerSink, open_sinks
from megatron_fastmix.run.trackers import (
    TensorBoard,
    check_trackers,
    inner_scalars,
    open_trackers,
    outer_scalars,
)


def test_plain_lines_are_megatrons():
    stream = io.StringIO()
    with Progress(400, log_interval=2, global_batch_size=32, stream=stream) as progress:
        for step, loss in ((1, 4.0), (2, 5.0)):
            progress.update(
                step,
                loss=loss,
                target_loss=6.0,
                weights={"a": 1.0},
                tokens_per_second=10.0,
                seconds=0.1,
                lr=1e-4,
                grad_norm=1.5,
            )
    # The text of `training_log`, megatron-core 0.19.
    megatron = (
        r" \[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}\] iteration        2/     400 \|"
        r" consumed samples:           64 \| elapsed time per iteration \(ms\): \d+\.\d \|"
        r" learning rate: 1\.000000E-04 \| global batch size:    32 \| lm loss: 4\.500000E\+00 \|"
        r" loss scale: 1\.0 \| grad norm: 1\.500 \| number of skipped iterations:   0 \|"
        r" number of nan iterations:   0 \| target loss: 6\.000000E\+00 \|"
    )
    assert re.match(megatron, stream.getvalue())


def inner_event(step: int = 1) -> InnerStep:
    return InnerStep(
        step=step,
        loss=4.0,
        source_loss={"a": 3.0, "b": math.nan},
        lr=1e-3,
        grad_norm=2.0,
        tokens=80,
        tokens_per_second=160.0,
        seconds=0.5,
    )


def outer_event() -> OuterStep:
    each = {"a": 0.75, "b": 0.25}
    return OuterStep(
        step=1,
        outer_step=1,
        weights=each,
        logits=each,
        products=each,
        products_standard_error=each,
        noise_to_signal=None,
        hypergradient=each,
        advantage={"a": 0.5, "b": math.nan},
        advantage_standard_error=each,
        probe_samples=each,
        lr=0.1,
        target_products=None,
        target_loss={"t": 5.0},
        target_weight={"t": 1.0},
        seconds=0.1,
    )


def scalars() -> dict[str, float]:
    return inner_scalars(inner_event(), 8) | outer_scalars(outer_event(), 5.0)


def test_tensorboard_gets_megatrons_tags(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = TensorBoard(tmp_path, 0, 8)
    for step in (1, 2, 3):
        board.log(scalars(), step, samples=8 * step)
    board.close()
    # The search died after step 3 and resumes from step 2.
    board = TensorBoard(tmp_path, 2, 8)
    board.log({"lm loss": 9.0}, 3, samples=24)
    board.close()
    found = events.EventAccumulator(str(tmp_path))
    found.Reload()
    tags = set(found.Tags()["scalars"])
    megatron = {"lm loss", "lm loss validation", "learning-rate", "batch-size", "grad-norm"}
    assert megatron <= tags
    assert {"fastmix/weight/a", "fastmix/source loss/a", "fastmix/target loss/t"} <= tags
    assert "fastmix/source loss/b" not in tags
    assert "fastmix/advantage/a" in tags
    assert "fastmix/advantage/b" not in tags
    assert [(e.step, e.value) for e in found.Scalars("lm loss")] == [(1, 4.0), (2, 4.0), (3, 9.0)]
    by_samples = events.EventAccumulator(str(tmp_path / "vs samples"))
    by_samples.Reload()
    assert set(by_samples.Tags()["scalars"]) == {
        f"{tag} vs samples" for tag in (*megatron, "iteration-time")
    }
    values = [(e.step, e.value) for e in by_samples.Scalars("lm loss vs samples")]
    assert values == [(8, 4.0), (16, 4.0), (24, 9.0)]


def test_tensorboard_hides_a_search_that_left_no_checkpoint(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for values in ([4.0, 3.0], [5.0]):
        board = TensorBoard(tmp_path, 0, 8)
        for step, value in enumerate(values, start=1):
            board.log({"lm loss": value}, step, samples=8 * step)
        board.close()
    for folder, tag in (("", "lm loss"), ("vs samples", "lm loss vs samples")):
        found = events.EventAccumulator(str(tmp_path / folder))
        found.Reload()
        assert [event.value for event in found.Scalars(tag)] == [5.0]


WANDB = """
import pathlib, sys
from megatron_fastmix.run.trackers import WeightsAndBiases
folder = pathlib.Path(sys.argv[1])
tracker = WeightsAndBiases("project", folder, 0, {"seed": 1})
tracker.log({"lm loss": 4.0}, 1, samples=8)
tracker.log({"lm loss": 3.0}, 2, samples=16)  # which closes step 1
assert tracker._run.summary["lm loss"] == 4.0
tracker.close()
first = tracker._run.id
tracker = WeightsAndBiases("project", folder, 2, {"seed": 1})
assert tracker._run.id == first
tracker.close()
tracker = WeightsAndBiases("project", folder, 0, {"seed": 1})
assert tracker._run.id != first  # the search begins anew
tracker.close()
"""


def test_weights_and_biases_keeps_an_offline_run(tmp_path):
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    done = subprocess.run(
        [sys.executable, "-c", WANDB, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert list(Path(tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_a_tracker_whose_package_is_missing_is_refused(monkeypatch, tmp_path):
    assert open_trackers(OutputConfig(), tmp_path, 0, 8, {}) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for key, extra in (("tensorboard_dir", "tensorboard"), ("wandb_project", "wandb")):
        with pytest.raises(ConfigError, match=rf"output.{key}.*megatron-fastmix\[{extra}\]"):
            check_trackers(OutputConfig(**{key: "x"}))


class Unreachable:
    """A tracker whose service is gone, with an error of its own."""

    def __init__(self, *arguments: object) -> None:
        if arguments:
            raise RuntimeError("no API key configured")

    def log(self, values: object, step: int, samples: int) -> None:
        raise RuntimeError("the service is gone")

    def picture(self, tag: str, pixels: object, step: int) -> None: ...

    def close(self) -> None:
        raise RuntimeError("still gone")


def test_a_tracker_that_fails_is_passed_over(config_file, monkeypatch, tmp_path, capsys):
    from megatron_fastmix.run import trackers
    from megatron_fastmix.search.reporter import Reporter

    config = load_config(config_file)
    sinks = [*open_sinks(config, RunFolder(tmp_path), 0), TrackerSink(Unreachable(), config)]
    mixture = Mixture(config.source_names, config.mixture)
    with Reporter(config, mixture, sinks, 0, tokens=0) as report:
        for step in (1, 2):
            report.inner(step, 4.0, np.full(3, 4.0), 1e-3, None, 320, data_seconds=0.25)
        report.end(2, complete=False, training_flops=1e9)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    assert capsys.readouterr().out.count("RuntimeError: the service is gone: not logged") == 1

    monkeypatch.setattr(trackers, "check_trackers", lambda output: None)
    monkeypatch.setattr(trackers, "WeightsAndBiases", Unreachable)
    assert open_trackers(OutputConfig(wandb_project="p"), tmp_path, 0, 8, {}) == []
    assert "no API key configured: not logged there" in capsys.readouterr().out


def test_the_reporter_feeds_metrics_and_trackers(config_file, search_values, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from megatron_fastmix.hypergradient import Products
    from megatron_fastmix.search.outer_step import OuterResult
    from megatron_fastmix.search.reporter import Reporter

    search_values["output"]["tensorboard_dir"] = str(tmp_path / "events")
    config_file.write_text(yaml.safe_dump(search_values))
    config = load_config(config_file)
    mixture = Mixture(config.source_names, config.mixture)
    result = OuterResult(
        target_losses=np.array([5.0]),
        target_weights=np.array([1.0]),
        products=Products(
            values=np.ones(3), standard_error=np.full(3, 0.1), counts=np.full(3, 5.0)
        ),
        target_products=None,
        noise_to_signal=None,
        gradient=np.zeros(3),
        advantage=np.array([0.5, -0.5, np.nan]),
        advantage_standard_error=np.full(3, 0.1),
        group_seen=np.ones(3, dtype=bool),
        group_advantage=np.array([0.5, -0.5, np.nan]),
        group_advantage_standard_error=np.full(3, 0.1),
        lr=0.1,
        seconds=0.0,
    )
    sinks = open_sinks(config, RunFolder(tmp_path), 0)
    with Reporter(config, mixture, sinks, 0, tokens=0) as report:
        report.inner(1, 4.0, np.array([4.0, 4.0, np.nan]), 1e-3, None, 320, data_seconds=0.25)
        report.outer(1, result)
        report.end(1, complete=False, training_flops=1e9)
    run, inner, outer, end = read_metrics(tmp_path / "metrics.jsonl")
    assert run["sources"] == config.source_names
    assert (inner["tokens"], inner["data_seconds"]) == (320, 0.25)
    assert outer["target_loss"] == {"target": 5.0}
    assert list(outer["advantage"].values()) == [0.5, -0.5, None]
    assert list(outer["advantage_standard_error"].values()) == [0.1] * 3
    assert end["training_flops"] == 1e9
    assert json.dumps(run["config"])
    found = events.EventAccumulator(str(tmp_path / "events"))
    found.Reload()
    assert [e.value for e in found.Scalars("lm loss validation")] == [5.0]
    assert [e.value for e in found.Scalars("fastmix/weight/forward")] == [pytest.approx(1 / 3)]
