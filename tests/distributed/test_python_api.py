"""The Python API, as README shows it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

README = Path(__file__).parents[2] / "megatron_fastmix" / "README.md"
SCRIPT, *_ = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


def test_the_readmes_script_runs(search_values: dict, tmp_path: Path) -> None:
    assert len(SCRIPT.splitlines()) <= 15
    search_values["run_dir"] = "run"
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search_values))
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "forward: 0." in done.stdout
    assert "--data-path" in done.stdout
    blend = (tmp_path / "blend.txt").read_text().split()
    assert [Path(word).name for word in blend[1::2]] == ["forward", "backward", "noise"]
    assert (tmp_path / "run" / "report" / "report.html").exists()


def test_functions_and_rooms_share_a_name() -> None:
    import megatron_fastmix
    import megatron_fastmix.export.registry
    import megatron_fastmix.search.inputs
    from megatron_fastmix import export, report, search

    assert megatron_fastmix.search.inputs.check_inputs
    assert all(callable(function) for function in (search, export, report))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        megatron_fastmix.nothing  # noqa: B018


def test_errors_are_those_of_the_package(search_values: dict, tmp_path: Path) -> None:
    from megatron_fastmix import export, load_result, search
    from megatron_fastmix.errors import ConfigError, DataError

    with pytest.raises(ConfigError, match=r"training\.lr"):
        search(search_values, overrides={"training.lr": -1.0})
    with pytest.raises(ConfigError, match=r"sources\.a\.max_weight: sources is no section, but l"):
        search(search_values, overrides={"sources.a.max_weight": 0.5})
    with pytest.raises(ConfigError, match="--num-ranks: found 0"):
        search(search_values, num_ranks=0)
    with pytest.raises(DataError):
        load_result(tmp_path)
    with pytest.raises(ConfigError):
        export(tmp_path, "no-such-format")
