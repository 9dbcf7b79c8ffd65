"""A source's path stands for one dataset or many: prefix, folder, glob, list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from megatron_fastmix.checkpoint.identity import fingerprint, fingerprint_of, sample_bytes_for
from megatron_fastmix.cli.main import main
from megatron_fastmix.config import dump_config, load_config
from megatron_fastmix.corpus.indexed.indexed_files import check_vocabulary
from megatron_fastmix.dataset_paths import find_datasets
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.start.claim import claim
from megatron_fastmix.start.host_report import report
from tests.conftest import synthetic_documents, synthetic_rows, write_dataset, write_rows


def touch(folder: Path, *prefixes: str) -> None:
    for prefix in prefixes:
        for end in (".idx", ".bin"):
            file = folder / f"{prefix}{end}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")


def found(folder: Path, path) -> list[str]:
    paths = str(folder / path) if isinstance(path, str) else [str(folder / p) for p in path]
    return [os.path.relpath(prefix, folder) for prefix in find_datasets(paths, "source web")]


def test_folders_and_globs_are_sorted_as_people_count_and_lists_keep_their_order(tmp_path):
    touch(tmp_path, "web/part_10", "web/part_9", "web/part_009", "web/deep/part_1", "code")
    touch(tmp_path, "rows", "rows_loss_mask", "[odd]")
    assert found(tmp_path, "web") == ["web/part_009", "web/part_9", "web/part_10"]
    assert found(tmp_path, "web/") == found(tmp_path, "web")
    assert found(tmp_path, "web/part_?") == ["web/part_9"]
    assert found(tmp_path, "web/*_1*.idx") == ["web/part_10"]
    assert found(tmp_path, "web/**/part_1*") == ["web/deep/part_1", "web/part_10"]
    assert found(tmp_path, "web/**") == found(tmp_path, "web/**/*")
    assert "web/deep/part_1" in found(tmp_path, "web/**")
    assert found(tmp_path, ["code", "web/part_1*"]) == ["code", "web/part_10"]
    assert found(tmp_path, "row*") == ["rows"]
    assert found(tmp_path, "[odd]") == ["[odd]"]
    # A single prefix is not looked at: whoever opens it says what is wrong.
    assert found(tmp_path, "nothing") == ["nothing"]


def test_a_dataset_that_has_the_name_of_a_folder_is_meant_itself(tmp_path):
    touch(tmp_path, "web", "web/part_1")
    assert found(tmp_path, "web") == ["web"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("we?_*", r"source web: the glob .*we\?_\* holds no dataset; .* has the datasets code$"),
        ("empty", r"source web: the folder .*empty holds no dataset; .*empty is empty"),
        ("texts", r"the folder .*texts holds no dataset; .*texts has no dataset but a.jsonl"),
        ("outer", r"its subfolders have some: write .*outer/\*\*/\*"),
        ("half", r"half/b.bin is missing beside .*half/b.idx; copy the dataset whole"),
        ("lost", r"lost/b.idx is missing beside .*lost/b.bin"),
        ([], "path is an empty list"),
        (["code", "code"], "code is .*code, given twice"),
        (["code", "cod*"], "code is .*code, given twice"),
        (["code", "link"], "link is .*code, given twice"),
        ("twice", "twice/b is .*twice/a, given twice"),
    ],
)
def test_what_stands_for_no_source_is_refused(tmp_path, path, message):
    touch(tmp_path, "code", "outer/inner/a", "half/a", "lost/a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.jsonl").write_text("{}")
    (tmp_path / "half/b.idx").write_bytes(b"x")
    (tmp_path / "lost/b.bin").write_bytes(b"x")
    touch(tmp_path, "twice/a")
    for end in (".idx", ".bin"):
        (tmp_path / f"twice/b{end}").hardlink_to(tmp_path / f"twice/a{end}")
    if isinstance(path, list) and "link" in path:
        for end in (".idx", ".bin"):
            (tmp_path / f"link{end}").symlink_to(tmp_path / f"code{end}")
    with pytest.raises(DataError, match=message):
        found(tmp_path, path)


@pytest.fixture
def sharded(search_values: dict, tmp_path: Path) -> dict:
    """A search whose first source is a folder of three datasets, 40 documents each."""
    for number in range(3):
        (tmp_path / "web").mkdir(exist_ok=True)
        documents = synthetic_documents("forward", 40, number)
        write_dataset(tmp_path / f"web/part_{9 + number}", documents, 258)
    search_values["sources"][0]["path"] = str(tmp_path / "web")
    return search_values


def load(values: dict, tmp_path: Path):
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(values))
    return load_config(file)


def test_a_configuration_takes_them_and_writes_them_back(sharded, tmp_path):
    web = tmp_path / "web"
    for path in (str(web), f"{web}/part_*", [f"{web}/part_9", f"{web}/part_1?"]):
        sharded["sources"][0]["path"] = path
        config = load(sharded, tmp_path)
        prefixes = [f"{web}/part_9", f"{web}/part_10", f"{web}/part_11"]
        assert list(config.sources[0].prefixes()) == prefixes
        assert load(yaml.safe_load(dump_config(config)), tmp_path) == config


@pytest.mark.parametrize("path", [[], "", ["a", " "], [1], {"a": 1}, None])
def test_a_path_that_names_nothing_is_refused(search_values, tmp_path, path):
    search_values["sources"][0]["path"] = path
    with pytest.raises(ConfigError, match="path"):
        load(search_values, tmp_path)


def test_a_dataset_has_one_source_and_no_target(sharded, tmp_path):
    sharded["sources"][1]["path"] = str(tmp_path / "web/part_9")
    with pytest.raises(ConfigError, match="both forward and backward hold it"):
        load(sharded, tmp_path)
    sharded["sources"][1]["path"] = str(tmp_path / "elsewhere")
    sharded["targets"][0]["path"] = [str(tmp_path / "other"), str(tmp_path / "web/part_10")]
    with pytest.raises(ConfigError, match="a target must not be a source"):
        load(sharded, tmp_path)


def test_sizes_are_sums_over_shards(sharded, tmp_path, corpora):
    sharded["targets"][0]["path"] = [str(corpora / "target"), str(corpora / "target_backward")]
    inputs = check_inputs(load(sharded, tmp_path), 1)
    source = inputs.sources[0]
    assert source.documents == 120
    assert len(source.shards) == 3
    assert source.size.tokens == sum(shard.tokens for shard in source.shards) == source.tokens
    assert inputs.targets[0].documents == 120


def test_a_source_of_two_kinds_is_refused(sharded, tmp_path):
    write_rows(tmp_path / "web/rows", synthetic_rows("forward", 40, 7), 258)
    with pytest.raises(ConfigError, match=r"forward: .*rows is answer-only, .* is plain text"):
        check_inputs(load(sharded, tmp_path), 1)


def test_a_shard_below_one_sample_is_named(sharded, tmp_path):
    write_dataset(tmp_path / "web/tiny", [[1, 2, 3]], 258)
    with pytest.raises(DataError, match=r"forward \(.*web/tiny\): found 3 tokens, fewer than one"):
        check_inputs(load(sharded, tmp_path), 1)


def test_content_is_that_of_all_shards(sharded, tmp_path):
    config = load(sharded, tmp_path)
    prefixes = config.sources[0].prefixes()
    before = fingerprint_of(prefixes)
    assert fingerprint_of(prefixes[:1]) == fingerprint(prefixes[0])
    assert fingerprint_of(prefixes[::-1]) != before
    claim(config)
    token = "t"
    (tmp_path / "run/.hosts").mkdir(parents=True)
    (tmp_path / "run/.hosts/t").touch()
    facts = report(config, token)["facts"]
    write_dataset(tmp_path / "web/part_11", synthetic_documents("noise", 40, 5), 258)
    assert fingerprint_of(prefixes) != before
    assert report(config, token)["facts"]["source forward"] != facts["source forward"]
    for end in (".idx", ".bin"):
        for number in (9, 10, 11):
            (tmp_path / f"web/part_{number}{end}").unlink()
    problems = report(config, token)["problems"]
    assert any("source forward: the folder" in problem for problem in problems)


def test_a_run_may_go_on_where_its_shards_moved(sharded, tmp_path):
    config = load(sharded, tmp_path)
    claim(config)
    sharded["sources"][0]["path"] = [str(tmp_path / f"web/part_{n}") for n in (9, 10, 11)]
    claim(load(sharded, tmp_path))
    names = [entry["path"] for entry in yaml.safe_load((tmp_path / "run/sources.json").read_text())]
    assert sum("/web/part_" in name for name in names) == 3


def test_inspect_and_plan_take_them(sharded, tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "web/part_*")]) == 0
    out = capsys.readouterr().out
    assert out.index("part_9:") < out.index("part_10:") < out.index("part_11:")
    assert "part_*: 3 datasets, 120 documents, " in out
    assert main(["inspect", str(tmp_path / "wob*")]) == 2
    assert "holds no dataset" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "web/part_12")]) == 2
    message = capsys.readouterr().err
    assert all(f"web/part_{number}" in message for number in (9, 10, 11)), message
    assert f"(looked in {tmp_path / 'web'})" in message
    load(sharded, tmp_path)
    call = ["plan", "--config", str(tmp_path / "search.yaml"), "--gpus-per-node", "1"]
    assert main(call) == 0
    assert "forward" in capsys.readouterr().out


def test_a_start_reads_no_dataset_whole(tmp_path, monkeypatch):
    """Of a dataset in a search of many, the look at ids and the hash read a part."""
    documents = [[1] * 1000 for _ in range(600)]
    write_dataset(tmp_path / "long", documents, 100_000)
    prefix = str(tmp_path / "long")
    size = (tmp_path / "long.bin").stat().st_size
    with open(f"{prefix}.bin", "r+b") as file:
        file.seek(size * 3 // 4 + 8)
        file.write((99_999).to_bytes(4, "little"))
    check_vocabulary(prefix, 1000, max_tokens=16_384)
    with pytest.raises(DataError, match="99999"):
        check_vocabulary(prefix, 1000)
    assert sample_bytes_for(64) > sample_bytes_for(65) > sample_bytes_for(16_000)
    before = fingerprint(prefix, sample_bytes_for(16_000))
    with open(f"{prefix}.bin", "r+b") as file:
        file.write(b"\x02")
    assert fingerprint(prefix, sample_bytes_for(16_000)) != before


@pytest.mark.parametrize("path", ["web", "web/part_*", "**"])
def test_a_dataset_whose_preprocess_is_not_finished_is_refused(tmp_path, path):
    touch(tmp_path, "web/part_1")
    (tmp_path / "web/part_1.bin.partial").write_bytes(b"x")  # written anew: the old one is whole
    assert found(tmp_path, path) == ["web/part_1"]
    (tmp_path / "web/part_2.bin.partial").write_bytes(b"x")
    with pytest.raises(DataError, match=r"part_2\.bin\.partial .* run the same preprocess again"):
        found(tmp_path, path)
