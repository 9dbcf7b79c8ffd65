"""Interrupted anywhere, preprocessing leaves nothing that looks complete, and then goes on."""

import dataclasses
import functools
import json
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus import dataset_work
from megatron_fastmix.corpus.dataset_output import DatasetOutput
from megatron_fastmix.corpus.indexed.output_lock import OutputLock
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.reading import readers
from megatron_fastmix.errors import ConfigError, DataError
from tests.cases import slow
from tests.processes import wait_until_gone

CHUNKS = 12


def write_pairs(path):
    lines = [json.dumps({"question": f"q{n}", "answer": "a" * (n % 50 + 1)}) for n in range(400)]
    path.write_text("\n".join(lines))


def config(tmp_path, out, *, skip_bad_lines=1, **options):
    dataset = DatasetConfig(
        prefix=str(tmp_path / out),
        input=(str(tmp_path / "in.jsonl"),),
        record_type="question_answer",
        skip_bad_lines=skip_bad_lines,
        **options,
    )
    return PreprocessConfig(
        tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        datasets=(dataset,),
        workers=1,
    )


def contents(tmp_path, out):
    return {
        path.name.removeprefix(out): path.read_bytes()
        for path in tmp_path.glob(f"{out}*")
        if path.suffix in {".bin", ".idx", ".digests"}
    }


@pytest.mark.parametrize("options", [{}, slow({"split": "2,1,1"}), slow({"held_out": True})])
@pytest.mark.parametrize("stop", range(0, CHUNKS, 3))
def test_interrupted_after_any_chunk(tmp_path, monkeypatch, stop, options):
    write_pairs(tmp_path / "in.jsonl")
    size = (tmp_path / "in.jsonl").stat().st_size
    chunk_bytes = size // CHUNKS
    whole = list(readers.iter_chunks(tmp_path / "in.jsonl", chunk_bytes=chunk_bytes))
    assert len(whole) >= CHUNKS
    chunks = functools.partial(readers.iter_chunks, chunk_bytes=chunk_bytes)
    monkeypatch.setattr(dataset_work, "iter_chunks", chunks)
    straight = preprocess(config(tmp_path, "straight", **options), lambda line: None)
    monkeypatch.setattr(dataset_work, "JOURNAL_SECONDS", 0.0)
    calls, real_write = [], DatasetOutput.write

    def interrupted(self, *args):
        calls.append(self)
        if len(calls) > stop * (3 if "split" in options else 1):
            real_write(self, *args)  # so that the files are ahead of the journal
            raise KeyboardInterrupt
        real_write(self, *args)

    monkeypatch.setattr(DatasetOutput, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        preprocess(config(tmp_path, "out", **options), lambda line: None)
    assert contents(tmp_path, "out") == {}
    monkeypatch.setattr(DatasetOutput, "write", real_write)
    said = []
    resumed = preprocess(config(tmp_path, "out", **options), said.append)
    assert ("continuing after chunk" in said[0]) == (stop > 0)
    assert contents(tmp_path, "out") == contents(tmp_path, "straight")
    facts = ("documents", "tokens", "text_bytes", "bin_sha256", "idx_sha256", "loss_mask_tokens")
    for one, other in zip(resumed, straight, strict=True):
        assert [getattr(one, fact) for fact in facts] == [getattr(other, fact) for fact in facts]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    assert not list(tmp_path.glob("*.journal.json"))


def test_allowing_more_bad_lines_goes_on_where_the_one_too_many_was(tmp_path, monkeypatch):
    write_pairs(tmp_path / "in.jsonl")
    lines = (tmp_path / "in.jsonl").read_text().splitlines()
    lines[5] = lines[200] = "{"
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    chunks = functools.partial(readers.iter_chunks, chunk_bytes=1000)
    monkeypatch.setattr(dataset_work, "iter_chunks", chunks)
    preprocess(config(tmp_path, "straight", skip_bad_lines=2), lambda line: None)
    with pytest.raises(DataError, match=r"in\.jsonl:201: .*--skip-bad-lines, which goes on"):
        preprocess(config(tmp_path, "out"), lambda line: None)
    assert contents(tmp_path, "out") == {}
    said = []
    (manifest,) = preprocess(config(tmp_path, "out", skip_bad_lines=3), said.append)
    assert "continuing after chunk" in said[0]
    assert manifest.bad_lines == 2
    assert contents(tmp_path, "out") == contents(tmp_path, "straight")
    said = []
    preprocess(config(tmp_path, "out", skip_bad_lines=2), said.append)
    assert "up to date" in said[0]
    with pytest.raises(DataError, match=r"in\.jsonl:201: .*1 bad lines were allowed"):
        preprocess(config(tmp_path, "out"), lambda line: None)


def test_a_refused_input_leaves_nothing_to_continue(tmp_path):
    (tmp_path / "in.jsonl").write_text(json.dumps([{"question": "q", "answer": "a"}]))
    with pytest.raises(DataError, match="holds one JSON array"):
        preprocess(config(tmp_path, "out"), lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_lost_partial_file_or_a_changed_input_starts_over(tmp_path, monkeypatch):
    write_pairs(tmp_path / "in.jsonl")
    monkeypatch.setattr(dataset_work, "JOURNAL_SECONDS", 0.0)

    def finish(self, **facts):
        raise KeyboardInterrupt

    for harm in ("lose", "change"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(DatasetOutput, "finish", finish)
            preprocess(config(tmp_path, "out"), lambda line: None)
        assert (tmp_path / "out.journal.json").exists()
        if harm == "lose":
            (tmp_path / "out.lengths.partial").write_bytes(b"")
        else:
            (tmp_path / "in.jsonl").write_text('{"question": "new", "answer": "input"}\n')
        said = []
        (manifest,) = preprocess(config(tmp_path, "out"), said.append)
        assert not [line for line in said if "continuing" in line]
        assert manifest.documents == (400 if harm == "lose" else 1)
        (tmp_path / "out.json").unlink()
        write_pairs(tmp_path / "in.jsonl")


@pytest.mark.parametrize("harm", ["cut", "grow"])
def test_an_input_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch, harm):
    write_pairs(tmp_path / "in.jsonl")
    lines = (tmp_path / "in.jsonl").read_text().splitlines(keepends=True)
    chunks = functools.partial(readers.iter_chunks, chunk_bytes=1000)
    monkeypatch.setattr(dataset_work, "iter_chunks", chunks)
    real_write = DatasetOutput.write

    def meanwhile(self, *args):
        changed = lines[:200] if harm == "cut" else [*lines, "\n", lines[0]]
        (tmp_path / "in.jsonl").write_text("".join(changed))
        real_write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(DatasetOutput, "write", meanwhile)
        with pytest.raises(DataError, match=r"in\.jsonl: changed while it was read"):
            preprocess(config(tmp_path, "out"), lambda line: None)
    assert not list(tmp_path.glob("out*"))
    (manifest,) = preprocess(config(tmp_path, "out"), lambda line: None)
    assert manifest.documents == (200 if harm == "cut" else 401)


def test_an_input_that_is_touched_while_it_is_read_is_whole(tmp_path, monkeypatch):
    write_pairs(tmp_path / "in.jsonl")
    real_write = DatasetOutput.write

    def meanwhile(self, *args):
        (tmp_path / "in.jsonl").touch()
        real_write(self, *args)

    monkeypatch.setattr(DatasetOutput, "write", meanwhile)
    (manifest,) = preprocess(config(tmp_path, "out"), lambda line: None)
    assert manifest.documents == 400


def test_an_input_that_changes_while_another_dataset_is_written_is_named(tmp_path, monkeypatch):
    both = config(tmp_path, "out"), config(tmp_path, "late")
    write_pairs(tmp_path / "in.jsonl")
    two = dataclasses.replace(both[0], datasets=both[0].datasets + both[1].datasets)
    real_finish = dataset_work.DatasetWork._finish

    def meanwhile(self, *args):
        with (tmp_path / "in.jsonl").open("a") as file:
            file.write("\n")
        return real_finish(self, *args)

    monkeypatch.setattr(dataset_work.DatasetWork, "_finish", meanwhile)
    with pytest.raises(DataError, match=r"in\.jsonl: changed since this command began, from"):
        preprocess(two, lambda line: None)


SCRIPT = """
import resource, sys, time
from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus import dataset_work
from megatron_fastmix.corpus.reading import readers
from megatron_fastmix.corpus.dataset_output import DatasetOutput
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.errors import FastMixError

source, out, pause, limit = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
dataset_work.JOURNAL_SECONDS = 0.0
dataset_work.iter_chunks = lambda *args: readers.iter_chunks(*args, chunk_bytes=20_000)
write = DatasetOutput.write
DatasetOutput.write = lambda *args: (time.sleep(pause), write(*args))[1]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
dataset = DatasetConfig(prefix=out, input=(source,))
tokenizer = TokenizerConfig(tokenizer_type="ByteLevelTokenizer")
try:
    preprocess(PreprocessConfig(tokenizer=tokenizer, datasets=(dataset,), workers=2))
except FastMixError as error:
    sys.exit(str(error))
"""


def start(tmp_path, out, pause=0.0, limit=0):
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCRIPT,
            tmp_path / "in.jsonl",
            tmp_path / out,
            str(pause),
            str(limit),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def write_texts(tmp_path):
    lines = (json.dumps({"text": f"{n} " * 100}) for n in range(4000))
    (tmp_path / "in.jsonl").write_text("\n".join(lines))


@pytest.mark.slow
def test_kill_9(tmp_path):
    write_texts(tmp_path)
    assert start(tmp_path, "straight").wait() == 0
    process = start(tmp_path, "out", pause=0.05)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.journal.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert contents(tmp_path, "out") == {}
    assert len(workers) == 2
    wait_until_gone(workers)  # they must not outlive their parent
    said, _ = start(tmp_path, "out").communicate()
    assert "continuing after chunk" in said
    assert contents(tmp_path, "out") == contents(tmp_path, "straight")


@pytest.mark.slow
def test_a_full_disk(tmp_path):
    write_texts(tmp_path)
    assert start(tmp_path, "straight").wait() == 0
    process = start(tmp_path, "out", limit=600_000)
    _, error = process.communicate()
    assert process.returncode == 1
    assert "cannot write: File too large; free some space and run again" in error
    assert "Traceback" not in error
    assert contents(tmp_path, "out") == {}
    said, _ = start(tmp_path, "out").communicate()
    assert "continuing after chunk" in said
    assert contents(tmp_path, "out") == contents(tmp_path, "straight")


def test_a_second_run_at_the_same_time_is_refused_and_harms_nothing(tmp_path):
    write_texts(tmp_path)
    assert start(tmp_path, "straight").wait() == 0
    first = start(tmp_path, "out", pause=0.02)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out.journal.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (tmp_path / "out.preprocess.lock").exists()
    first.send_signal(signal.SIGSTOP)  # however long the second takes to start, it meets the first
    second = start(tmp_path, "out")
    _, error = second.communicate()
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"out: another preprocess is writing this dataset, process {first.pid} on " in error
    assert socket.gethostname() in error
    first.communicate()
    assert first.returncode == 0
    assert contents(tmp_path, "out") == contents(tmp_path, "straight")
    assert not list(tmp_path.glob("*.lock"))


def test_a_part_is_locked_like_the_whole(tmp_path):
    write_pairs(tmp_path / "in.jsonl")
    lock = OutputLock(str(tmp_path / "out_train"))
    lock.acquire()
    with pytest.raises(ConfigError, match="out_train: another preprocess is writing"):
        preprocess(config(tmp_path, "out", split="2,1,1"), lambda line: None)
    lock.release()
    assert len(preprocess(config(tmp_path, "out", split="2,1,1"), lambda line: None)) == 3


def test_a_lock_that_another_host_left_is_watched(tmp_path):
    path = tmp_path / "out.preprocess.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    lock, said = OutputLock(str(tmp_path / "out"), heartbeat_seconds=0.1), []
    lock.acquire(said.append)
    assert "left by process 7 on elsewhere" in said[0]
    lock.release()
    assert not path.exists()
