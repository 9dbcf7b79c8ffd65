"""Splits depend on content alone, and nothing held out is left in training."""

import json
from dataclasses import replace

import numpy as np
import pytest

from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.splits import Splitter
from megatron_fastmix.dataset_paths import find_datasets
from megatron_fastmix.errors import ConfigError, DataError

TEXTS = [f"document number {n}" for n in range(400)]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def run(*datasets):
    config = PreprocessConfig(
        tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        datasets=datasets,
        workers=1,
    )
    said = []
    return {m.name: m for m in preprocess(config, said.append)}, said


def texts_of(prefix):
    ids = np.fromfile(f"{prefix}.bin", np.uint16)
    text = "".join("$" if token == 256 else chr(token) for token in ids)
    return text.split("$")[:-1]


def test_shares_are_met_and_places_are_stable(tmp_path):
    first, second = write(tmp_path / "1.jsonl", TEXTS[:200]), write(tmp_path / "2.jsonl", TEXTS)
    places = []
    for inputs in ((first,), (second, first)):
        prefix = str(tmp_path / "out")
        manifests, _ = run(DatasetConfig(prefix=prefix, input=inputs, split="8,1,1"))
        assert set(manifests) == {"out_train", "out_valid", "out_test"}
        places.append(
            {
                text: name
                for name in ("train", "valid", "test")
                for text in texts_of(f"{prefix}_{name}")
            }
        )
    assert all(places[1][text] == place for text, place in places[0].items())
    counts = [list(places[1].values()).count(name) for name in ("train", "valid", "test")]
    assert sum(counts) == 400
    assert 290 < counts[0] < 350
    assert 20 < counts[1] < 65
    assert 20 < counts[2] < 65
    assert [m.held_out for m in manifests.values()] == [False, True, True]


def test_held_out_documents_are_removed_from_all_training_data(tmp_path):
    target = write(tmp_path / "target.jsonl", [*TEXTS[:10], "only there"])
    plain = write(tmp_path / "plain.jsonl", TEXTS[5:50])
    parts = write(tmp_path / "parts.jsonl", TEXTS)
    manifests, _ = run(
        DatasetConfig(prefix=str(tmp_path / "plain"), input=(plain,)),
        DatasetConfig(prefix=str(tmp_path / "parts"), input=(parts,), split="9,1"),
        DatasetConfig(prefix=str(tmp_path / "target"), input=(target,), held_out=True),
    )
    held_out = set(texts_of(tmp_path / "target")) | set(texts_of(tmp_path / "parts_valid"))
    assert len(held_out) > 20
    for name, source in (("plain", TEXTS[5:50]), ("parts_train", TEXTS)):
        found = texts_of(tmp_path / name)
        assert not held_out.intersection(found)
        removed = manifests[name].duplicates_removed
        assert removed > 0
        if name == "plain":
            assert len(found) + removed == len(source)
    assert manifests["target"].duplicates_removed == 0


def test_a_changed_target_renews_the_training_data(tmp_path):
    source = DatasetConfig(
        prefix=str(tmp_path / "source"), input=(write(tmp_path / "source.jsonl", TEXTS[:9]),)
    )
    target = DatasetConfig(
        prefix=str(tmp_path / "target"),
        input=(write(tmp_path / "target.jsonl", ["x"]),),
        held_out=True,
    )
    run(source, target)
    _, said = run(source, target)
    assert all("up to date" in line for line in said)
    write(tmp_path / "target.jsonl", TEXTS[:2])
    manifests, _ = run(source, target)
    assert manifests["source"].duplicates_removed == 2


@pytest.mark.parametrize("split", ["", "a", "1,-1", "0,0", "1,1,1,1", "inf"])
def test_shares_that_are_none_are_refused(split):
    with pytest.raises(ConfigError, match="split: found"):
        Splitter.parse(split)


def test_shares_of_zero_get_nothing():
    splitter = Splitter.parse("0,1,0")
    assert splitter.names == ("valid",)
    assert {splitter(bytes([n] * 16)) for n in range(256)} == {0}


def test_a_share_of_zero_writes_no_split(tmp_path):
    path = write(tmp_path / "in.jsonl", TEXTS)
    manifests, _ = run(DatasetConfig(prefix=str(tmp_path / "a"), input=(path,), split="0,1,1"))
    assert set(manifests) == {"a_valid", "a_test"}
    assert sum(manifest.documents for manifest in manifests.values()) == len(TEXTS)
    assert {file.name.split(".")[0] for file in tmp_path.glob("a_*")} == set(manifests)


def test_unequal_shares_and_empty_splits_are_refused(tmp_path):
    path = write(tmp_path / "in.jsonl", TEXTS[:3])
    first = DatasetConfig(prefix=str(tmp_path / "a"), input=(path,), split="9,1")
    with pytest.raises(ConfigError, match="different shares"):
        run(first, DatasetConfig(prefix=str(tmp_path / "b"), input=(path,), split="8,2"))
    with pytest.raises(ConfigError, match="is not split"):
        DatasetConfig(prefix="c", input=(path,), split="1,1", held_out=True)
    write(tmp_path / "blank.jsonl", ["", ""])
    with pytest.raises(DataError, match="no document with text goes there; check the inputs"):
        run(replace(first, input=(str(tmp_path / "blank.jsonl"),)))
    assert not list(tmp_path.glob("a_*"))


def test_an_empty_part_is_told_and_not_written_and_the_rest_is_kept(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", TEXTS[:9])
    dataset = DatasetConfig(prefix=str(tmp_path / "a"), input=(path,), split="1,999999")
    run(replace(dataset, split="1,1"))  # its train part is of another recipe, and must not stay
    capsys.readouterr()
    manifests, _ = run(dataset)
    assert set(manifests) == {"a_valid"}
    assert "a_train: no document with text goes there, so it is not" in capsys.readouterr().err
    assert sorted(texts_of(tmp_path / "a_valid")) == sorted(TEXTS[:9])
    assert not list(tmp_path.glob("a_train*"))
    again, said = run(dataset)
    assert (again, len(said)) == (manifests, 1)
    assert "a_valid: up to date" in said[0]
    (tmp_path / "a_valid.bin").unlink()
    run(dataset)
    assert sorted(texts_of(tmp_path / "a_valid")) == sorted(TEXTS[:9])


def test_parts_of_an_earlier_split_are_removed_and_told(tmp_path, capsys):
    path = write(tmp_path / "in.jsonl", TEXTS)
    other = write(tmp_path / "other.jsonl", TEXTS)
    prefix = str(tmp_path / "out" / "web")
    run(DatasetConfig(prefix=prefix, input=(path,), split="8,1,1"))
    run(DatasetConfig(prefix=f"{prefix}_own", input=(path,)))  # a dataset of its own
    _, said = run(DatasetConfig(prefix=prefix, input=(path,), split="8,2"))
    assert f"{prefix}_test: removed, a part of an earlier split of the same inputs" in said
    assert {file.name.partition(".")[0] for file in (tmp_path / "out").iterdir()} == {
        "web_train",
        "web_valid",
        "web_own",
    }
    assert "note:" not in capsys.readouterr().err
    # What may be wanted still is told.
    _, said = run(DatasetConfig(prefix=prefix, input=(other,)))
    assert not [line for line in said if "removed" in line]
    told = capsys.readouterr().err
    assert f"note: {prefix}_train: left by an earlier run" in told
    assert f"note: {prefix}_valid: left by an earlier run" in told
    assert (tmp_path / "out" / "web_train.bin").exists()
    run(DatasetConfig(prefix=prefix, input=(path,), split="8,2"))
    assert f"note: {prefix}: left by an earlier run" in capsys.readouterr().err


def test_values_that_are_gone_leave_no_part(tmp_path):
    path = tmp_path / "in.jsonl"
    prefix = str(tmp_path / "out" / "web")
    dataset = DatasetConfig(prefix=prefix, input=(str(path),), split_by="lang")
    for languages in ("en de", "en fr"):
        records = [{"text": word, "lang": word} for word in languages.split()]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        manifests, _ = run(dataset)
        assert set(manifests) == {f"web_{word}" for word in languages.split()}
    assert find_datasets(str(tmp_path / "out"), "web") == (f"{prefix}_en", f"{prefix}_fr")
