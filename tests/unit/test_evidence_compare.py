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
from megatron_fastmix.result.learned_mixture import (
    LearnedMixture,
    LearnedSource,
    TargetResult,
)
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.sizes import Shard
from tests.conftest import (
    SEQ_LENGTH,
    SOURCES,
    synthetic_documents,
    synthetic_rows,
    write_dataset,
    write_rows,
)
from tests.processes import wait_until_gone

TOOL = Path(__file__).parents[2] / "tools" / "compare_mixtures.py"
SMALL = [
    *("--num-layers=1", "--hidden-size=32", "--num-attention-heads=2"),
    *("--train-iters=40", "--micro-batch-size=8", "--global-batch-size=8"),
    *("--lr=1e-2", "--min-lr=1e-3", "--lr-warmup-iters=4", "--eval-samples=16"),
]


@pytest.fixture(scope="module")
def test_set(tmp_path_factory):
    """A held-out set like the search's target, but not the same."""
    prefix = tmp_path_factory.mktemp("evidence") / "test"
    write_dataset(prefix, synthetic_documents("forward", 40, 7), 259)
    return prefix


@pytest.fixture
def mixture(corpora, tmp_path):
    """A learned mixture file that puts most weight on the useful source."""
    path = tmp_path / "run" / "mixture.json"
    learned = dict(zip(SOURCES, (0.9, 0.1, 0.0), strict=True))
    made = LearnedMixture(
        seq_length=SEQ_LENGTH,
        complete=True,
        steps=10,
        outer_steps=5,
        averaging_fraction=0.5,
        averaged_outer_steps=2,
        token_budget=1000,
        seed=1,
        estimator="finite_difference",
        sources=tuple(
            LearnedSource(
                name=name,
                shards=(Shard(path=str(corpora / name), tokens=7800, loss_tokens=7800, rows=120),),
                documents=120,
                initial_weight=(0.5, 0.25, 0.25)[k],
                final_weight=learned[name],
                weight=learned[name],
                weight_std=0.0,
                logit=0.0,
            )
            for k, name in enumerate(SOURCES)
        ),
        targets=(
            TargetResult(
                name="target",
                path=str(corpora / "target"),
                tokens=3900,
                size=None,
                weight=1.0,
                initial_loss=None,
                final_loss=None,
            ),
        ),
        cost={"training_flops": 1e9, "wall_seconds": 1.0, "tokens": 1e4},
        versions={},
        config={"tokenizer": {"tokenizer_type": "ByteLevelTokenizer", "tokenizer_model": None}},
    )
    write_mixture(path, made)
    return path


@pytest.fixture
def flags(mixture, test_set, tmp_path):
    """Arguments of a small comparison that needs no more than to be run."""
    output = str(tmp_path / "rows")
    return ["--mixture", str(mixture), "--output", output, "--test", f"held_out={test_set}"]


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


def test_wrong_arguments(flags, corpora, mixture, tmp_path):
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
    refused(ConfigError, r"give each mixture once", *("--mixture", mixture, mixture), *flags[2:])
    assert not (tmp_path / "rows").exists()


def test_a_source_and_a_test_set_of_several_datasets(corpora, mixture, test_set, tmp_path):
    """Text is drawn by weight × tokens of the dataset / tokens of the source, and a test set's
    samples come from all of its datasets."""
    import torch

    from megatron_fastmix.corpus.tokenizers import load_tokenizer
    from megatron_fastmix.lab.comparison.candidates import Candidate
    from megatron_fastmix.lab.comparison.config import load_compare_config
    from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned
    from megatron_fastmix.lab.comparison.row_data import RowData
    from megatron_fastmix.lab.comparison.rows import Task
    from megatron_fastmix.proxy.megatron_gpt import initialize_world_of_one

    def learned_from(shards):
        values = json.loads(mixture.read_text())
        source = values["sources"][0]
        source["shards"] = [source["shards"][0] | {"path": path} for path in shards]
        for key in ("tokens", "loss_tokens", "rows"):
            source[key] = sum(shard[key] for shard in source["shards"])
        file = tmp_path / f"{len(shards)}.json"
        file.write_text(json.dumps(values))
        return read_learned([str(file)])["learned"]

    (tmp_path / "web").mkdir()
    for number, documents in enumerate((30, 90)):
        texts = synthetic_documents("forward", documents, 20 + number)
        write_dataset(tmp_path / f"web/part_{number}", texts, 259)
    (tmp_path / "tests").mkdir()
    for number in range(2):
        texts = synthetic_documents("noise", 20, 30 + number)
        write_dataset(tmp_path / f"tests/part_{number}", texts, 259)
    shards = [str(tmp_path / f"web/part_{number}") for number in range(2)]
    config = load_compare_config(None, SMALL, [f"held_out={tmp_path}/tests/part_*"])
    setting = make_setting(config, learned_from(shards), "mixture")
    first, second = setting.sources[0].shards.values()
    assert setting.sources[0].tokens == first + second
    refused_set = load_compare_config(None, SMALL, [f"held_out={tmp_path}/web"])
    with pytest.raises(ConfigError, match="web/part_0 is source forward of the search"):
        make_setting(refused_set, learned_from(shards), "mixture")
    weights = dict(zip(SOURCES, ("0.8", "0.1", "0.1"), strict=True))
    task = Task(candidate=Candidate(name="given", kind="learned", weights=weights), seed=1)
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    initialize_world_of_one()
    rows = RowData(setting, task, tokenizer, tmp_path / "cache", torch.device("cpu"))
    drawn = [int(rows._blend[i]["dataset_id"]) for i in range(len(rows._blend))]
    share = 0.8 * first / (first + second)
    assert drawn.count(0) / len(drawn) == pytest.approx(share, abs=0.01)
    assert drawn.count(0) + drawn.count(1) == pytest.approx(0.8 * len(drawn), abs=2)
    tested = torch.cat([batch.tokens for batch in rows.test(setting.tests[0])])
    assert len(tested) == config.eval_samples
    parts = [
        dataclasses.replace(setting.tests[0], shards={p: n})
        for p, n in setting.tests[0].shards.items()
    ]
    rows.setting = dataclasses.replace(setting, eval_samples=None)
    ones = [torch.cat([batch.tokens for batch in rows.test(part)]) for part in parts]
    assert [sum(any(torch.equal(t, o) for o in one) for t in tested) for one in ones] == [8, 8]


def test_a_test_set_is_of_one_kind_with_its_masks(corpora, flags, tmp_path):
    write_dataset(tmp_path / "tests/a", synthetic_documents("noise", 20, 1), 259)
    write_rows(tmp_path / "tests/b", synthetic_rows("noise", 20, 1), 259)
    both = (*flags[:4], "--test", f"held_out={tmp_path}/tests")
    refused(ConfigError, "b is answer-only, .*a is plain text; all datasets of a source", *both)
    (tmp_path / "tests/b_loss_mask.bin").unlink()
    alone = (*flags[:4], "--test", f"held_out={tmp_path}/tests/b")
    refused(DataError, r"b_loss_mask\.bin: is missing", *alone)


def test_two_sources_of_one_dataset_both_count(corpora, mixture, test_set, tmp_path):
    import torch

    from megatron_fastmix.corpus.tokenizers import load_tokenizer
    from megatron_fastmix.lab.comparison.candidates import Candidate
    from megatron_fastmix.lab.comparison.config import load_compare_config
    from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned
    from megatron_fastmix.lab.comparison.row_data import RowData
    from megatron_fastmix.lab.comparison.rows import Task
    from megatron_fastmix.proxy.megatron_gpt import initialize_world_of_one

    config = load_compare_config(None, SMALL, [f"held_out={test_set}"])
    setting = make_setting(config, read_learned([str(mixture)])["learned"], "mixture")
    first, second, third = setting.sources
    setting = dataclasses.replace(
        setting, sources=(first, dataclasses.replace(first, name=second.name), third)
    )
    weights = dict(zip(SOURCES, ("0.4", "0.4", "0.2"), strict=True))
    task = Task(candidate=Candidate(name="given", kind="learned", weights=weights), seed=1)
    initialize_world_of_one()
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    rows = RowData(setting, task, tokenizer, tmp_path / "cache", torch.device("cpu"))
    drawn = [int(rows._blend[i]["dataset_id"]) for i in range(len(rows._blend))]
    assert drawn.count(0) / len(drawn) == pytest.approx(0.8, abs=0.01)


def test_learned_mixtures_must_be_of_the_same_sources(mixture, flags, tmp_path):
    values = json.loads(mixture.read_text())
    values["sources"][0]["name"] = "renamed"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(values))
    arguments = ["--mixture", str(mixture), str(other), *flags[2:]]
    refused(ConfigError, r"other\.json: its sources is .*renamed", *arguments)


def test_settings_that_matter_change_the_digest(flags, mixture, test_set):
    from megatron_fastmix.lab.comparison.config import load_compare_config
    from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned

    config = load_compare_config(None, SMALL, [f"held_out={test_set}"])
    learned = read_learned([str(mixture)])["learned"]
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


def test_documents_share_a_sample_as_they_did_in_the_search(corpora, mixture, tmp_path):
    """Of each flag, what the batches of a row hold; the mixture's configuration sets them."""
    import torch

    from megatron_fastmix.corpus.tokenizers import load_tokenizer
    from megatron_fastmix.lab.comparison.candidates import Candidate
    from megatron_fastmix.lab.comparison.config import DATA_FLAGS, load_compare_config
    from megatron_fastmix.lab.comparison.inputs import make_setting, read_learned
    from megatron_fastmix.lab.comparison.row_data import RowData
    from megatron_fastmix.lab.comparison.row_evaluation import batch_token_losses
    from megatron_fastmix.lab.comparison.rows import Task
    from megatron_fastmix.proxy.megatron_gpt import build_proxy, initialize_world_of_one

    tokenizer = load_tokenizer("ByteLevelTokenizer")
    documents = synthetic_documents("forward", 60, 7)
    ended = [[*document[:20], tokenizer.eod] for document in documents]
    write_dataset(tmp_path / "ended", ended, tokenizer.vocab_size)
    config = load_compare_config(None, SMALL, [f"held_out={tmp_path / 'ended'}"])
    learned = read_learned([str(mixture)])["learned"]
    weights = dict(zip(SOURCES, ("0.5", "0.3", "0.2"), strict=True))
    task = Task(candidate=Candidate(name="given", kind="learned", weights=weights), seed=1)
    initialize_world_of_one()
    model = build_proxy(
        config.model, vocab_size=tokenizer.vocab_size, seq_length=SEQ_LENGTH, seed=1
    )
    found, digests = {}, set()
    for flag in (None, *DATA_FLAGS):
        data = {} if flag is None else {flag: True}
        changed = dataclasses.replace(learned, config=learned.config | {"data": data})
        setting = make_setting(config, changed, "mixture")
        digests.add(setting.digest)
        rows = RowData(setting, task, tokenizer, tmp_path / f"cache-{flag}", torch.device("cpu"))
        batch = next(iter(rows.test(setting.tests[0])))
        found[flag] = (batch, batch_token_losses(model, batch))
        assert len(rows.step(0)) == 1
    assert len(digests) == 4
    plain, losses = found[None]
    ends = plain.tokens == tokenizer.eod
    assert ends.any()
    assert plain.loss_mask.all()
    assert plain.positions is None
    masked, _ = found["eod_mask_loss"]
    assert torch.equal(masked.loss_mask == 0, ends)
    positions, moved = found["reset_position_ids"]
    assert positions.positions[ends.roll(1, 1)][1:].max() == 0
    apart, alone = found["reset_attention_mask"]
    assert apart.blocks[:, -1].min() >= 1
    first = (apart.blocks == 0) & ~ends  # what comes before the first end is as it was
    torch.testing.assert_close(alone[first], losses[first])
    assert not torch.allclose(alone, losses)
    torch.testing.assert_close(moved[first], losses[first])
