"""A trajectory, or two searches, as two phases."""

import dataclasses
import json
import shlex

import pytest

from megatron_fastmix.blend import read_schedule
from megatron_fastmix.cli.main import main
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.import_blend import read_named_blend
from megatron_fastmix.export.learned_phases import (
    by_dataset,
    phase_schedule,
    trajectory_means,
    write_phases,
)
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.sizes import Shard
from megatron_fastmix.run.metrics import MetricsLog


@pytest.fixture
def run_folder(tmp_path, make_mixture):
    """A search of 60 steps whose weight of `a` is 0.5, then 0.7 from step 20 and 0.9 from 50 on."""
    mixture = make_mixture({"a": 0.9, "b": 0.1})
    write_mixture(tmp_path / "mixture.json", mixture)
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.write("run", 0)
        for step, weight in ((20, 0.7), (50, 0.9)):
            log.write("outer", step, weights={"a": weight, "b": 1 - weight})
    return tmp_path, mixture


def test_phases_are_the_means_over_the_steps_that_weights_hold(run_folder):
    folder, mixture = run_folder
    main_phase, anneal = trajectory_means(folder / "metrics.jsonl", mixture, 2 / 3)
    assert main_phase["a"] == pytest.approx((20 * 0.5 + 20 * 0.7) / 40)
    assert anneal["a"] == pytest.approx((10 * 0.7 + 10 * 0.9) / 20)
    assert sum(main_phase.values()) == pytest.approx(1)


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5, float("nan")])
def test_a_fraction_is_between_0_and_1(run_folder, fraction):
    folder, mixture = run_folder
    with pytest.raises(ConfigError, match="use a fraction between 0 and 1"):
        trajectory_means(folder / "metrics.jsonl", mixture, fraction)


def test_a_phase_without_an_outer_step_is_refused(run_folder):
    folder, mixture = run_folder
    with pytest.raises(ConfigError, match="of 2 outer steps 2 fall before step 54 and 0 after it"):
        trajectory_means(folder / "metrics.jsonl", mixture, 0.9)


def test_metrics_of_other_sources_are_refused(run_folder, make_mixture):
    folder, _ = run_folder
    other = make_mixture({"a": 0.5, "c": 0.5})
    with pytest.raises(DataError, match="step 20 has weights of"):
        trajectory_means(folder / "metrics.jsonl", other, 0.5)


def test_the_change_falls_on_a_whole_batch():
    schedule = phase_schedule(
        {"a": 1.0}, {"b": 1.0}, fraction=0.8, train_samples=1024, global_batch_size=64
    )
    assert [change.at_sample for change in schedule.changes] == [0, 832]
    assert dict(schedule.changes[1].weights) == {"a": 0.0, "b": 1.0}
    with pytest.raises(ConfigError, match="no whole batch of 640"):
        phase_schedule({"a": 1}, {"b": 1}, fraction=0.2, train_samples=1000, global_batch_size=640)


def test_datasets_of_a_source_share_its_weight_by_their_tokens(make_mixture):
    (source,) = make_mixture({"a": 1.0}).sources
    shards = tuple(
        Shard(path=f"/d/{tokens}", tokens=tokens, loss_tokens=tokens, rows=1) for tokens in (30, 10)
    )
    sources = {"a": dataclasses.replace(source, shards=shards)}
    schedule = phase_schedule(
        {"a": 1.0}, {"a": 0.8}, fraction=0.5, train_samples=64, global_batch_size=8
    )
    datasets, paths = by_dataset(schedule, sources)
    assert paths == {"a/1": "/d/30", "a/2": "/d/10"}
    assert dict(datasets.changes[0].weights) == {"a/1": 0.75, "a/2": 0.25}
    assert datasets.changes[1].weights["a/1"] == pytest.approx(0.6)


def test_phases_have_every_dataset_of_a_light_source(make_mixture, tmp_path):
    light, heavy = make_mixture({"a": 0.01, "b": 0.99}).sources
    shards = tuple(Shard(path=f"/d/{n}", tokens=9, loss_tokens=9, rows=1) for n in range(300))
    weights = {"a": 0.01, "b": 0.99}
    _, left_out = write_phases(
        tmp_path,
        phase_schedule(weights, weights, fraction=0.5, train_samples=64, global_batch_size=8),
        {"a": dataclasses.replace(light, shards=shards), "b": heavy},
        train_samples=64,
        global_batch_size=8,
        decimals=4,
    )
    found = read_named_blend(tmp_path / "data_blend_phase1.json")
    assert len(found) == 301
    assert sum(entry.share for entry in found[:300]) == pytest.approx(0.01, rel=1e-3)
    assert not left_out


def test_phases_have_the_decimals_that_are_asked_for(run_folder):
    folder, _ = run_folder
    out = folder / "phases"  # the default
    call = ["export", str(folder), "--phases", "0.75", "--decimals", "2"]
    assert main([*call, "--global-batch-size", "64", "--train-samples", "6400"]) == 0
    line = (out / "megatron_phases.txt").read_text().splitlines()[-1].split()
    assert all(len(word) == len("0.85") for word in line[line.index("--data-path") + 1 :: 2])


def test_a_phase_says_what_it_leaves_out(run_folder, make_mixture, tmp_path):
    later = make_mixture({"a": 0.99999, "b": 0.00001})
    _, left_out = write_phases(
        tmp_path / "out",
        phase_schedule(
            {"a": 0.5, "b": 0.5},
            later.weights,
            fraction=0.5,
            train_samples=64,
            global_batch_size=8,
        ),
        {source.name: source for source in later.sources},
        train_samples=64,
        global_batch_size=8,
        decimals=None,
    )
    assert left_out == ["phase 2 leaves out what rounds to 0 at 4 decimals: b"]


def test_three_forms_of_the_phases_say_the_same(run_folder, capsys):
    folder, _ = run_folder
    out = folder / "my phases"
    call = ["export", str(folder), "--phases", "0.75", "--output", str(out)]
    assert main([*call, "--global-batch-size", "64", "--train-samples", "6400"]) == 0
    said = capsys.readouterr().err
    assert "note: what is known of such phases" in said
    assert "the phases differ by" in said
    assert "--fastmix-schedule" in said
    first, second = read_schedule(out / "schedule.yaml").changes
    assert second.at_sample == 4800
    assert first.weights["a"] == pytest.approx((20 * 0.5 + 25 * 0.7) / 45)
    lines = (out / "megatron_phases.txt").read_text().splitlines()
    lines = [shlex.split(line) for line in lines if not line.startswith("#")]
    for line, change, number in zip(lines, (first, second), (1, 2), strict=True):
        flags, blend = line[: line.index("--data-path")], line[line.index("--data-path") + 1 :]
        assert flags[:2] == ["--phase-transition-iterations", "75"]
        assert blend[1::2] == ["/data/a", "/data/b"]
        assert float(blend[0]) == pytest.approx(change.weights["a"], abs=1e-4)
        found = read_named_blend(out / f"data_blend_phase{number}.json")
        assert [(e.name, e.path) for e in found] == [("a", "/data/a"), ("b", "/data/b")]
        assert found[0].share == pytest.approx(float(blend[0]))


@pytest.mark.parametrize("name", ["schedule.yaml", "data_blend_phase2.json"])
def test_phases_replace_none_but_their_own(run_folder, name, capsys):
    folder, _ = run_folder
    out = folder / "out"
    out.mkdir()
    (out / name).write_text("by hand")
    call = ["export", str(folder), "--phases", "0.75", "--output", str(out)]
    call += ["--global-batch-size", "64", "--train-samples", "6400"]
    assert main(call) == 2
    assert f"--output: {out}/{name} is there" in capsys.readouterr().err
    assert (out / name).read_text() == "by hand"
    (out / name).unlink()
    assert main(call) == main(call) == 0


def test_the_anneal_may_be_a_search_of_its_own(run_folder, make_mixture, capsys):
    folder, _ = run_folder
    later = folder / "anneal.json"
    write_mixture(later, make_mixture({"b": 0.4, "c": 0.6}))
    out = folder / "out"
    call = ["export", str(folder), "--phases", "0.5", "--anneal", str(later), "--output", str(out)]
    call += ["--global-batch-size", "8"]
    assert main(call) == 0
    first, second = read_schedule(out / "schedule.yaml").changes
    assert dict(first.weights) == {"a": 0.9, "b": 0.1, "c": 0.0}
    assert dict(second.weights) == {"a": 0.0, "b": 0.4, "c": 0.6}
    # The default length is the token budget: 10,000 tokens of 32.
    assert second.at_sample == 160
    assert "312 samples are the token budget in the search's samples of 32 tokens" in (
        capsys.readouterr().err
    )
    blend = json.loads((out / "data_blend_phase1.json").read_text())["datasets"]
    assert [entry["name"] for entry in blend] == ["a", "b"]
    write_mixture(later, make_mixture({"b": 0.4, "c": 0.6}, folder="/elsewhere"))
    assert main(call) == 2
    said = capsys.readouterr().err
    assert "source b has /data/b, /elsewhere/b either there" in said
    assert "names must mean the same data" in said
    write_mixture(later, make_mixture({"b": 0.4, "c": 0.6}, complete=False))
    assert main(call) == 2
    assert f"{later}: the run stopped after" in capsys.readouterr().err
    assert main([*call, "--allow-partial"]) == 0


def test_paths_of_phases_are_the_training_machines(run_folder, make_mixture, capsys):
    folder, _ = run_folder
    call = ["export", str(folder), "--phases", "0.5", "--global-batch-size", "8"]
    assert main([*call, "--path-map", "/data=/lustre/d", "--path-map", "/dat=/x"]) == 0
    said = capsys.readouterr().err
    assert "relative" not in said
    assert "note: --path-map /dat=/x: no path begins with /dat\n" in said
    assert said.count("--path-map") == 1
    for file in ("megatron_phases.txt", "data_blend_phase1.json", "data_blend_phase2.json"):
        text = (folder / "phases" / file).read_text()
        assert "/lustre/d/a" in text
        assert "/data/" not in text
    write_mixture(folder / "mixture.json", make_mixture({"a": 0.9, "b": 0.1}, folder="elsewhere"))
    assert main(call) == 0
    assert "relative to the folder that the search ran in, such as elsewhere/a" in (
        capsys.readouterr().err
    )
    assert main([*call, "--path-map", "/data=/lustre/d"]) == 2
    assert "--path-map: elsewhere/a is relative" in capsys.readouterr().err


def test_phases_of_several_seeds_are_asked_for_by_seed(tmp_path, make_mixture, capsys):
    write_mixture(tmp_path / "mixture.json", make_mixture({"a": 0.9, "b": 0.1}, seeds=(1, 2)))
    call = ["export", str(tmp_path), "--phases", "0.8", "--global-batch-size", "4"]
    assert main([*call, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert f"give one seed's folder: {tmp_path}/seed-1, {tmp_path}/seed-2" in said


def test_flags_of_phases_ask_for_them(run_folder, capsys):
    folder, _ = run_folder
    for flags in (["--anneal", "x"], ["--global-batch-size", "8"], ["--train-samples", "8"]):
        assert main(["export", str(folder), *flags]) == 2
        assert f"{flags[0]}: goes with --phases FRACTION" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "x"], "--phases: needs --global-batch-size"),
        (["--output", "x", "--global-batch-size", "8", "--set", "a=1"], "--set: does not go with"),
        (["--output", "x", "--global-batch-size", "8", "--format", "nemo-2"], "--format: does not"),
        (["--output", "x", "--global-batch-size", "0"], "--global-batch-size: found 0"),
        (
            ["--output", "x", "--global-batch-size", "8", "--train-samples", "0"],
            "--train-samples: found 0",
        ),
    ],
)
def test_phases_that_cannot_be_written_are_refused(run_folder, flags, message, capsys):
    folder, _ = run_folder
    assert main(["export", str(folder), "--phases", "0.5", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_file_in_the_place_of_the_phases_folder_is_named_for_what_it_is(run_folder, capsys):
    folder, _ = run_folder
    (folder / "taken").write_text("")
    flags = ["--output", str(folder / "taken"), "--global-batch-size", "8"]
    assert main(["export", str(folder), "--phases", "0.5", *flags]) == 2
    said = capsys.readouterr().err
    assert f"cannot write into {folder / 'taken'}: a part of that path is a file" in said
