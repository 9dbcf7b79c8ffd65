"""Files that are damaged in any way end in an error of this package, never in another exception.

Each loader gets a good file with bytes flipped, cut, moved and put in, and, where it is JSON or
YAML, with values of other types and keys left out. The same files come every time.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_fastmix.blend.weight_schedule import read_schedule
from megatron_fastmix.checkpoint.store import latest
from megatron_fastmix.checkpoint.stored_parameters import StoredParameters
from megatron_fastmix.config import load_config
from megatron_fastmix.corpus.answer_rows import read_answer_rows
from megatron_fastmix.corpus.indexed_files import check_vocabulary, inspect_indexed_dataset
from megatron_fastmix.corpus.journal import Journal, read_journal, write_journal
from megatron_fastmix.corpus.manifest import read_manifest
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.readers import iter_chunks
from megatron_fastmix.corpus.records import RecordParser, read_documents
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError, FastMixError
from megatron_fastmix.export.blend import make_blend
from megatron_fastmix.export.import_blend import read_blend
from megatron_fastmix.export.registry import FORMATS
from megatron_fastmix.lab.comparison.config import load_compare_config
from megatron_fastmix.lab.comparison.scenario import load_scenario
from megatron_fastmix.proxy.model_files import check_model_files
from megatron_fastmix.proxy.starting_point import check_model_folder
from megatron_fastmix.report.summary import final_table
from megatron_fastmix.report.write import read_runs, write_report
from megatron_fastmix.result.mixture_file import read_mixture, write_mixture
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.start.check_hosts import read_hostfile
from tests.conftest import write_dataset, write_rows

pytestmark = pytest.mark.slow

EXAMPLES = 40
"""Damaged files for each loader; all of them take less than a minute."""

ODD_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    10**400,
    1e308,
    "",
    "x",
    "a\0b",
    "\u202e<script>'\"$(x);\n",
    "\ud800",
    "1e400",
    [],
    [[]],
    ["x", 1, None],
    {},
    {"a": {"b": []}},
]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values below `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


def altered(data: st.DataObject, value: Any) -> Any:
    """`value` with one to three of its parts replaced or left out."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 3), label="changes")):
        found = list(places(value))
        if not found:
            return value
        *parents, last = data.draw(st.sampled_from(found), label="place")
        section = value
        for key in parents:
            section = section[key]
        change = data.draw(st.sampled_from(["replace", "replace", "replace", "remove"]))
        if change == "remove":
            del section[last]
        else:
            section[last] = data.draw(st.sampled_from(ODD_VALUES), label="odd value")
    return value


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """`content` with one to four changes of its bytes."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        at = data.draw(st.integers(0, max(0, len(changed) - 1)), label="at")
        length = data.draw(st.sampled_from([1, 2, 8, 100]))
        match data.draw(st.sampled_from(["flip", "cut", "put in", "end", "twice", "number"])):
            case "flip" if changed:
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[at : at + length]
            case "put in":
                odd = [
                    b"\xff",
                    b"\0",
                    b"[" * 3000,
                    b"9" * 5000,
                    b"\xef\xbb\xbf",
                    b"{}",
                    b'"',
                    b"\n",
                ]
                changed[at:at] = data.draw(st.sampled_from(odd))
            case "end":
                del changed[at:]
            case "twice":
                changed[at:at] = changed[at : at + length]
            case "number":
                changed[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    return bytes(changed)


class Case:
    """A good file, and what reads it."""

    def __init__(self, path: Path, load: Callable[[Path], Any]) -> None:
        self.path, self.load, self.content = path, load, path.read_bytes()

    def check(self, content: bytes) -> None:
        """Loads `content` in the place of the good file."""
        self.path.write_bytes(content)
        with contextlib.suppress(FastMixError):
            self.load(self.path)


def try_damage(case: Case) -> None:
    """Loads the good file, and damaged ones."""
    case.load(case.path)
    structured: Any = None
    with contextlib.suppress(ValueError):
        structured = json.loads(case.content)
    if case.path.suffix in (".yaml", ".yml"):
        structured = yaml.safe_load(case.content)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        if isinstance(structured, dict | list) and data.draw(st.booleans(), label="by value"):
            text = json.dumps(altered(data, structured))
            if case.path.suffix not in (".yaml", ".yml"):
                case.check(text.encode())
                return
            # JSON is YAML, but for escapes of half a surrogate pair.
            case.check(text.encode())
        else:
            case.check(damaged(data, case.content))

    attempt()


SEARCH = {
    "sources": [{"name": name, "path": f"/data/{name}"} for name in ("a", "b")],
    "targets": [{"name": "t", "path": "/data/t"}],
    "tokenizer": {"tokenizer_type": "ByteLevelTokenizer"},
    "training": {
        "train_iters": 6,
        "micro_batch_size": 3,
        "global_batch_size": 12,
        "lr": 1e-3,
        "lr_warmup_iters": 2,
    },
    "mixture": {"inner_steps": 2},
    "output": {"save_interval": 3},
}


@pytest.mark.parametrize(
    ("values", "load"),
    [
        ({"run_dir": "run", **SEARCH}, load_config),
        ({"tests": [{"name": "t", "path": "x"}]}, lambda p: load_compare_config(p, [], [])),
        (
            {"search": SEARCH, "compare": {"tests": [{"name": "t", "path": "x"}]}},
            lambda p: load_scenario(p).choose(None, "here"),
        ),
        (
            {
                "schedule": [
                    {"at_sample": 0, "weights": {"a": 0.7, "b": 0.3}},
                    {"at_sample": 100, "weights": {"a": 0.4, "b": 0.6}},
                ]
            },
            read_schedule,
        ),
    ],
    ids=["search", "comparison", "scenario", "schedule"],
)
def test_yaml(tmp_path: Path, values: dict[str, Any], load: Callable[[Path], Any]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    try_damage(Case(path, load))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hostfile", "node-1 slots=8\n# more\nme@node-2 slots=4 max_slots=8\r\n"),
        ("blend.txt", "0.3 /d/a 0.7 /d/b\n"),
        ("blend.json", '{"train": [0.3, "/d/a", "0.7", "/d/b"], "valid": null}'),
        ("nemo.yaml", "model: {data: {data_prefix: [0.3, /d/a, 0.7, /d/b]}}"),
        ("run.sh", "python pretrain_gpt.py --data-path 0.3 /d/a 0.7 /d/b --lr 1"),
    ],
)
def test_hosts_and_blends(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode())
    try_damage(Case(path, read_hostfile if name == "hostfile" else read_blend))


def test_mixtures(tmp_path: Path, make_mixture: Any) -> None:
    path = tmp_path / "mixture.json"
    write_mixture(path, make_mixture({"a": 0.7, "b": 0.3}))

    def use(path: Path) -> None:
        mixture = read_mixture(path)
        final_table(mixture, blend_txt=None, blend_json=None)
        blend = make_blend(mixture)
        for entry in FORMATS.values():
            with contextlib.suppress(FastMixError):
                entry.render(blend)

    try_damage(Case(path, use))


def test_metrics(tmp_path: Path, make_metrics: Any) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    make_metrics(path, ["a", "b"], outer_steps=2)

    def use(path: Path) -> None:
        write_report(read_runs([path.parent]), path.parent / "report", pictures=False)

    case = Case(path, use)
    try_damage(case)
    # The lines by value: as one list, which is then written a line each.
    lines = [json.loads(line) for line in case.content.splitlines()]

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    @given(st.data())
    def attempt(data: st.DataObject) -> None:
        changed = [json.dumps(line) for line in altered(data, lines)]
        case.check("".join(f"{line}\n" for line in changed).encode())

    attempt()


@pytest.mark.parametrize("end", [".idx", ".bin", "_loss_mask.idx", "_loss_mask.bin"])
def test_indexed_datasets(tmp_path: Path, end: str) -> None:
    prefix = tmp_path / "data"
    write_rows(prefix, [([1, 2, 3], [4, 5]), ([6], [7, 8]), ([9, 1], [2])], 258)

    def use(path: Path) -> None:
        inspect_indexed_dataset(prefix)
        check_vocabulary(prefix, 258)
        read_answer_rows(prefix, 8)

    try_damage(Case(tmp_path / f"data{end}", use))


def test_checkpoint_arrays(tmp_path: Path) -> None:
    path = tmp_path / "tensor-00-data-00000.npz"
    arrays = {f"{kind}:0:6:layer.weight": np.arange(6, dtype=np.float32) for kind in ("master",)}
    np.savez(path, **arrays, adam_steps=np.array([3.0]))  # type: ignore[arg-type]

    def use(path: Path) -> None:
        stored = StoredParameters([path])
        stored.check_names({"layer.weight": 6})
        stored.read("master", "layer.weight", 0, 6)

    try_damage(Case(path, use))


def test_states_of_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000003"
    folder.mkdir(parents=True)
    (folder / "search.json").write_text('{"state": {"step": 3}, "files": {}, "sha256": "0"}')

    def use(path: Path) -> None:
        with contextlib.suppress(FastMixError):
            latest(RunFolder(tmp_path))

    try_damage(Case(folder / "search.json", use))


def test_what_preprocessing_leaves(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "abc"}\n')
    config = PreprocessConfig(
        tokenizer=load_config_tokenizer(),
        datasets=(
            DatasetConfig(prefix=str(tmp_path / "out"), input=(str(tmp_path / "in.jsonl"),)),
        ),
        workers=1,
    )
    preprocess(config, lambda line: None)
    try_damage(Case(tmp_path / "out.json", lambda path: read_manifest(path.with_suffix(""))))
    write_journal(str(tmp_path / "out"), Journal(recipe="x"))
    try_damage(
        Case(tmp_path / "out.journal.json", lambda path: read_journal(str(tmp_path / "out"), "x"))
    )


def load_config_tokenizer() -> Any:
    from megatron_fastmix.config import TokenizerConfig

    return TokenizerConfig(tokenizer_type="ByteLevelTokenizer")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_corpora(tmp_path: Path, name: str) -> None:
    records = [{"text": "some text é"}, {"text": "other", "n": 1}] * 20
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    path = tmp_path / name
    if name.endswith(".gz"):
        import gzip

        path.write_bytes(gzip.compress(lines))
    elif name.endswith(".zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(lines))
    elif name.endswith(".parquet"):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": [r["text"] for r in records]}), path)
    else:
        path.write_bytes(lines)
    try_damage(Case(path, lambda path: list(read_documents(path))))


@pytest.mark.parametrize(
    ("record_type", "record"),
    [
        ("text", {"text": "abc"}),
        ("question_answer", {"question": "q", "answer": "a"}),
        ("prompt_completion", {"prompt": "q", "completion": "a"}),
        (
            "messages",
            {
                "messages": [
                    {"role": "user", "content": "q"},
                    {"role": "assistant", "content": "a"},
                ]
            },
        ),
    ],
)
def test_records(tmp_path: Path, record_type: Any, record: dict[str, Any]) -> None:
    parser = RecordParser(record_type=record_type)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record))

    def use(path: Path) -> None:
        for chunk in iter_chunks(path):
            for line in chunk.records():
                try:
                    parser(line, chunk.record_format)
                except ValueError as error:  # a bad line
                    raise DataError(str(error)) from None

    try_damage(Case(path, use))


def test_sentencepiece_models(tmp_path: Path) -> None:
    from megatron_fastmix.corpus.sentencepiece_training import (
        SentencePieceConfig,
        train_sentencepiece,
    )

    (tmp_path / "in.jsonl").write_text("".join(f'{{"text": "words {n}"}}\n' for n in range(200)))
    path = tmp_path / "a.model"
    train_sentencepiece([tmp_path / "in.jsonl"], path, SentencePieceConfig(vocab_size=280))

    def use(path: Path) -> None:
        load_tokenizer("SentencePieceTokenizer", str(path)).encode("some words\n é")

    try_damage(Case(path, use))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_models(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=258, num_attention_heads=2, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer = load_config_tokenizer()
    proxy = load_proxy(str(tmp_path))

    def use(path: Path) -> None:
        check_model_folder(proxy, 258, tokenizer)
        check_model_files(path.parent)

    try_damage(Case(tmp_path / name, use))


def load_proxy(path: str) -> Any:
    from megatron_fastmix.config import ProxyConfig

    return ProxyConfig(kind="huggingface", path=path)


def test_a_dataset_of_text(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", [[1, 2, 3], [4]], 258)
    try_damage(
        Case(tmp_path / "data.idx", lambda path: inspect_indexed_dataset(path.with_suffix("")))
    )
