"""What lies in tools/, and the command line and output that every benchmark there has."""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import megatron_fastmix
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.benchmarks.program import run_benchmark
from megatron_fastmix.lab.measurements import Measurement
from megatron_fastmix.program import run_program

TOOLS = sorted((Path(__file__).parents[2] / "tools").glob("*.py"))


def test_messages_name_verbs():
    """An installed package has no tools/."""
    sources = Path(megatron_fastmix.__file__).parent.rglob("*.py")
    named = [
        f"{path.name}: {tool.name}"
        for path in sources
        for tool in TOOLS
        if f"tools/{tool.name}" in path.read_text()
    ]
    assert len(TOOLS) > 5
    assert named == []


@dataclass(frozen=True, kw_only=True)
class Settings:
    sizes: tuple[float, ...] = (1.0,)
    repetitions: int = 3
    folder_name: str | None = None


def measure(folder, settings, report):
    assert folder.is_dir()
    report("measuring")
    return [
        Measurement(figure="time", value=sum(settings.sizes), reach=2.0, better="lower", unit="s"),
        Measurement(figure="speed", value=None, better="higher", unit="1/s"),
    ]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    benchmark = partial(run_benchmark, "What it measures.", Settings, measure)
    return run_program(benchmark, "benchmark")


def test_a_benchmark_prints_a_table_and_writes_the_same(tmp_path, monkeypatch, capsys):
    file = tmp_path / "figures.json"
    assert run(monkeypatch, "--sizes", "1.5", "2", f"--json={file}", "--folder-name=x") == 0
    printed = capsys.readouterr()
    assert printed.err == "measuring\n"
    assert [line.split() for line in printed.out.splitlines()[2:]] == [
        ["time", "3.5", "2", "lower", "s", "not", "reached"],
        ["speed", "unknown", "higher", "1/s"],
    ]
    content = json.loads(file.read_text())
    assert content["rows"] == [
        {"figure": "time", "value": 3.5, "reach": 2.0, "better": "lower", "unit": "s"},
        {"figure": "speed", "value": None, "reach": None, "better": "higher", "unit": "1/s"},
    ]
    assert content["settings"] == {"sizes": [1.5, 2.0], "repetitions": 3, "folder_name": "x"}
    assert content["machine"]["cores"] >= 1
    assert {"python", "torch", "megatron-core", "deepspeed"} <= content["versions"].keys()


def test_a_wrong_setting_is_one_message(monkeypatch, capsys):
    assert run(monkeypatch, "--repetitions", "0") == ConfigError.exit_code
    said = "benchmark: --repetitions: found 0; use a number above 0\n"
    assert capsys.readouterr().err == said  # and nothing was measured
    assert run(monkeypatch, "--sizes", "1", "-2") == ConfigError.exit_code
    assert "--sizes: found -2.0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, "--repetition-count=1")
