"""Formats that count rows or repetitions, read by the tools that they are for."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_fastmix.errors import DataError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.registry import FORMATS

MEAN_TOKENS = {"short": 10, "long": 40}
"""Tokens per document."""


@pytest.fixture
def mixture(make_mixture, with_sizes):
    """Half of the *tokens* from each of two sources whose documents differ in length."""
    sizes = {
        name: {"tokens": 4_000, "documents": 4_000 // mean} for name, mean in MEAN_TOKENS.items()
    }
    return with_sizes(make_mixture({"short": 0.5, "long": 0.5}), **sizes)


def text_of(name, mixture, rows=None):
    """The mixture in a format."""
    return FORMATS[name].render(make_blend(mixture, FORMATS[name].unit(rows)))


def test_interleaved_rows_have_the_tokens_that_the_weights_ask_for(mixture):
    datasets = pytest.importorskip("datasets", reason="the extra `test` has it")
    names: dict = {}
    exec(text_of("hf-datasets", mixture), names)
    parts = {
        name: datasets.Dataset.from_dict({"source": [name] * 500, "tokens": [length] * 500})
        for name, length in MEAN_TOKENS.items()
    }
    rows = names["blend"](parts)
    shares = dict.fromkeys(parts, 0)
    for row in rows:
        shares[row["source"]] += row["tokens"]
    assert shares["short"] / sum(shares.values()) == pytest.approx(0.5, abs=0.05)
    # Rows of one length need no conversion.
    exec(text_of("hf-datasets", mixture, "sequences"), names)
    assert [source["probability"] for source in names["SOURCES"].values()] == [0.5, 0.5]


def test_energon_and_streaming_count_rows_too(mixture):
    entries = yaml.safe_load(text_of("energon", mixture))["splits"]["train"]["blend"]
    assert [entry["weight"] for entry in entries] == [0.8, 0.2]
    streams = yaml.safe_load(text_of("mosaicml-streaming", mixture))["streams"]
    assert [stream["proportion"] for stream in streams.values()] == [0.5, 0.5]
    streams = yaml.safe_load(text_of("mosaicml-streaming", mixture, "documents"))["streams"]
    assert [stream["proportion"] for stream in streams.values()] == [0.8, 0.2]


def test_repetitions_are_the_epochs_of_the_token_budget(mixture):
    # Half of 10,000 tokens from 4,000: 1.25 epochs, whatever a row is.
    streams = yaml.safe_load(text_of("mosaicml-streaming-repeat", mixture))["streams"]
    assert [stream["repeat"] for stream in streams.values()] == [1.25, 1.25]
    split = yaml.safe_load(text_of("energon-epochized", mixture))["splits"]["train"]
    assert [entry["repetitions"] for entry in split["blend_epochized"]] == [1.25, 1.25]


def test_rows_without_statistics_are_refused(make_mixture, mixture, with_sizes):
    with pytest.raises(DataError, match="source short: documents is 0"):
        text_of("hf-datasets", with_sizes(mixture, short={"documents": 0}))
    rare = with_sizes(
        make_mixture({"short": 0.0001, "long": 0.9999}), short={"tokens": 10**9, "documents": 1}
    )
    with pytest.raises(DataError, match="source short: its share of rows rounds to 0"):
        text_of("hf-datasets", rare)


@pytest.fixture
def parse_in_a_process(tmp_path):
    """Runs a tool's parser in a process of its own, since some change the process they are in."""

    def parse(code: str, *arguments: Path) -> object:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return parse


ENERGON = """
import json, sys
from megatron.energon.metadataset.loader import load_dataset
from megatron.energon import WorkerConfig
worker = WorkerConfig(rank=0, world_size=1, num_workers=0)
loaded = load_dataset(sys.argv[1]).get_datasets(
    training=True, split_part="train", worker_config=worker
)
print(json.dumps([[d.weight, d.repetitions] for d in loaded.datasets]))
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("energon", [[0.8, None], [0.2, None]]),
        ("energon-epochized", [[None, 1.25], [None, 1.25]]),
    ],
)
def test_energons_own_loader_reads_the_metadataset(
    tmp_path, mixture, with_sizes, parse_in_a_process, name, expected
):
    pytest.importorskip("megatron.energon", reason="the extra `test` has megatron-energon")
    line = json.dumps({"text": "words"}) + "\n"
    for source in MEAN_TOKENS:
        (tmp_path / f"{source}.jsonl").write_text(line * 10)
        # What `energon prepare` adds: where each line begins, and the end.
        offsets = struct.pack("<11Q", *range(0, 11 * len(line), len(line)))
        (tmp_path / f"{source}.jsonl.idx").write_bytes(offsets)
    renamed = with_sizes(
        mixture, **{name: {"path": str(tmp_path / f"{name}.jsonl")} for name in MEAN_TOKENS}
    )
    (tmp_path / "blend.yaml").write_text(text_of(name, renamed))
    assert parse_in_a_process(ENERGON, tmp_path / "blend.yaml") == expected


STREAMING = """
import json, sys, yaml
from streaming import Stream
streams = [Stream(**v) for v in yaml.safe_load(open(sys.argv[1]))["streams"].values()]
samples = __import__("numpy").array([4000, 4000])
Stream.apply_weights(streams, samples, 5000 if sys.argv[2] == "proportion" else None, 1)
print(json.dumps([int(s.choose) for s in streams]))
"""


@pytest.mark.parametrize(
    ("name", "key", "expected"),
    [
        ("mosaicml-streaming", "proportion", [2500, 2500]),
        ("mosaicml-streaming-repeat", "repeat", [5000, 5000]),
    ],
)
def test_streamings_own_class_takes_the_streams(
    tmp_path, mixture, parse_in_a_process, name, key, expected
):
    pytest.importorskip("streaming", reason="mosaicml-streaming is too large for the extra `test`")
    (tmp_path / "blend.yaml").write_text(text_of(name, mixture))
    assert parse_in_a_process(STREAMING, tmp_path / "blend.yaml", Path(key)) == expected


OLMO = """
import json, sys
from olmo_core.data.source_mixture import SourceMixtureDatasetConfig, SourceMixtureList
from olmo_core.data.types import NumpyDatasetDType
sources = SourceMixtureList.from_yaml(sys.argv[1])
config = SourceMixtureDatasetConfig(
    source_list=sources, requested_tokens=10_000, global_batch_size=100, render_tables=False
)
built = config.build(npdtype=NumpyDatasetDType.uint16.as_np_dtype(), sequence_length=10)
tokens = {s.name: sum(p.tokens for p in s.path_tokens) for s in built.sources}
print(json.dumps(tokens))
"""


def test_olmo_core_builds_the_mixture_for_the_token_budget(
    tmp_path, mixture, with_sizes, parse_in_a_process
):
    pytest.importorskip("olmo_core", reason="ai2-olmo-core is too large for the extra `test`")
    moved = with_sizes(mixture, **{name: {"path": str(tmp_path / name)} for name in MEAN_TOKENS})
    for source in moved.sources:
        (tmp_path / f"{source.name}.bin").write_bytes(bytes(2 * source.size.tokens))
    (tmp_path / "mix.yaml").write_text(text_of("olmo-core", moved))
    # 1.25 epochs of each source's 4,000 tokens.
    assert parse_in_a_process(OLMO, tmp_path / "mix.yaml") == {"short": 5000, "long": 5000}
