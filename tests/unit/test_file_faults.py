"""Preprocessing on a file system that fails: one message with the path, and nothing is lost."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import yaml

from megatron_fastmix.cli.main import main
from megatron_fastmix.corpus import dataset_work
from megatron_fastmix.errors import StorageError
from megatron_fastmix.run.metrics import MetricsLog, read_metrics
from tests.cases import slow
from tests.file_faults import file_faults


def configuration(folder: Path) -> Path:
    """Two datasets with held-out sets and loss masks."""
    rows = [json.dumps({"question": f"q{n}", "answer": "a" * (n % 9 + 1)}) for n in range(60)]
    (folder / "in.jsonl").write_text("\n".join(rows))
    (folder / "held.jsonl").write_text("\n".join(rows[:7]))
    kind = {"record_type": "question_answer"}
    values = {
        "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
        "datasets": [
            {"prefix": "out/a", "input": ["in.jsonl"], "split": "2,1,1", **kind},
            {"prefix": "out/held", "input": ["held.jsonl"], "held_out": True, **kind},
        ],
        "workers": 1,
    }
    path = folder / "corpora.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in (folder / "out").iterdir()
        if path.suffix in {".bin", ".idx", ".digests"}
    }


@pytest.mark.parametrize(
    ("number", "lasting", "points"),
    [
        (errno.EIO, True, 5),
        slow(errno.EIO, False, 40),
        slow(errno.ESTALE, False, 20),
        slow(errno.EDQUOT, True, 10),
        slow(errno.EROFS, True, 10),
    ],
)
def test_preprocessing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    lasting: bool,
    points: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dataset_work, "JOURNAL_SECONDS", 0.0)
    command = ["preprocess", "--config", str(configuration(tmp_path))]
    # Paths are relative to the folder, in which only the outputs fail.
    with file_faults(Path("out"), number) as clean:
        assert main(command) == 0
    expected = outputs(tmp_path)
    assert clean.count > 60
    for operation in range(0, clean.count, clean.count // points):
        for path in (tmp_path / "out").iterdir():
            path.unlink()

        def fails(now: int, first: int = operation) -> bool:
            return now >= first if lasting else now == first

        capsys.readouterr()
        with file_faults(Path("out"), number, fails):
            code = main(command)
        said = capsys.readouterr().err
        assert code in ((StorageError.exit_code,) if lasting else (0, StorageError.exit_code)), said
        if code:
            assert ": out" in said
            assert len(said.splitlines()) == 1
            assert "Traceback" not in said
        assert main(command) == 0
        assert outputs(tmp_path) == expected
        assert not [path for path in (tmp_path / "out").iterdir() if "partial" in path.name]


@pytest.mark.parametrize("number", [errno.EIO])
def test_an_input_that_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["preprocess", "--config", str(configuration(tmp_path))]
    with file_faults(Path("in.jsonl"), number) as clean:
        assert main(command) == 0
    for operation in range(0, clean.count, clean.count // 4):
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        with file_faults(Path("in.jsonl"), number, lambda now, at=operation: now >= at):  # type: ignore[misc]
            assert main(command) in (2, 5)
        said = capsys.readouterr().err
        assert ": in.jsonl" in said or ": out" in said
        assert "Traceback" not in said


@pytest.mark.parametrize("operation", range(6))
def test_metrics_heal_where_the_handle_is_lost(tmp_path: Path, operation: int) -> None:
    path = tmp_path / "metrics.jsonl"
    with file_faults(tmp_path, errno.ESTALE) as faults:
        log = MetricsLog(path)
        log.write("inner", 1)
        faults.fails = lambda now, at=faults.count + operation: now == at  # type: ignore[misc]
        for step in range(2, 8):
            log.write("inner", step, loss=float(step))
        log.close()
    assert [line["step"] for line in read_metrics(path)] == list(range(1, 8))


def test_metrics_that_cannot_be_written_say_so_and_keep_what_they_had(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with file_faults(tmp_path, errno.EIO) as faults:
        log = MetricsLog(path)
        log.write("inner", 1)
        faults.fails = lambda now: True
        with pytest.raises(OSError, match=r"metrics\.jsonl"):
            log.write("inner", 2)
        faults.fails = lambda now: False
        assert [line["step"] for line in read_metrics(path)] == [1]
        log.write("inner", 3)
    assert [line["step"] for line in read_metrics(path)] == [1, 3]
