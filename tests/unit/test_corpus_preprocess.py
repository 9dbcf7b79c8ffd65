"""Preprocessing: the bytes are Megatron's, a second run does nothing, bad input is named."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus.indexed.manifest import read_manifest
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.tokenizers.registry import ByteLevelTokenizer
from megatron_fastmix.errors import ConfigError, DataError

TEXTS = ["def f(x):\n    return x\n", "", "naïve café", "a" * 5000, "\0\r\n", "last"]


def write_jsonl(path, texts, key="text"):
    Path(path).write_text(
        "".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8"
    )
    return str(path)


def byte_config(tmp_path, inputs, **changes):
    dataset = DatasetConfig(
        prefix=str(tmp_path / "out"), input=tuple(inputs), json_key=changes.pop("json_key", "text")
    )
    values = {"append_eod": True, "workers": 1, **changes}
    return PreprocessConfig(
        tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        datasets=(dataset,),
        **values,
    )


def megatron_files(prefix, documents, append_eod, vocab_size=258):
    """The dataset as Megatron's preprocess_data.py drives Megatron-core's builder."""
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    tokenizer = ByteLevelTokenizer()
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
    for document in documents:
        ids, lengths = [], []
        for sentence in document if isinstance(document, list) else [document]:
            sentence_ids = tokenizer.encode(sentence)
            if len(sentence_ids) > 0:
                ids.extend(sentence_ids)
                lengths.append(len(sentence_ids))
        if len(ids) > 0 and append_eod:
            ids.append(tokenizer.eod)
            lengths[-1] += 1
        builder.add_document(ids, lengths)
    builder.finalize(f"{prefix}.idx")
    return [open(f"{prefix}.{end}", "rb").read() for end in ("bin", "idx")]


@pytest.mark.parametrize("append_eod", [True, False])
@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_equal_those_of_megatrons_builder(tmp_path, append_eod, workers):
    documents = [*TEXTS, ["one sentence.", "", "another."], [], *TEXTS * 40]
    source = write_jsonl(tmp_path / "in.jsonl", documents)
    preprocess(byte_config(tmp_path, [source], append_eod=append_eod, workers=workers))
    expected = megatron_files(tmp_path / "megatron", documents, append_eod)
    found = [(tmp_path / f"out.{end}").read_bytes() for end in ("bin", "idx")]
    assert found == expected


def test_several_inputs_are_written_in_order_and_recorded(tmp_path):
    first = write_jsonl(tmp_path / "b.jsonl", ["one", ""])
    second = write_jsonl(tmp_path / "a.jsonl", ["two"])
    (manifest,) = preprocess(byte_config(tmp_path, [first, second]))
    ids = np.fromfile(tmp_path / "out.bin", np.uint16)
    assert bytes(ids[ids < 256].astype(np.uint8)) == b"onetwo"
    assert manifest == read_manifest(tmp_path / "out")
    assert (manifest.documents, manifest.sequences, manifest.tokens) == (3, 2, 8)
    assert (manifest.text_bytes, manifest.empty_documents) == (6, 1)
    assert [record.path for record in manifest.inputs] == [first, second]


def test_a_second_run_writes_nothing_and_a_changed_input_is_written_anew(tmp_path):
    source = write_jsonl(tmp_path / "in.jsonl", ["one"])
    config = byte_config(tmp_path, [source])
    preprocess(config)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out.*")}
    said = []
    preprocess(config, said.append)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("out.*")} == before
    assert "up to date" in said[0]
    write_jsonl(tmp_path / "in.jsonl", ["one", "two"])
    (manifest,) = preprocess(config)
    assert manifest.documents == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "malformed JSON"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (bytes(4096) + b'{"text": "b"}', "holds NUL bytes"),
        (b'{"body": "x"}', "no key 'text'; the record has: body"),
        (b'{"text": 3}', "is int, not text"),
        (b'["text"]', "expected a JSON object, found list"),
        (b'{"text": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_a_malformed_line_is_refused_with_file_and_line(tmp_path, line, reason):
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": "fine"}\n')
    with pytest.raises(DataError, match=rf"in\.jsonl:3: .*{reason}"):
        preprocess(byte_config(tmp_path, [str(source)]))
    assert list(tmp_path.glob("out*")) == []


def test_inputs_that_hold_nothing_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot read"):
        preprocess(byte_config(tmp_path, [str(tmp_path / "none.jsonl")]))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="empty"):
        preprocess(byte_config(tmp_path, [str(tmp_path / "empty.jsonl")]))
    with pytest.raises(DataError, match="no document with text"):
        preprocess(byte_config(tmp_path, [write_jsonl(tmp_path / "in.jsonl", ["", ""])]))


def test_a_nested_key_is_found(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"a": {"b": "in"}}\n{"a.b": "flat", "a": {"b": "out"}}\n')
    preprocess(byte_config(tmp_path, [str(source)], json_key="a.b", append_eod=False))
    assert bytes(np.fromfile(tmp_path / "out.bin", np.uint16).astype(np.uint8)) == b"inflat"


def test_one_prefix_for_two_datasets_is_refused(tmp_path):
    dataset = DatasetConfig(prefix=str(tmp_path / "out"), input=("x.jsonl",))
    with pytest.raises(ConfigError, match="more than once"):
        PreprocessConfig(
            tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
            datasets=(dataset, dataset),
        )


def test_nothing_to_write_and_a_folder_to_write_to_are_refused():
    with pytest.raises(ConfigError, match="datasets: is empty"):
        PreprocessConfig(
            tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"), datasets=()
        )
    for prefix in ("out/", ""):
        with pytest.raises(ConfigError, match=f"prefix: found '{prefix}', a folder"):
            DatasetConfig(prefix=prefix, input=("x.jsonl",))


def test_outputs_lie_where_a_shell_would_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    write_jsonl("home/in.jsonl", ["abc"])
    words = ["preprocess", "--input=~/in.jsonl", "--tokenizer-type=ByteLevelTokenizer"]
    assert main([*words, "--output-prefix=~/out/a", "--workers=1"]) == 0
    assert (tmp_path / "home/out/a_text_document.bin").read_bytes() == b"a\0b\0c\0"
    assert not Path("~").exists()
    with pytest.raises(ConfigError, match=r"prefix: found '\$SCRATCH/out'; .* write the value"):
        DatasetConfig(prefix="$SCRATCH/out/a", input=("x.jsonl",))


def test_a_text_dataset_keeps_no_loss_mask_and_no_digests_of_an_earlier_one(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    answers = DatasetConfig(
        prefix=str(tmp_path / "out"),
        input=(str(path),),
        record_type="question_answer",
        held_out=True,
    )
    config = byte_config(tmp_path, [str(path)], json_key="answer")
    preprocess(replace(config, datasets=(answers,)), lambda line: None)
    assert (tmp_path / "out_loss_mask.idx").exists()
    (tmp_path / "out_loss_mask.bin.partial").write_bytes(b"x")
    # A run that was stopped had removed the manifest already.
    for manifest_is_there in (True, False):
        if not manifest_is_there:
            preprocess(replace(config, datasets=(answers,)), lambda line: None)
            (tmp_path / "out.json").unlink()
        preprocess(config, lambda line: None)
        assert not list(tmp_path.glob("out_loss_mask*"))
        assert (tmp_path / "out.digests").exists() != manifest_is_there


def test_a_dataset_of_ones_own_is_no_loss_mask(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    config = byte_config(tmp_path, [path])
    own = replace(config.datasets[0], prefix=str(tmp_path / "out_loss_mask"))
    preprocess(replace(config, datasets=(own,)), lambda line: None)
    preprocess(config, lambda line: None)
    assert read_manifest(tmp_path / "out_loss_mask") is not None
    assert (tmp_path / "out_loss_mask.idx").exists()


@pytest.mark.parametrize("place", ["input", "prefix"])
def test_a_name_that_is_no_utf_8_is_refused_before_the_work(tmp_path, place):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff.jsonl")
    path = write_jsonl(odd if place == "input" else str(tmp_path / "in.jsonl"), TEXTS)
    config = byte_config(tmp_path, [path])
    if place == "prefix":
        config = replace(config, datasets=(replace(config.datasets[0], prefix=odd),))
    before = os.listdir(tmp_path)
    with pytest.raises(ConfigError, match=r"odd\\udcff.jsonl': the name is no UTF-8"):
        preprocess(config, lambda line: None)
    assert os.listdir(tmp_path) == before


@pytest.mark.parametrize(
    "flags",
    [
        ["--split", "969,30,1"],
        ["--tokenizer-model", "other"],
        ["--skip-bad-lines", "3"],
        ["--append-eod"],
        ["--json-keys", "text", "title"],
    ],
)
def test_flags_beside_a_configuration_are_refused_by_name(tmp_path, capsys, flags):
    path = write_jsonl(tmp_path / "in.jsonl", TEXTS)
    values = {
        "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
        "datasets": [{"prefix": str(tmp_path / "out"), "input": [path]}],
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    command = ["preprocess", "--config", str(tmp_path / "config.json"), "--workers", "1"]
    assert main([*command, *flags]) == 2
    assert f"--config sets everything; leave out {flags[0]}" in capsys.readouterr().err
    assert main(command) == 0
