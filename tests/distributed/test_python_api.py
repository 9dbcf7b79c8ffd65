"""The Python API, as README shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

SCRIPT = '''\
"""Learns a mixture, writes it for Megatron, and says what it found."""
from megatron_fastmix import export, load_result, report, search

if __name__ == "__main__":
    mixture = search("search.yaml", overrides={"training.train_iters": 4}, num_ranks=1)
    for source in mixture.sources:
        print(f"{source.name}: {source.weight:.3f}")
    assert mixture.complete
    assert load_result(mixture_folder := "run") == mixture
    export(mixture, "megatron-data-args", output="blend.txt")
    capped = export(mixture, "megatron-cli", token_budget=10_000, max_epochs=4)
    print(capped)
    page = report(mixture_folder, pictures=False)
    print(page)
'''


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
    with pytest.raises(ConfigError, match="--num-ranks: found 0"):
        search(search_values, num_ranks=0)
    with pytest.raises(DataError):
        load_result(tmp_path)
    with pytest.raises(ConfigError):
        export(tmp_path, "no-such-format")
