"""Comparisons end to end on small real data: training, resuming, refusing, being killed."""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_fastmix.cli import compare_mixtures as command
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.errors import ConfigError, DataError, NonFiniteError
from megatron_fastmix.lab.comparison.rows import RowFile
from tests.conftest import (
    SEQ_LENGTH,
    synthetic_documents,
    synthetic_rows,
    write_dataset,
    write_rows,
)
from tests.processes import wait_until_gone
from tests.unit.comparisons import SMALL

TOOL = Path(__file__).parents[2] / "tools" / "compare_mixtures.py"


@pytest.fixture
def flags(learned_file, test_set, tmp_path):
    """Arguments of a small comparison that needs no more than to be run."""
    output = str(tmp_path / "rows")
    return ["--mixture", str(learned_file), "--output", output, "--test", f"held_out={test_set}"]


def compare(*arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    args, rest = parser.parse_known_args([str(a) for a in arguments])
    args.overrides = [*SMALL, *rest]
    return command.run(args)


def rows_in(folder):
    return RowFile(Path(folder, "rows.jsonl")).read().trainings


@pytest.mark.slow
def test_the_useful_source_beats_the_harmful_one_and_a_rerun_trains_nothing(
    flags, tmp_path, capsys
):
    only = ("--only", "learned,single:forward,single:noise", "--num-seeds=2")
    outputs = ("--json", str(tmp_path / "f.json"), "--plot", str(tmp_path / "f.png"))
    assert compare(*flags, *only, *outputs) == 0
    printed = capsys.readouterr().out
    rows = rows_in(tmp_path / "rows")
    found = {(row.mixture, row.seed): row for row in rows.values()}
    assert set(found) == {
        *(("learned", 1), ("learned", 2), ("single:forward", 1), ("single:noise", 1)),
    }
    assert found["single:forward", 1].loss < found["single:noise", 1].loss - 0.5
    assert found["learned", 1].loss < found["single:noise", 1].loss - 0.5
    assert found["learned", 1].loss != found["learned", 2].loss
    assert found["learned", 1].tokens == 40 * 8 * SEQ_LENGTH
    assert len(found["learned", 1].sample_losses["held_out"]) == 16
    assert printed.index("single:forward  ") < printed.index("single:noise  ")
    assert json.loads((tmp_path / "f.json").read_text())["rows"][0]["value"] == pytest.approx(
        (found["learned", 1].loss + found["learned", 2].loss) / 2
    )
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "rows").glob(".*"))  # Megatron's caches are gone

    file = tmp_path / "rows" / "rows.jsonl"
    before = file.read_bytes()
    assert compare(*flags, *only) == 0
    assert "4 of 4 rows are finished" in capsys.readouterr().out
    assert file.read_bytes() == before

    # One row lost: only that one is trained, to the same loss.
    lost = found["single:noise", 1]
    lines = before.decode().splitlines(keepends=True)
    kept = [line for line in lines if '"mixture": "single:noise"' not in line]
    file.write_text("".join(kept))
    assert compare(*flags, *only) == 0
    assert "3 of 4 rows are finished" in capsys.readouterr().out
    assert rows_in(tmp_path / "rows")[lost.key].loss == lost.loss
    assert file.read_text().startswith("".join(kept))

    # Another setting does not mix with these rows, and says what differs.
    with pytest.raises(ConfigError, match=r"another setting.*\n  training\.lr: 0\.01 there, 0\.02"):
        compare(*flags, *only, "--lr=2e-2")
    assert rows_in(tmp_path / "rows").keys() == rows.keys()

    # Nor does a row that was edited or damaged pass.
    file.write_text("".join([*kept, "{\n"]))
    with pytest.raises(DataError, match=rf"rows\.jsonl:{len(kept) + 1}: .*delete the line"):
        compare(*flags, *only)
    edited = kept[-1].replace(f'"setting": "{lost.setting}"', '"setting": "other"')
    file.write_text("".join([*kept, edited]))
    with pytest.raises(DataError, match=r"belongs to 'other', which does not stand before it"):
        compare(*flags, *only)


def test_a_diverging_row_is_named(flags):
    with pytest.raises(NonFiniteError, match=r"uniform, seed 1, step \d+: the loss is nan"):
        compare(*flags, "--only", "uniform", "--num-seeds=1", "--lr=1e30", "--clip-grad=0")


@pytest.mark.slow
def test_killed_it_leaves_whole_rows_and_goes_on(flags, tmp_path):
    arguments = [*flags, *SMALL, "--only", "random", "--random-draws=40", "--workers=1"]
    process = subprocess.Popen([sys.executable, str(TOOL), *arguments], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while len(rows_in(tmp_path / "rows")) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
    assert len(started) >= 2  # the server and a job, neither of which outlives the program
    wait_until_gone(started)
    rows = rows_in(tmp_path / "rows")
    assert 2 <= len(rows) < 40
    assert {row.kind for row in rows.values()} == {"random"}
    # The same rows serve a rerun, which draws the same mixtures.
    before = (tmp_path / "rows" / "rows.jsonl").read_bytes()
    assert compare(*flags, "--only", "random:0,random:1") == 0
    assert (tmp_path / "rows" / "rows.jsonl").read_bytes() == before


def refused(error, said, *arguments):
    with pytest.raises(error, match=said):
        compare(*arguments)


def test_wrong_arguments(flags, corpora, learned_file, tmp_path):
    plain = flags[:4]
    refused(ConfigError, r"--test: none given; .*--test NAME=PREFIX", *plain)
    refused(ConfigError, r"--test: found 'x'; write NAME=PREFIX", *plain, "--test", "x")
    refused(DataError, r"nowhere\.idx: cannot read", *plain, "--test", f"x={tmp_path}/nowhere")
    refused(
        ConfigError,
        r"--test x: .* is source noise of the search",
        *(*plain, "--test", f"x={corpora / 'noise'}"),
    )
    refused(
        ConfigError,
        r"--test x: .* is target target of the search",
        *(*plain, "--test", f"x={corpora / 'target'}"),
    )
    for end in ("bin", "idx"):
        shutil.copy(corpora / f"target.{end}", tmp_path / f"copy.{end}")
    refused(
        ConfigError,
        r"copy is target target of the search",
        *(*plain, "--test", f"x={tmp_path}/copy"),
    )
    refused(ConfigError, r"--only: found 'best'", *flags, "--only", "best")
    refused(ConfigError, r"--workers: found 0", *flags, "--workers", "0")
    refused(ConfigError, r"num_seeds: found 0; use at least 1", *flags, "--num-seeds=0")
    refused(ConfigError, r"--num-seed: unknown key; did you mean", *flags, "--num-seed=2")
    refused(ConfigError, r"multiple of micro_batch_size 8", *flags, "--global-batch-size=12")
    refused(DataError, r"fewer than one sample of 100001", *flags, "--seq-length=100000")
    refused(DataError, r"cannot read the mixture", "--mixture", "x", *flags[2:])
    refused(
        ConfigError,
        r"give each mixture once",
        *("--mixture", learned_file, learned_file),
        *flags[2:],
    )
    assert not (tmp_path / "rows").exists()


def test_a_test_set_is_of_one_kind_with_its_masks(corpora, flags, tmp_path):
    (tmp_path / "tests").mkdir()
    write_dataset(tmp_path / "tests/a", synthetic_documents("noise", 20, 1), 259)
    write_rows(tmp_path / "tests/b", synthetic_rows("noise", 20, 1), 259)
    both = (*flags[:4], "--test", f"held_out={tmp_path}/tests")
    refused(ConfigError, "b is answer-only, .*a is plain text; all datasets of a source", *both)
    (tmp_path / "tests/b_loss_mask.bin").unlink()
    alone = (*flags[:4], "--test", f"held_out={tmp_path}/tests/b")
    refused(DataError, r"b_loss_mask\.bin: is missing", *alone)


def test_learned_mixtures_must_be_of_the_same_sources(learned_file, flags, tmp_path):
    values = json.loads(learned_file.read_text())
    values["sources"][0]["name"] = "renamed"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(values))
    arguments = ["--mixture", str(learned_file), str(other), *flags[2:]]
    refused(ConfigError, r"other\.json: its sources is .*renamed", *arguments)


def test_settings_that_matter_change_the_digest(flags, learned_file, test_set):
    from megatron_fastmix.lab.comparison.config import load_compare_config
    from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned

    config = load_compare_config(None, SMALL, [f"held_out={test_set}"])
    learned = read_learned([str(learned_file)])["learned"]
    setting = make_setting(config, learned, "mixture")
    assert setting.digest == make_setting(config, learned, "elsewhere").digest
    for changed in (
        dataclasses.replace(setting, seq_length=16),
        dataclasses.replace(setting, eval_samples=8),
        dataclasses.replace(setting, tokenizer_sha256="0"),
        dataclasses.replace(setting, sources=setting.sources[::-1][:2]),
        dataclasses.replace(setting, model=dataclasses.replace(setting.model, num_layers=3)),
    ):
        assert changed.digest != setting.digest
    assert strict_yaml.to_dict(setting)["tests"][0]["weight"] == 1.0


def test_a_partial_training_section_keeps_the_defaults_of_comparisons(tmp_path):
    from megatron_fastmix.lab.comparison.config import CompareConfig, load_compare_config

    file = tmp_path / "compare.yaml"
    file.write_text("training: {lr: 1.0e-3}\n")
    loaded = load_compare_config(file, [], [])
    assert loaded.training == dataclasses.replace(CompareConfig().training, lr=1e-3)
