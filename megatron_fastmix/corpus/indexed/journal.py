"""Where an interrupted preprocessing run continues: `PREFIX.journal.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_fastmix.atomic_file import write_atomically
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.corpus.indexed.writer import WriterState
from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.text_files import read_json


@dataclass(frozen=True, kw_only=True)
class OutputProgress:
    """What one split has got so far, apart from what its writer counts."""

    writer: WriterState
    text_bytes: int = 0
    empty_documents: int = 0
    duplicates: int = 0
    loss_mask_tokens: int = 0
    digests: int = 0


@dataclass(frozen=True, kw_only=True)
class Journal:
    """A moment between two chunks at which everything was on the disk."""

    recipe: str
    """Of the dataset; a journal of another recipe is of no use."""
    chunks: int = 0
    """Chunks done, over all inputs."""
    path: str = ""
    """Input of the last chunk."""
    records: int = 0
    """Records of that input so far, for the line numbers in messages."""
    bad_lines: int = 0
    outputs: tuple[OutputProgress, ...] = field(default=())


def journal_path(prefix: str) -> Path:
    return Path(f"{prefix}.journal.json")


def write_journal(prefix: str, journal: Journal) -> None:
    """Replaces the journal atomically; call it after the writers have saved."""
    write_atomically(journal_path(prefix), json.dumps(asdict(journal), indent=1) + "\n")


def read_journal(prefix: str, recipe: str) -> Journal | None:
    """The journal of a run of this recipe; None where there is none that can be used."""
    try:
        values = read_json(journal_path(prefix), "the journal")
        journal: Journal = strict_yaml.from_dict(Journal, values)
    except (DataError, ConfigError):
        return None
    return journal if journal.recipe == recipe else None
