"""The files of one dataset or split: tokens, and where needed loss mask and digests."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from megatron_fastmix.corpus.encoding import EncodedDocuments
from megatron_fastmix.corpus.indexed.earlier_files import remove_companions
from megatron_fastmix.corpus.indexed.journal import OutputProgress
from megatron_fastmix.corpus.indexed.manifest import Manifest, manifest_path, write_manifest
from megatron_fastmix.corpus.indexed.writer import IndexedDatasetWriter, WriterState, token_dtype
from megatron_fastmix.corpus.splits import DIGEST_BYTES
from megatron_fastmix.dataset_paths import loss_mask_prefix


def read_digests(prefix: str | Path) -> set[bytes]:
    """Content digests of the held-out dataset at `prefix` (`PREFIX.digests`)."""
    data = Path(f"{prefix}.digests").read_bytes()
    return {data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)}


class DatasetOutput:
    """Writes the files of one prefix; the manifest comes last, when all others are complete."""

    def __init__(
        self,
        prefix: str,
        name: str,
        held_out: bool,
        vocab_size: int,
        masked: bool,
        resume: OutputProgress | None = None,
    ) -> None:
        self.prefix = prefix
        self._name, self._held_out, self._masked = name, held_out, masked
        self._progress = resume or OutputProgress(
            writer=WriterState(tokens=0, sequences=0, documents=0)
        )
        self._text_bytes = self._progress.text_bytes
        self._empty = self._progress.empty_documents
        self._duplicates = self._progress.duplicates
        self._mask_tokens = self._progress.loss_mask_tokens
        self._digests = self._progress.digests
        state = resume.writer if resume else None
        self._writer = IndexedDatasetWriter(prefix, token_dtype(vocab_size), state)
        self._mask_writer = (
            IndexedDatasetWriter(loss_mask_prefix(prefix), np.uint8, state) if masked else None
        )
        self._digest_path = Path(f"{prefix}.digests.partial")
        if resume:
            if held_out:
                os.truncate(self._digest_path, self._digests * DIGEST_BYTES)
        else:
            self._digest_path.unlink(missing_ok=True)
        self._digest_file = self._digest_path.open("ab") if held_out else None

    @staticmethod
    def can_resume(prefix: str, vocab_size: int, masked: bool, state: OutputProgress) -> bool:
        """Whether the partial files hold at least what `state` says."""
        digests = Path(f"{prefix}.digests.partial")
        size = digests.stat().st_size if digests.exists() else 0
        return (
            size >= state.digests * DIGEST_BYTES
            and IndexedDatasetWriter.can_resume(prefix, token_dtype(vocab_size), state.writer)
            and (
                not masked
                or IndexedDatasetWriter.can_resume(loss_mask_prefix(prefix), np.uint8, state.writer)
            )
        )

    @staticmethod
    def is_whole(prefix: str, manifest: Manifest) -> bool:
        """Whether the files that the manifest describes exist with their sizes."""
        ends = 34 + 12 * manifest.sequences + 8 * (manifest.documents + 1)
        itemsize = token_dtype(manifest.tokenizer.vocab_size)().itemsize
        sizes = {f"{prefix}.bin": manifest.tokens * itemsize, f"{prefix}.idx": ends}
        if manifest.loss_mask_tokens is not None:
            mask = loss_mask_prefix(prefix)
            sizes |= {f"{mask}.bin": manifest.tokens, f"{mask}.idx": ends}
        if manifest.held_out:
            sizes[f"{prefix}.digests"] = manifest.documents * DIGEST_BYTES
        return all(os.path.isfile(p) and os.path.getsize(p) == size for p, size in sizes.items())

    @property
    def tokens(self) -> int:
        return self._writer.tokens

    def write(self, encoded: EncodedDocuments | None, duplicates: int) -> None:
        """Appends the documents of one chunk."""
        self._duplicates += duplicates
        if encoded is None:
            return
        self._writer.write(encoded.tokens, encoded.lengths, encoded.documents)
        if self._mask_writer is not None:
            assert encoded.loss_mask is not None
            self._mask_writer.write(encoded.loss_mask, encoded.lengths, encoded.documents)
            self._mask_tokens += encoded.loss_mask.count(1)
        if self._digest_file is not None:
            self._digest_file.write(b"".join(encoded.digests))
            self._digests += len(encoded.digests)
        self._text_bytes += encoded.text_bytes
        self._empty += encoded.empty_documents

    def save(self) -> OutputProgress:
        """Brings everything to the disk and says how much that is."""
        if self._mask_writer is not None:
            self._mask_writer.save()
        if self._digest_file is not None:
            self._digest_file.flush()
            os.fsync(self._digest_file.fileno())
        return OutputProgress(
            writer=self._writer.save(),
            text_bytes=self._text_bytes,
            empty_documents=self._empty,
            duplicates=self._duplicates,
            loss_mask_tokens=self._mask_tokens,
            digests=self._digests,
        )

    def finish(self, **facts: Any) -> Manifest:
        """Gives all files their names and writes the manifest; `facts` are its other fields."""
        self.save()
        # What the new dataset has not would be taken for its own.
        remove_companions(self.prefix, masked=self._masked, held_out=self._held_out)
        # A manifest must never describe other files than those beside it.
        manifest_path(self.prefix).unlink(missing_ok=True)
        if self._digest_file is not None:
            self._digest_file.close()
            os.replace(self._digest_path, f"{self.prefix}.digests")
        if self._mask_writer is not None:
            self._mask_writer.finish()
        bin_sha256, idx_sha256 = self._writer.finish()
        manifest = Manifest(
            name=self._name,
            documents=self._writer.documents,
            sequences=self._writer.sequences,
            tokens=self._writer.tokens,
            text_bytes=self._text_bytes,
            empty_documents=self._empty,
            duplicates_removed=self._duplicates,
            held_out=self._held_out,
            loss_mask_tokens=self._mask_tokens if self._masked else None,
            bin_sha256=bin_sha256,
            idx_sha256=idx_sha256,
            **facts,
        )
        write_manifest(self.prefix, manifest)
        return manifest

    def close(self) -> None:
        """Closes the partial files and leaves them for a later run."""
        self._writer.close()
        if self._mask_writer is not None:
            self._mask_writer.close()
        if self._digest_file is not None:
            with contextlib.suppress(OSError):
                self._digest_file.close()

    def discard(self) -> None:
        """Closes and deletes the partial files."""
        self.close()
        self._writer.discard()
        if self._mask_writer is not None:
            self._mask_writer.discard()
        self._digest_path.unlink(missing_ok=True)
