"""Splits by content: a document's place depends on its text alone.

So it stays the same when files are added, renamed or reordered, and equal documents always share
a split, within a dataset and across datasets that are split alike.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from megatron_fastmix.corpus.documents.document import Document
from megatron_fastmix.errors import ConfigError

SPLIT_NAMES = ("train", "valid", "test")
DIGEST_BYTES = 16


def content_digest(document: Document) -> bytes:
    """128 bits of SHA-256 over the parts; equal only for equal documents."""
    digest = hashlib.sha256()
    for part in document.parts:
        data = part.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()[:DIGEST_BYTES]


@dataclass(frozen=True)
class Splitter:
    """Assigns documents to splits in given shares; one split of everything where there are none."""

    edges: tuple[float, ...] = (1.0,)
    """Upper ends in [0, 1] of the intervals of the splits."""
    names: tuple[str, ...] = ()
    """Of the splits, among `SPLIT_NAMES`; those with a share of 0 are none."""

    @classmethod
    def parse(cls, split: str | None) -> Splitter:
        """From Megatron's `--split`: up to three shares such as `969,30,1`, normalised.

        Raises `ConfigError` for shares that are none.
        """
        if split is None:
            return cls()
        try:
            shares = [float(share) for share in split.split(",")]
        except ValueError:
            shares = []
        if not 1 <= len(shares) <= 3 or min(shares) < 0 or not 0 < sum(shares) < float("inf"):
            raise ConfigError(
                f"split: found {split!r}; give up to three shares of 0 or more for "
                f"{', '.join(SPLIT_NAMES)}, such as 969,30,1"
            )
        total = sum(shares)
        kept = [i for i, share in enumerate(shares) if share]
        edges = [sum(shares[: i + 1]) / total for i in kept]
        return cls((*edges[:-1], 1.0), tuple(SPLIT_NAMES[i] for i in kept))

    def __call__(self, digest: bytes) -> int:
        """Index of the document's split."""
        position = int.from_bytes(digest[:8], "big") / 2**64
        return next(i for i, edge in enumerate(self.edges) if position < edge or edge >= 1.0)
