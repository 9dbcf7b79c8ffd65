"""Names with spaces, quotes and shell signs go through unharmed; those that nothing can show are
refused at the start."""

from __future__ import annotations

import copy
import dataclasses
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_fastmix.cli.main import main
from megatron_fastmix.config import SearchConfig, load_config, strict_yaml
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.import_blend import read_blend
from megatron_fastmix.export.registry import FORMATS
from megatron_fastmix.report.summary import final_table, megatron_flags
from megatron_fastmix.report.write import read_runs, write_report

LAUNCH = Path(__file__).parents[2] / "launch"
ODD = ["it's; $(touch x) `y`", '<script>alert("1")</script>', "naïve 文 %s {0}", "x" * 200]


@pytest.mark.parametrize("name", ODD)
def test_names_that_may_be(search_values: dict, tmp_path: Path, name: str) -> None:
    search_values["sources"][0]["name"] = name
    search_values["targets"][0]["name"] = name
    search_values["run_dir"] = str(tmp_path / "it's a $(run)")
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(search_values))
    assert load_config(path).source_names[0] == name


@pytest.mark.parametrize(
    "name", ["", " a", "a\nb", "a\tb", "x" * 201, "a\u202eb", "a\u200fb", "\x1b[2J"]
)
@pytest.mark.parametrize("kind", ["sources", "targets"])
def test_names_that_nothing_can_show(search_values: dict, kind: str, name: str) -> None:
    values = copy.deepcopy(search_values)
    values[kind][0]["name"] = name
    with pytest.raises(ConfigError, match=f"{kind}: name: found .* visible characters on one line"):
        strict_yaml.from_dict(SearchConfig, values)


@pytest.mark.parametrize("path", ["", "a\nb", "a\u202eb", "\x1b[2J"])
def test_paths_that_nothing_can_show(search_values: dict, path: str) -> None:
    for change in ({"run_dir": path}, {"targets": [{"name": "t", "path": path}]}):
        with pytest.raises(ConfigError, match=r"path without line breaks|name one dataset"):
            strict_yaml.from_dict(SearchConfig, search_values | change)


def test_exports_and_tables(tmp_path: Path, make_mixture: Any) -> None:
    mixture = make_mixture(dict(zip(ODD, (0.4, 0.3, 0.2, 0.1), strict=True)))
    blend = make_blend(mixture)
    (tmp_path / "blend").write_text(FORMATS["megatron-per-split"].render(blend))
    assert list(read_blend(tmp_path / "blend")) == [f"/data/{name}" for name in ODD]
    (tmp_path / "blend").write_text(FORMATS["megatron-cli"].render(blend))
    assert list(read_blend(tmp_path / "blend")) == [f"/data/{name}" for name in ODD]
    assert all(name in final_table(mixture, blend_txt=None, blend_json=None) for name in ODD[:3])
    (flags,) = megatron_flags(mixture, blend_txt=None, blend_json=tmp_path / "a 'b' $(c).json")
    assert str(tmp_path / "a 'b' $(c).json") in shlex.split(flags)


def test_datasets_of_one_source_have_names_that_no_other_has(make_mixture: Any) -> None:
    mixture = make_mixture({"web": 0.6, "web/1": 0.2, "code": 0.2})
    shards = tuple(dataclasses.replace(mixture.sources[0].shards[0], path=p) for p in ("/a", "/b"))
    web = dataclasses.replace(mixture.sources[0], shards=shards)
    mixture = dataclasses.replace(mixture, sources=(web, *mixture.sources[1:]))
    streams = yaml.safe_load(FORMATS["mosaicml-streaming"].render(make_blend(mixture)))["streams"]
    assert {name: stream["local"] for name, stream in streams.items()} == {
        "web//1": "/a",
        "web//2": "/b",
        "web/1": "/data/web/1",
        "code": "/data/code",
    }
    assert sum(stream["proportion"] for stream in streams.values()) == pytest.approx(1)


def test_a_name_with_a_comma_is_no_list_for_llama_factory(make_mixture: Any) -> None:
    blend = make_blend(make_mixture({"en, news": 0.5, "b": 0.5}), "rows")
    with pytest.raises(DataError, match="source en, news: LLaMA-Factory splits"):
        FORMATS["llama-factory"].render(blend)


def test_the_page(tmp_path: Path, make_metrics: Any) -> None:
    folder = tmp_path / "a <b> 'run'"
    make_metrics(folder / "metrics.jsonl", ODD, outer_steps=2)
    page = write_report(read_runs([folder]), folder / "report", pictures=False).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "a <b>" not in page


def test_tensorboard(tmp_path: Path) -> None:
    """Each name has its own tag, as it is."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from megatron_fastmix.run.trackers import TensorBoard

    names = [*ODD, "a b", "a_b", "a/b", "%s"]
    board = TensorBoard(tmp_path, 0, 1)
    board.log({f"fastmix/weight/{name}": float(k) for k, name in enumerate(names)}, 1, samples=8)
    board.close()
    found = events.EventAccumulator(str(tmp_path))
    found.Reload()
    values = [found.Scalars(f"fastmix/weight/{name}")[0].value for name in names]
    assert values == list(range(len(names)))


@pytest.mark.parametrize("place", ["run_dir", "working directory"])
def test_what_a_launcher_hands_to_a_shell_on_other_hosts(
    search_values: dict,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    odd = tmp_path / "it's $(touch x)"
    odd.mkdir()
    if place == "run_dir":
        search_values["run_dir"] = str(odd / "run")
    else:
        monkeypatch.chdir(odd)
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search_values))
    (tmp_path / "hosts").write_text("localhost slots=2")
    flags = ["--config", str(tmp_path / "search.yaml"), "--hostfile", str(tmp_path / "hosts")]
    assert main(["check-hosts", *flags]) == 2
    assert f"{place}: found" in capsys.readouterr().err


def test_a_launch_script_hands_arguments_on_as_they_are(tmp_path: Path) -> None:
    """The script's `check-hosts` prints the path of a configuration, which `search` is given."""
    odd = str(tmp_path / 'it\'s; $(touch ran) `y` "z" 文.yaml')
    python = tmp_path / "py thon"
    python.write_text('#!/bin/sh\nfor word; do echo "<$word>" >> "$SEEN"; done\necho "$CONFIG"\n')
    python.chmod(0o755)
    seen = tmp_path / "seen"
    subprocess.run(
        ["bash", str(LAUNCH / "search.sh"), "--config", odd, "--accept-changes"],
        env=os.environ | {"PYTHON": str(python), "SEEN": str(seen), "CONFIG": odd},
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert seen.read_text().count(f"<--config>\n<{odd}>\n") == 2
    assert not (tmp_path / "ran").exists()
