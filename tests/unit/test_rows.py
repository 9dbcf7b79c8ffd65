"""The file of finished rows: appended by several processes, killed at any time, read back whole."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.comparison.config import key_of
from megatron_fastmix.lab.comparison.methods import MethodComparison
from megatron_fastmix.lab.comparison.row_file import append_records, read_records
from megatron_fastmix.lab.comparison.rows import Row, RowFile, SearchRow
from megatron_fastmix.lab.comparison.scenario import load_scenario


class Setting:
    """As `Setting`, of values alone."""

    def __init__(self, **values):
        self.values = values

    def identity(self):
        return self.values

    @property
    def digest(self):
        return key_of(self.values)


def row(mixture, seed=1, share="0.5000"):
    return Row(
        setting="the file's",
        mixture=mixture,
        kind=mixture,
        seed=seed,
        loss=1.5,
        train_loss=1.25,
        tokens=10,
        flops=1e9,
        wall_seconds=0.5,
        device="cpu",
        weights={"a": share, "b": "0.5000"},
        losses={"t": 1.5},
        versions={"torch": "2"},
    )


def search(method, configuration, seed=1):
    return SearchRow(
        configuration=key_of(configuration),
        method=method,
        seed=seed,
        weights={"a": 0.5, "b": 0.5},
        weight_std={"a": 0.0, "b": 0.0},
        flops=1.0,
        wall_seconds=1.0,
        tokens=1,
        versions={},
    )


@pytest.fixture
def file(tmp_path):
    made = RowFile(tmp_path / "deep" / "rows.jsonl")
    made.claim(Setting(eval_samples=8))
    return made


def _append(file, worker, count):
    for seed in range(count):
        file.add(row(f"worker{worker}", seed), row("shared", seed))


def test_several_processes_append_and_equal_rows_stand_once(file):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append, args=(file, i, 8)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(file.read().trainings) == 5 * 8
    # A head and a setting besides the rows: none stands twice.
    assert len(file.path.read_bytes().splitlines()) == 2 + 5 * 8


def _append_for_ever(path):
    for number in range(10**9):
        append_records(path, lambda records, n=number: [{"n": n, "text": "x" * 5000}])


def test_killed_at_any_time_it_holds_whole_records_and_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    context = multiprocessing.get_context("fork")
    for delay in (0.02, 0.03, 0.05):
        process = context.Process(target=_append_for_ever, args=(path,))
        process.start()
        deadline = time.monotonic() + 30
        while not read_records(path) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        before = read_records(path)
        assert before
        append_records(path, lambda records: [{"last": len(records)}])  # the lock is free
        assert read_records(path) == [*before, {"last": len(before)}]


def test_a_last_line_whose_end_an_editor_took_is_a_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_records(path, lambda records: [{"n": 1}, {"n": 2}])
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert read_records(path) == [{"n": 1}, {"n": 2}]
    append_records(path, lambda records: [{"n": len(records) + 1}])
    assert path.read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'


def test_a_torn_line_is_dropped_and_cut_off(file):
    file.add(row("kept"))
    whole = file.path.read_bytes()
    for torn in (b"{", b'{"record": "training", "mixt', '{"record": "ä'.encode()[:-1]):
        file.path.write_bytes(whole + torn)
        assert [r.mixture for r in file.read().trainings.values()] == ["kept"]
        file.add(row("next"))
        assert [r.mixture for r in file.read().trainings.values()] == ["kept", "next"]
        assert file.path.read_bytes().startswith(whole + b'{"record": "training"')


def test_what_rows_share_stands_once(file):
    file.add(row("a", 1), row("a", 2))
    one, two = {"lr": 1.0}, {"lr": 2.0}
    for seed, configuration in ((1, one), (2, one), (3, two)):
        file.add_search(search("fastmix", configuration, seed), configuration)
    kinds = [record["record"] for record in read_records(file.path)]
    assert kinds.count("setting") == 1
    assert kinds.count("configuration") == 2
    found = file.read()
    assert found.configurations == {key_of(one): one, key_of(two): two}
    assert found.searches["fastmix", 3] == search("fastmix", two, 3)
    assert {r.setting for r in found.trainings.values()} == {found.setting_key}
    with pytest.raises(ValueError, match="JSON compliant"):
        file.add(row("a", 9).__class__(**{**vars(row("a", 9)), "loss": float("nan")}))
    assert file.read() == found


def test_another_setting_is_refused_by_what_differs(file):
    file.add(row("a"))
    with pytest.raises(ConfigError, match=r"another setting.*\n  eval_samples: 8 there, 9 now"):
        file.claim(Setting(eval_samples=9))
    # Keys younger than the file have their defaults, in the file and where they are left out.
    defaults = file.read().setting
    assert defaults["model.num_layers"] == 4
    assert defaults["eod_mask_loss"] is False
    for there in ({}, defaults):
        file.claim(Setting(**there | {"eval_samples": 8}))
        for key, value in (("model.num_layers", 5), ("eod_mask_loss", True)):
            with pytest.raises(ConfigError, match=f"{key}: {defaults[key]} there, {value} now"):
                file.claim(Setting(**there | {"eval_samples": 8, key: value}))


def test_rows_are_borrowed_from_files_of_the_same_setting(file, tmp_path):
    class Task:
        key = row("a").key

    file.add(row("a"), row("b"))
    same, other = RowFile(tmp_path / "same.jsonl"), RowFile(tmp_path / "other.jsonl")
    same.claim(Setting(eval_samples=8))
    other.claim(Setting(eval_samples=9))
    for borrower in (same, other):
        borrower.borrow([file], [Task])
    assert [r.mixture for r in same.read().trainings.values()] == ["a"]
    assert not other.read().trainings


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", r"rows\.jsonl:3: found .*; expected a JSON object"),
        ('{"record": "training"}', r"rows\.jsonl:3: setting: missing"),
        ('{"record": "song"}', r"rows\.jsonl:3: record: found 'song'"),
    ],
)
def test_a_damaged_line_is_named(file, line, said):
    with open(file.path, "a") as out:
        out.write(line + "\n")
    with pytest.raises(DataError, match=said):
        file.read()


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"kind": "run"}) + "\n")
    with pytest.raises(DataError, match="not rows of this version"):
        RowFile(path).read()


def test_the_rows_of_the_evidence_are_whole_and_small():
    folder = Path(__file__).parents[2] / "tools" / "method_rows"
    files = sorted(folder.glob("*.jsonl"))
    assert len(files) >= 12
    assert sum(file.stat().st_size for file in files) < 2e6
    for file in files:
        found = RowFile(file).read()
        assert found.searches
        assert len(found.searches) == len(found.trainings)
        assert not any(each.sample_losses for each in found.trainings.values())


def test_rows_of_the_same_setting_are_gone_on_with(scenario, tmp_path):
    comparison = MethodComparison(
        "s", load_scenario(scenario), [], seeds=1, rows=tmp_path, work=tmp_path, workers=1
    )
    setting = comparison.claim()
    before = comparison.file.path.read_bytes()
    # What a setting leaves out where it is at its default is no difference.
    assert comparison.claim() == setting
    assert comparison.file.path.read_bytes() == before
