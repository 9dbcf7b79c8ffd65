"""What one process has found about the inputs of a search, for the others: the launcher reads for
the ranks of its machine, the first rank of a host for the others there, a start for the next.

In the folder of the indices lie a file of findings, by the state of the files that they are about,
and the rows to draw of each answer-only dataset.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.corpus.indexed.answer_rows import share_kept_rows
from megatron_fastmix.file_memo import MEMO, digest_of, state_of
from megatron_fastmix.run.folder import RunFolder
from megatron_fastmix.search.inputs import Inputs


def cache_folder(config: SearchConfig) -> Path:
    """Where the indices of the datasets lie."""
    return Path(config.data.data_cache_path or RunFolder(Path(config.run_dir)).index_cache)


def take_over(config: SearchConfig) -> None:
    """Takes what another process has handed on about these datasets as they are now."""
    MEMO.load(_file(config))


def hand_on(config: SearchConfig, inputs: Inputs) -> None:
    """Writes what this process has found, `inputs` among it."""
    folder = cache_folder(config)
    for owner in (*inputs.sources, *inputs.targets):
        for dataset in owner.datasets:
            rows = dataset.answer_rows
            if rows is not None and rows.kept is not None:
                share_kept_rows(dataset.path, config.data.seq_length, folder, rows.kept)
    MEMO.save(_file(config))


def _file(config: SearchConfig) -> Path:
    """Named after the datasets and their states, which differ where hosts have copies of their
    own."""
    states: list[object] = []
    for prefix in config.prefixes():
        path = os.path.abspath(f"{prefix}.idx")
        states.append(path)
        with contextlib.suppress(OSError, ValueError):  # the check of the inputs tells
            states.append(state_of(os.stat(path)))
    return cache_folder(config) / f"read-{digest_of(*states)}.json"
