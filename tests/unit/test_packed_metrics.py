"""Metrics of very many sources: small on disk, and read as those of few."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.errors import DataError
from megatron_fastmix.run.metrics import MetricsLog, read_metrics
from megatron_fastmix.run.packed_line import PACKED_ABOVE

NAMES = [f"source_{k}" for k in range(PACKED_ABOVE + 1)]


def write(path: Path, names: list[str], steps: range) -> None:
    generator = np.random.default_rng(0)
    with MetricsLog(path) as log:
        if steps.start:
            log.truncate_after(steps.start)
        else:
            log.write("run", 0, sources=names, targets=["t"])
        for step in steps:
            weights = generator.random(len(names))
            log.write(
                "outer",
                step + 1,
                weights=by(names, weights),
                products=by(names, -weights),
                logits=by(names, weights),
            )
            losses = np.full(len(names), np.nan)
            losses[:3] = 1 / 3
            log.write("inner", step + 1, loss=2.5, source_loss=by(names, losses))


def by(names: list[str], values: np.ndarray) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def test_names_are_left_out_on_disk_and_there_for_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, NAMES, range(2))
    write(path, NAMES, range(2, 3))
    raw = path.read_text().splitlines()
    assert sum(NAMES[-1] in line for line in raw) == 1
    lines = read_metrics(path)
    assert [line["kind"] for line in lines] == ["run", *["outer", "inner"] * 3]
    generator = np.random.default_rng(0)
    assert lines[1]["weights"] == by(NAMES, generator.random(len(NAMES)))
    assert lines[1]["products"][NAMES[9]] == pytest.approx(-lines[1]["weights"][NAMES[9]], rel=1e-5)
    inner = lines[2]["source_loss"]
    assert list(inner) == NAMES
    assert inner[NAMES[2]] == pytest.approx(1 / 3, rel=1e-5)
    assert inner[NAMES[3]] is None
    assert "packed" not in lines[1]
    # 8 bytes of a weight and 4 of a product, as base64; the logits are left out.
    assert max(len(line) for line in raw[1::2]) < 1.4 * 12 * len(NAMES) + 200
    assert "logits" not in lines[1]
    assert max(len(line) for line in raw[2::2]) < 300


def test_few_sources_stay_readable(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, NAMES[:3], range(1))
    assert json.loads(path.read_text().splitlines()[1])["weights"].keys() == set(NAMES[:3])


def test_arrays_of_earlier_releases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, NAMES, range(0))
    weights = (np.arange(len(NAMES)) / 7).tolist()
    line = {"kind": "outer", "step": 1, "packed": ["weights", "products"]}
    with open(path, "a") as file:
        file.write(json.dumps(line | {"weights": weights, "products": [[2], [0.5]]}) + "\n")
    found = read_metrics(path)[1]
    assert list(found["weights"].values()) == weights
    assert (found["products"][NAMES[2]], found["products"][NAMES[3]]) == (0.5, None)


def test_what_is_not_known_is_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, NAMES, range(0))
    values = by(NAMES, np.ones(len(NAMES))) | {NAMES[5]: float("nan"), NAMES[6]: 1e-30}
    with MetricsLog(path) as log:
        log.truncate_after(0)
        log.write("outer", 1, weights=by(NAMES, np.ones(len(NAMES))), advantage=values)
    found = read_metrics(path)[1]["advantage"]
    assert (found[NAMES[4]], found[NAMES[5]]) == (1.0, None)
    assert found[NAMES[6]] == pytest.approx(1e-30, rel=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"packed": ["weights"], "weights": "f8:AAAA"},
        {"packed": ["weights"], "weights": "f8:AAAAAAAAAAA="},
        {"packed": ["weights"], "weights": "f2:AAAAAAAAAAA="},
        {"packed": ["weights"], "weights": "f8:no base64"},
        {"packed": 3},
        {"packed": ["weights"], "weights": [1.0]},
        {"packed": ["weights"], "weights": [[999], [1.0]]},
        {"packed": ["weights"], "weights": [[0, 1], [1.0]]},
        {"packed": ["weights"]},
        {"packed": [["weights"]]},
    ],
)
def test_damaged_arrays_are_named(tmp_path: Path, wrong: dict) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, NAMES, range(0))
    with open(path, "a") as file:
        file.write(json.dumps({"kind": "outer", "step": 1, **wrong}) + "\n")
    with pytest.raises(DataError, match=r"metrics.jsonl:2: "):
        read_metrics(path)
