"""Mixtures made from a search's result, and searches that another scenario has done."""

import dataclasses
import shutil

import pytest
import yaml

from megatron_fastmix.cli import main as cli
from megatron_fastmix.config import TrainingConfig
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.comparison.config import key_of
from megatron_fastmix.lab.comparison.derived import (
    Derived,
    has_trajectory,
    run_folder,
    weight_schedule,
)
from megatron_fastmix.lab.comparison.methods import MethodComparison
from megatron_fastmix.lab.comparison.rows import Held, RowFile, SearchRow
from megatron_fastmix.lab.comparison.same_search import configuration_of
from megatron_fastmix.lab.comparison.scenario import load_scenario
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.run.metrics import MetricsLog
from tests.conftest import SOURCES


def search_row(config, weights, method="fastmix", seed=1):
    return SearchRow(
        configuration=key_of(configuration_of(config)),
        method=method,
        seed=seed,
        weights=weights,
        weight_std=dict.fromkeys(weights, 0.0),
        flops=7.0,
        wall_seconds=1.0,
        tokens=1,
        versions={},
    )


@pytest.fixture
def searched(tmp_path, make_mixture):
    """A search of 60 steps whose weight of `a` is 0.5, then 0.7 from step 20 and 0.9 from 50 on;
    its last outer step comes at the end."""
    result = tmp_path / "search.json"
    write_mixture(result, make_mixture({"a": 0.9, "b": 0.1}, outer_steps=3))
    with MetricsLog(run_folder(result).metrics) as log:
        log.write("run", 0)
        for step, weight in ((20, 0.7), (50, 0.9), (60, 0.95)):
            log.write("outer", step, weights={"a": weight, "b": 1 - weight})
    return result


def test_the_trajectory_becomes_a_schedule(searched, scenario):
    base = search_row(load_scenario(scenario).search, {"a": 0.9, "b": 0.1})
    row = Derived(name="moving", continuous=True).row(base, None, searched, 0)
    assert [(held.at, held.weights["a"]) for held in row.schedule] == [
        (0.0, 0.5),
        (pytest.approx(1 / 3), 0.7),
        (pytest.approx(5 / 6), 0.9),
    ]
    # What the mixture is on average over the training.
    assert row.weights["a"] == pytest.approx((20 * 0.5 + 30 * 0.7 + 10 * 0.9) / 60)
    assert (row.method, row.flops) == ("moving", 7.0)
    row = Derived(name="phases", phases=0.5).row(base, None, searched, 0)
    assert [held.at for held in row.schedule] == [0.0, 0.5]
    assert row.schedule[0].weights["a"] == pytest.approx((20 * 0.5 + 10 * 0.7) / 30, abs=1e-4)
    assert row.schedule[1].weights["a"] == pytest.approx((20 * 0.7 + 10 * 0.9) / 30, abs=1e-4)


def test_steps_of_a_search_that_went_on_elsewhere_are_no_trajectory(searched, make_mixture):
    assert has_trajectory(searched)
    write_mixture(searched, make_mixture({"a": 0.9, "b": 0.1}, outer_steps=4))
    assert not has_trajectory(searched)
    run_folder(searched).metrics.unlink()
    assert not has_trajectory(searched)


def test_a_schedule_changes_at_whole_steps():
    training = TrainingConfig(
        train_iters=10, micro_batch_size=4, global_batch_size=4, lr_warmup_iters=1
    )
    held = [Held(at=at, weights={"a": at, "b": 1 - at}) for at in (0.0, 0.26, 0.3, 0.97)]
    schedule = weight_schedule(held, training)
    # The second and third fall on one step, where the later holds; the last on none.
    changes = [(change.at_sample, change.weights["a"]) for change in schedule.changes]
    assert changes == [(0, 0.0), (12, 0.3)]
    assert weight_schedule((), training) is None


def test_a_cap_on_reads_hands_the_excess_to_the_others(scenario, tmp_path):
    found = load_scenario(scenario)
    base = search_row(found.search, {"forward": 0.8, "backward": 0.15, "noise": 0.05})
    made = Derived(name="capped", max_reads=1)
    size = inspect_indexed_dataset(found.search.sources[0].path).tokens
    row = made.row(base, found.search, tmp_path, 2 * size)
    # 1 read of `forward` is half of the training; the others keep their ratio of 3 to 1.
    assert row.weights == pytest.approx({"forward": 0.5, "backward": 0.375, "noise": 0.125})
    assert row.schedule == ()
    free = made.row(base, found.search, tmp_path, size)
    assert free.weights == pytest.approx(base.weights)
    assert row.settings["derived"]["tokens"] == 2 * size


@pytest.mark.parametrize(
    ("derived", "said"),
    [
        ({"name": "a"}, "a: found 0 of phases"),
        ({"name": "a", "phases": 0.5, "continuous": True}, "a: found 2 of phases"),
        ({"name": "a", "phases": 1.5}, "found 1.5; use a part between 0 and 1"),
        ({"name": "a", "max_reads": 0}, "found 0.0; use a number above 0"),
        ({"name": "doge", "phases": 0.5}, "no method's name"),
        ({"name": "a", "of": "doge", "phases": 0.5}, "of: found 'doge'; choose fastmix"),
        ({"name": "inner_steps=1", "phases": 0.5}, "found inner_steps=1 twice"),
    ],
)
def test_wrong_derived_mixtures_are_refused(scenario, derived, said):
    values = yaml.safe_load(scenario.read_text()) | {"derived": [derived]}
    scenario.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=said):
        load_scenario(scenario)


def test_a_search_of_another_scenario_is_not_done_again(scenario, tmp_path):
    found = load_scenario(scenario)
    weights = dict.fromkeys(SOURCES, 1 / 3)
    often = found.searches["inner_steps=1"]
    other = RowFile(tmp_path / "rows" / "other.jsonl")
    for row, config in (
        (search_row(found.search, weights), found.search),
        (search_row(often, weights, "named_otherwise", 2), often),
    ):
        other.add_search(row, configuration_of(config))
    comparison = MethodComparison(
        "mine",
        found,
        ["fastmix", "inner_steps=1"],
        seeds=2,
        rows=tmp_path / "rows",
        work=tmp_path / "work",
        workers=1,
    )
    comparison._borrow_searches()
    rows = RowFile(tmp_path / "rows" / "mine.jsonl").read()
    assert sorted(rows.searches) == [("fastmix", 1), ("inner_steps=1", 2)]
    assert rows.searches["inner_steps=1", 2].weights == weights


def test_a_search_of_an_older_configuration_is_made_from(scenario, tmp_path):
    values = yaml.safe_load(scenario.read_text())
    values["derived"] = [{"name": "capped", "max_reads": 15}]
    scenario.write_text(yaml.safe_dump(values))
    found = load_scenario(scenario)
    older = {k: v for k, v in configuration_of(found.search).items() if k != "groups"}
    base = search_row(found.search, dict.fromkeys(SOURCES, 1 / 3))
    file = RowFile(tmp_path / "rows" / "mine.jsonl")
    file.add_search(dataclasses.replace(base, configuration=key_of(older)), older)
    folders = {"rows": tmp_path / "rows", "work": tmp_path / "work"}
    MethodComparison("mine", found, ["capped"], seeds=1, workers=1, **folders)._derive("capped", 1)
    now = key_of(configuration_of(found.searches["capped"]))
    assert file.read().searches["capped", 1].configuration == now != key_of(older)


@pytest.mark.slow
def test_the_command_trains_under_a_search_s_trajectory(scenario, tmp_path, capsys):
    values = yaml.safe_load(scenario.read_text())
    values["derived"] = [
        {"name": "two_phases", "phases": 0.5},
        {"name": "continuous", "continuous": True},
        {"name": "capped", "max_reads": 0.024},
    ]
    scenario.write_text(yaml.safe_dump(values))
    arguments = ["compare-methods", "--scenario", str(scenario), "--seeds", "1"]
    arguments += ["--output", str(tmp_path / "rows"), "--work", str(tmp_path / "work")]
    made = "two_phases,continuous,capped"
    assert cli.main([*arguments, "--methods", made, "--save-interval", "1"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 3 searches to do" in shown
    file = tmp_path / "rows" / "tiny.jsonl"
    rows = RowFile(file).read()
    # The search that they are from has a row, too, and no target model of its own.
    assert sorted(method for method, _ in rows.searches) == sorted(["fastmix", *made.split(",")])
    assert len(rows.trainings) == 3
    # Three outer steps, after every second of six, the last of them at the end.
    assert [held.at for held in rows.searches["continuous", 1].schedule] == [0, 1 / 3, 2 / 3]
    keys = {row.mixture: row.schedule_key for row in rows.trainings.values()}
    assert keys["two_phases"] != keys["continuous"] != "" == keys["capped"]
    assert not list((tmp_path / "work").rglob("*.pt"))

    before = file.read_bytes()
    assert cli.main([*arguments, "--methods", made]) == 0
    assert file.read_bytes() == before

    # Without the run folder, as beside rows of another machine, the search is done again.
    shutil.rmtree(tmp_path / "work")
    kept = [line for line in before.decode().splitlines(True) if '"continuous"' not in line]
    file.write_text("".join(kept))
    assert cli.main([*arguments, "--methods", "continuous,capped"]) == 0
    assert "1 of 2 searches to do" in capsys.readouterr().out
    again = RowFile(file).read()
    assert again.searches["continuous", 1] == rows.searches["continuous", 1]
    losses = {key: row.loss for key, row in rows.trainings.items()}
    assert {key: row.loss for key, row in again.trainings.items()} == losses
