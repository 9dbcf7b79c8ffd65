"""`preprocess --split-by`: the bytes of a split by hand, names, quantiles, and what is refused."""

import json
from pathlib import Path

import pytest

from megatron_fastmix.cli.main import main
from megatron_fastmix.config import TokenizerConfig
from megatron_fastmix.corpus import split_by
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.split_by import safe_names
from megatron_fastmix.errors import ConfigError, DataError

RECORDS = [
    {"text": f"document {n}", "meta": {"lang": ("en", "de", "en/US")[n % 3]}, "quality": n * 7 % 31}
    for n in range(90)
]


def write(path: Path, records: list[dict]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(*datasets: DatasetConfig, workers: int = 1) -> list[str]:
    config = PreprocessConfig(
        tokenizer=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        datasets=datasets,
        workers=workers,
    )
    said: list[str] = []
    preprocess(config, said.append)
    return said


def content(prefix: Path | str) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_a_split_by_hand(tmp_path, workers):
    source = write(tmp_path / "all.jsonl", RECORDS)
    split = DatasetConfig(prefix=str(tmp_path / "out"), input=(source,), split_by="meta.lang")
    run(split, workers=workers)
    for value, name in (("en", "en"), ("de", "de"), ("en/US", "en_US")):
        by_hand = write(
            tmp_path / f"{name}.jsonl", [r for r in RECORDS if r["meta"]["lang"] == value]
        )
        run(DatasetConfig(prefix=str(tmp_path / f"hand_{name}"), input=(by_hand,)))
        assert content(tmp_path / f"out_{name}") == content(tmp_path / f"hand_{name}")
    assert [text.split(",")[0] for text in run(split)] == [
        f"{tmp_path}/out_{name}: up to date" for name in ("de", "en", "en_US")
    ]


def test_quantiles_have_as_many_records_each(tmp_path, capsys):
    source = write(tmp_path / "all.jsonl", RECORDS)
    flags = ["--input", source, "--output-prefix", str(tmp_path / "out"), "--workers", "1"]
    flags += ["--tokenizer-type", "ByteLevelTokenizer", "--append-eod"]
    main(["preprocess", *flags, "--split-by", "quality", "--quantiles", "3"])
    ordered = sorted(record["quality"] for record in RECORDS)
    edges = [ordered[30], ordered[60]]
    for number in range(3):
        mine = [r for r in RECORDS if sum(r["quality"] >= edge for edge in edges) == number]
        assert abs(len(mine) - 30) <= 3
        by_hand = write(tmp_path / f"{number}.jsonl", mine)
        run(DatasetConfig(prefix=str(tmp_path / f"hand{number}"), input=(by_hand,)))
        found = content(tmp_path / f"out_text_document_q{number + 1}")
        assert found == content(tmp_path / f"hand{number}")


def test_splits_and_held_out_data_work_inside_each_value(tmp_path):
    source = write(tmp_path / "all.jsonl", RECORDS)
    target = write(tmp_path / "target.jsonl", RECORDS[:30])
    run(
        DatasetConfig(prefix=str(tmp_path / "target"), input=(target,), held_out=True),
        DatasetConfig(prefix=str(tmp_path / "out"), input=(source,), split_by="meta.lang"),
    )
    for name in ("de", "en", "en_US"):
        manifest = json.loads((tmp_path / f"out_{name}.json").read_text())
        assert (manifest["documents"], manifest["duplicates_removed"]) == (20, 10)
    run(
        DatasetConfig(
            prefix=str(tmp_path / "parts"), input=(source,), split_by="meta.lang", split="1,1"
        )
    )
    for name in ("de", "en", "en_US"):
        manifests = [
            json.loads((tmp_path / f"parts_{name}_{split}.json").read_text())
            for split in ("train", "valid")
        ]
        assert sum(manifest["documents"] for manifest in manifests) == 30
        assert [manifest["held_out"] for manifest in manifests] == [False, True]


@pytest.mark.parametrize(
    "changes", [{"split_by": "meta.lang"}, {"split_by": "quality", "quantiles": 3}]
)
def test_a_second_run_reads_no_input_and_a_changed_one_is_read(tmp_path, monkeypatch, changes):
    source = write(tmp_path / "in" / "all.jsonl", RECORDS)
    # The outputs lie in the folder of the inputs, which must not take them for text.
    dataset = DatasetConfig(
        prefix=str(tmp_path / "in/out"), input=(str(tmp_path / "in"),), **changes
    )
    run(dataset)
    reads: list[str] = []
    original = split_by.iter_chunks

    def counted(path, *arguments):
        reads.append(path)
        return original(path, *arguments)

    monkeypatch.setattr(split_by, "iter_chunks", counted)
    monkeypatch.setattr("megatron_fastmix.corpus.dataset_work.iter_chunks", counted)
    assert all("up to date" in text for text in run(dataset))
    assert reads == []
    kept = tmp_path / "in/out.split_by.json"
    kept.write_text(kept.read_text()[:40])  # damaged: read again
    assert all("up to date" in text for text in run(dataset))
    assert reads == [source]
    more = {"text": "neu", "meta": {"lang": "fr"}, "quality": 99}
    write(tmp_path / "in" / "all.jsonl", [*RECORDS, more])
    run(dataset)
    assert reads == [source] * 3
    assert (tmp_path / "in/out_fr.bin").exists() == (dataset.quantiles is None)
    reads.clear()
    run(DatasetConfig(**vars(dataset) | {"max_values": 50}))
    assert reads == []
    if dataset.quantiles is None:
        with pytest.raises(ConfigError, match="more than 3 values"):
            run(DatasetConfig(**vars(dataset) | {"max_values": 3}))


def test_names_are_safe_and_tell_values_apart():
    found = safe_names(["a/b", "a b", "../x", "EN", "en", "", "ü", "y" * 200])
    assert found[2] == "x"
    assert found[6] == "ü"
    assert len({name.casefold() for name in found}) == 8
    assert all("/" not in name and name and len(name) < 80 for name in found)


def test_records_without_the_field_are_named_or_skipped(tmp_path):
    records = [*RECORDS[:6], {"text": "x"}, {"text": "y", "meta": {"lang": None}}]
    source = write(tmp_path / "all.jsonl", records)
    dataset = {"prefix": str(tmp_path / "out"), "input": (source,), "split_by": "meta.lang"}
    with pytest.raises(DataError, match=r"all\.jsonl:7: no key 'meta\.lang'; the record has: text"):
        run(DatasetConfig(**dataset))
    with pytest.raises(DataError, match=r"all\.jsonl:8: the field 'meta\.lang' .* holds null"):
        run(DatasetConfig(**dataset, skip_bad_lines=1))
    said = run(DatasetConfig(**dataset, skip_bad_lines=2))
    assert "2 bad lines skipped" in said[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"split_by": "text"}, r"more than 100 values .*raise --max-values"),
        ({"split_by": "nothing"}, "no record has a text"),
        ({"split_by": "meta.lang", "quantiles": 3}, "no record has a finite number"),
        ({"split_by": "flag", "quantiles": 4}, r"q\d holds no record: 120 records have 2 scores"),
        ({"quantiles": 3}, "of the score that split_by names"),
        ({"split_by": "quality", "quantiles": 1}, "use 2 or more"),
        ({"split_by": "x", "input_format": "lines"}, "needs JSONL or Parquet"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, changes, told):
    records = [{"text": f"d{n}", "meta": {"lang": "en"}, "flag": n % 2} for n in range(120)]
    source = write(tmp_path / "all.jsonl", records)
    with pytest.raises(ConfigError, match=told):
        run(DatasetConfig(**{"prefix": str(tmp_path / "out"), "input": (source,)} | changes))
    assert list(tmp_path.iterdir()) == [tmp_path / "all.jsonl"]


def test_a_score_beyond_all_floats_is_a_bad_record(tmp_path):
    records = [{"text": f"document {n}", "s": n} for n in range(8)]
    source = write(tmp_path / "all.jsonl", [*records, {"text": "x", "s": 10**400}])
    dataset = DatasetConfig(
        prefix=str(tmp_path / "out"), input=(source,), split_by="s", quantiles=2
    )
    with pytest.raises(
        DataError, match=r"all.jsonl:9: found 10{59}\.\.\.; quantiles need a finite"
    ):
        run(dataset)
