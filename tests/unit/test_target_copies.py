"""A target that is a source under another path, by its content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from megatron_fastmix.cli.main import main
from megatron_fastmix.config import load_config
from megatron_fastmix.errors import DataError
from megatron_fastmix.search.copies import check_targets_are_no_copies
from megatron_fastmix.search.inputs import check_inputs


def dataset(prefix: Path, index: bytes, ids: bytes) -> str:
    Path(f"{prefix}.idx").write_bytes(index)
    Path(f"{prefix}.bin").write_bytes(ids)
    return str(prefix)


def test_equal_content_is_a_copy_and_equal_sizes_are_none(tmp_path: Path) -> None:
    sources = [("web", dataset(tmp_path / "a", b"idx", b"ids")), ("code", str(tmp_path / "b"))]
    dataset(tmp_path / "b", b"idx", b"idt")
    other = ("t", dataset(tmp_path / "c", b"idy", b"ids"))
    check_targets_are_no_copies(sources, [other])
    copy = ("t", dataset(tmp_path / "d", b"idx", b"idt"))
    with pytest.raises(DataError, match=r"target t .*d\): has the content of source code .*b\);"):
        check_targets_are_no_copies(sources, [other, copy])


def test_no_command_starts_with_a_copied_target(
    tmp_path: Path, config_file: Path, search_values: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    source, copy = search_values["sources"][0]["path"], str(tmp_path / "copied")
    for end in (".bin", ".idx"):
        shutil.copy(f"{source}{end}", f"{copy}{end}")
    search_values["targets"][0]["path"] = copy
    config_file.write_text(yaml.safe_dump(search_values))
    with pytest.raises(DataError, match="has the content of source"):
        check_inputs(load_config(config_file), 1)
    assert main(["check-hosts", "--config", str(config_file)]) == 2
    assert "a target must not be a source" in capsys.readouterr().err
