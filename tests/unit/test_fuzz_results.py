"""Damaged results, metrics, rows and checkpoints end in an error of this package."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.checkpoint.store import latest
from megatron_fastmix.checkpoint.stored_parameters import StoredParameters
from megatron_fastmix.cli.compare import describe
from megatron_fastmix.errors import CheckpointError, FastMixError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.learned_phases import trajectory_means
from megatron_fastmix.export.registry import FORMATS
from megatron_fastmix.lab.comparison.rows import RowFile
from megatron_fastmix.report.closing import closing_lines
from megatron_fastmix.report.comparison import compare
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.run.lock import RunLock
from tests.unit.damaged_files import Case, try_damage, try_lines
from tests.unit.report_runs import write_search

pytestmark = pytest.mark.slow


def render_all(path: Path) -> None:
    """Everything that is made of a mixture."""
    mixture = read_mixture(path)
    final_table(mixture, blend_txt=None, blend_json=None)
    compared = compare(mixture, mixture)
    describe(compared, mixture, mixture)
    blend = make_blend(mixture)
    for entry in FORMATS.values():
        with contextlib.suppress(FastMixError):
            entry.render(blend)


def test_mixtures(tmp_path: Path, make_mixture: Any) -> None:
    path = tmp_path / "mixture.json"
    write_mixture(path, make_mixture({"a": 0.7, "b": 0.3}))
    try_damage(Case(path, render_all))


def short_search(folder: Path) -> RunFolder:
    """A run folder with a few lines of metrics and a result."""
    run = RunFolder(write_search(folder, ["a", "b"]))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    outer = [line for line in lines if line["kind"] == "outer"]
    advantage = {
        "advantage": {"a": 0.1, "b": -0.1},
        "advantage_standard_error": {"a": 0.1, "b": 0.1},
    }
    kept = [lines[0], lines[1], outer[0] | advantage, lines[3], outer[-1] | advantage, lines[-1]]
    kept[3] |= {"data_seconds": 0.1, "nonfinite_gradients": 0, "grad_norm": 1.0}
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in kept))
    return run


@pytest.mark.parametrize("kind", ["metrics", "mixture", "rows"])
def test_run_folders(tmp_path: Path, kind: str) -> None:
    run = short_search(tmp_path / "run")
    rows = run.path / "compared" / "rows.jsonl"
    rows.parent.mkdir()
    shutil.copy("tools/method_rows/pretrain_one_target.jsonl", rows)
    rows.write_text("\n".join(rows.read_text().splitlines()[:6]) + "\n")
    blend = tmp_path / "blend"
    blend.write_text("0.5 /data/a 0.5 /data/b")

    def use(path: Path) -> None:
        runs = read_runs([run.path])
        write_report(
            runs,
            run.report,
            pictures=False,
            reload_seconds=10,
            against={"mine": {"a": 0.5, "b": 0.5}},
        )
        if runs[0].mixture is not None:
            closing_lines(run.path, runs[0].mixture, run.report)
            trajectory_means(run.metrics, runs[0].mixture, 0.5)

    path = {"metrics": run.metrics, "mixture": run.mixture, "rows": rows}[kind]
    case = Case(path, use)
    try_damage(case)
    if kind != "mixture":
        try_lines(case)


def test_two_runs_on_one_page(tmp_path: Path) -> None:
    first, second = short_search(tmp_path / "a"), short_search(tmp_path / "b")
    changed = second.metrics.read_text().replace('"seed": 1', '"seed": 2')
    second.metrics.write_text(changed)

    def use(path: Path) -> None:
        runs = read_runs([first.path, second.path])
        write_report(runs, first.report, pictures=False)

    case = Case(second.metrics, use)
    try_damage(case)
    try_lines(case)


def test_rows_of_comparisons(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    text = (root / "tools/method_rows/pretrain_one_target.jsonl").read_text()
    records = [json.loads(line) for line in text.splitlines()]
    search, training = (
        next(r for r in records if r["record"] == kind) for kind in ("search", "training")
    )
    named = (search["configuration"], training["setting"])
    kept = [r for r in records if r["record"] == "head" or r.get("key") in named]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (*kept, search, training)))

    def use(path: Path) -> None:
        rows = RowFile(path).read()
        [row.key for row in rows.trainings.values()]

    case = Case(path, use)
    try_damage(case)
    try_lines(case)


def save_arrays(path: Path) -> None:
    arrays = {f"{kind}:0:6:layer.weight": np.arange(6, dtype=np.float32) for kind in ("master",)}
    np.savez(path, **arrays, adam_steps=np.array([3.0]))  # type: ignore[arg-type]


def use_arrays(path: Path) -> None:
    stored = StoredParameters([path])
    stored.check_names({"layer.weight": 6})
    stored.read("master", "layer.weight", 0, 6)


def test_checkpoint_arrays(tmp_path: Path) -> None:
    path = tmp_path / "tensor-00-data-00000.npz"
    save_arrays(path)
    try_damage(Case(path, use_arrays))


def foreign_members() -> dict[str, bytes]:
    """By what is wrong with it, a member in the place of an array."""
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    fields = io.BytesIO()
    np.save(fields, np.zeros(6, dtype=[("a", "f4")]))
    text = io.BytesIO()
    np.save(text, np.array(["x"] * 6))
    good = io.BytesIO()
    np.save(good, np.arange(6, dtype=np.float32))
    short, long = b"(6,), }", b"(9999999999999,), }"
    huge = good.getvalue().replace(short.ljust(len(long)), long)
    open_ended = good.getvalue().replace(b"(6,), }", b"(6,,    ")
    return {
        "pickled": pickled.getvalue(),
        "fields": fields.getvalue(),
        "text": text.getvalue(),
        "cut": good.getvalue()[:-4],
        "header": good.getvalue()[:20],
        "empty": b"",
        "no array": b"PK\x03\x04 and more",
        "shape": huge,
        "bracket": open_ended,
        "version": good.getvalue()[:6] + b"\x09\x00" + good.getvalue()[8:],
    }


@pytest.mark.parametrize("what", sorted(foreign_members()))
def test_foreign_members_of_a_checkpoint(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.npz"
    save_arrays(path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    key = next(name for name in members if name.startswith("master"))
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (members | {key: foreign_members()[what]}).items():
            file.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"a\.npz"):
        use_arrays(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "a.npz"
    save_arrays(path)
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"a\.npz.* is compressed or encrypted"):
        use_arrays(path)


def flagged(content: bytes, flag: int) -> bytes:
    """The zip file with a general-purpose flag set for every member."""
    changed = bytearray(content)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.find(mark)
        while at >= 0:
            (flags,) = struct.unpack_from("<H", changed, at + place)
            struct.pack_into("<H", changed, at + place, flags | flag)
            at = changed.find(mark, at + 4)
    return bytes(changed)


@pytest.mark.parametrize(
    "flag", [0x1, 0x20, 0x40, 0x2000], ids=["encrypted", "patch", "strong", "masked"]
)
def test_encrypted_checkpoints(tmp_path: Path, flag: int) -> None:
    path = tmp_path / "a.npz"
    save_arrays(path)
    path.write_bytes(flagged(path.read_bytes(), flag))
    with contextlib.suppress(CheckpointError):  # the masked names alone may be readable
        use_arrays(path)


def test_states_of_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "search.json").write_text('{"state": {"step": 3}, "files": {}, "sha256": "0"}')

    def use(path: Path) -> None:
        with contextlib.suppress(FastMixError):
            latest(RunFolder(tmp_path))

    try_damage(Case(folder / "search.json", use))


def test_locks(tmp_path: Path) -> None:
    """Whatever a lock holds is somebody's who may be gone, or nothing."""
    run = RunFolder(tmp_path)
    run.lock.write_text('{"host": "elsewhere", "pid": 3, "since": 1.5, "token": "x"}')

    def use(path: Path) -> None:
        lock = RunLock(run, heartbeat_seconds=0.0005)
        lock.acquire()
        lock.release()

    try_damage(Case(run.lock, use))


def test_outcomes_of_proxies(tmp_path: Path) -> None:
    from megatron_fastmix.lab.baselines.proxy_pool import _read

    path = tmp_path / "proxy.json"
    path.write_text(
        json.dumps(
            {
                "recipe": "abc",
                "weights": [0.5, 0.5],
                "losses": [1.0],
                "flops": 1.0,
                "tokens": 3,
                "seconds": 0.1,
            }
        )
    )
    try_damage(Case(path, _read))
