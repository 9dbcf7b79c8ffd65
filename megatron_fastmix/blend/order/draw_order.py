"""What every order of draws rests on: seeded keys, and the order of samples in an epoch."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

_MASK64 = (1 << 64) - 1


class Draw(NamedTuple):
    """One draw."""

    source: int
    """Index of the source."""
    ordinal: int
    """How many samples of that source come before it in the global order."""


def epoch_sample(seed: int, stream: str, source: int, ordinal: int, size: int) -> int:
    """The sample, in [0, size), that the `ordinal`-th visit to a source reads.

    Epoch e = ordinal // size visits every sample once, in an order of its own. `stream` keeps the
    orders of different readers (training, probe, target) apart.
    """
    epoch, position = divmod(ordinal, size)
    return permute(position, size, key_of(seed, f"{stream}/{source}", epoch))


def permute(position: int, size: int, key: int) -> int:
    """A keyed bijection of [0, size): a 4-round Feistel network with cycle walking."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for number in range(4):
            left, right = right, left ^ (mix64(right + (key >> 16 * number) + number) & mask)
        position = (left << half) | right
        if position < size:
            return position


def mix64(x: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


@lru_cache(maxsize=1024)
def key_of(seed: int, stream: str, number: int) -> int:
    """128 bits that depend on all three."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{number}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")
