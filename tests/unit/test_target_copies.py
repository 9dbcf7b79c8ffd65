"""A target that is a source under another path, by its content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from megatron_fastmix.cli.main import main
from megatron_fastmix.config import load_config
from megatron_fastmix.search.copies import copied_targets


def test_a_copied_target_is_said(
    tmp_path: Path, config_file: Path, search_values: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    assert copied_targets(load_config(config_file)) == []
    source, copy = search_values["sources"][0], str(tmp_path / "copied")
    for end in (".bin", ".idx"):
        shutil.copy(f"{source['path']}{end}", f"{copy}{end}")
    search_values["targets"][0]["path"] = copy
    config_file.write_text(yaml.safe_dump(search_values))
    (line,) = copied_targets(load_config(config_file))
    assert f"({copy}) has the content of source {source['name']} ({source['path']})" in line
    assert main(["check-hosts", "--config", str(config_file)]) == 0
    assert line in capsys.readouterr().err
    changed = bytearray(Path(f"{copy}.bin").read_bytes())
    changed[0] ^= 1
    Path(f"{copy}.bin").write_bytes(changed)
    assert copied_targets(load_config(config_file)) == []
