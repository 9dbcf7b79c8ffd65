"""Which sample draw i is: a pure function of (seed, mixture history, i).

Draws come in blocks of W. Block b holds n_k samples of source k, where n_k is W·α_k rounded down
or up so that the block is full; which sources are rounded up rotates from block to block along a
golden-ratio sequence, so that even a source with W·α_k < 1 gets its share in the long run:

    n_k(b) = ⌊(E_k + u_b) / 2³²⌋ − ⌊(E_{k−1} + u_b) / 2³²⌋,   u_b = b·φ mod 2³²

with E_k = W·(α_1 + … + α_k) in fixed point of 32 binary places, coarse enough that the rounding of
float64 vanishes in it: where all W·α_k are whole numbers, every block holds just these. The number
of samples that the blocks before b took from source k is then a sum of floors of a linear function,
which has a closed form in O(log) steps: no index array of any length is kept, and any draw can be
found at once. Inside a block the order is a seeded permutation; inside an epoch of a source the
samples follow a seeded Feistel permutation, another in every epoch.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_BITS = 32
_ONE = 1 << _BITS
_GOLDEN = 2654435769  # 2³²·(√5 − 1)/2, which is odd, so that u_b takes every value
_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class Draw:
    """One draw."""

    source: int
    """Index of the source."""
    ordinal: int
    """How many samples of that source come before it in the global order."""


class DrawOrder:
    """The order of draws over K sources under a mixture that may change between blocks."""

    def __init__(self, seed: int, block_size: int, weights: Sequence[float]) -> None:
        """`weights` (K,) hold from draw 0 on; `change` appends to the history."""
        self.seed = seed
        self.block_size = block_size
        self._starts = [0]
        self._edges = [_edges(weights, block_size)]
        self._before = [[0] * len(weights)]
        self._block = lru_cache(maxsize=64)(self._make_block)

    def change(self, weights: Sequence[float], at_draw: int) -> None:
        """Uses `weights` from draw `at_draw` on; it must be the start of a block, not an earlier
        one than the last change."""
        block, inside = divmod(at_draw, self.block_size)
        if inside or block < self._starts[-1]:
            raise ValueError(
                f"at_draw: found {at_draw}; the mixture can change at a multiple of the block size "
                f"{self.block_size}, from {self._starts[-1] * self.block_size} on"
            )
        if len(weights) != len(self._before[0]):
            raise ValueError(f"weights: found {len(weights)}; expected {len(self._before[0])}")
        self._before.append(self.counts_before_block(block))
        self._starts.append(block)
        self._edges.append(_edges(weights, self.block_size))
        self._block.cache_clear()

    def draw(self, i: int) -> Draw:
        """Draw i ≥ 0."""
        block, position = divmod(i, self.block_size)
        sources, ordinals = self._block(block)
        return Draw(int(sources[position]), int(ordinals[position]))

    def counts_before_block(self, block: int) -> list[int]:
        """Samples of each source (K,) in all blocks before `block`."""
        at = bisect.bisect_right(self._starts, block) - 1
        blocks = block - self._starts[at]
        totals = [0] + [_prefix_total(edge, blocks) for edge in self._edges[at]]
        return [
            base + high - low
            for base, low, high in zip(self._before[at], totals[:-1], totals[1:], strict=True)
        ]

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        at = bisect.bisect_right(self._starts, block) - 1
        offset = (block - self._starts[at]) * _GOLDEN % _ONE
        edges = [0] + [(edge + offset) >> _BITS for edge in self._edges[at]]
        counts = np.diff(edges)
        sources = np.repeat(np.arange(len(counts)), counts)
        before = np.asarray(self.counts_before_block(block))
        within = np.arange(self.block_size) - np.repeat(np.asarray(edges[:-1]), counts)
        generator = np.random.Generator(np.random.Philox(key=_key(self.seed, "block", block)))
        order = generator.permutation(self.block_size)
        return sources[order], (before[sources] + within)[order]


def epoch_sample(seed: int, stream: str, source: int, ordinal: int, size: int) -> int:
    """The sample, in [0, size), that the `ordinal`-th visit to a source reads.

    Epoch e = ordinal // size visits every sample once, in an order of its own. `stream` keeps the
    orders of different readers (training, probe, target) apart.
    """
    epoch, position = divmod(ordinal, size)
    return permute(position, size, _key(seed, f"{stream}/{source}", epoch))


def permute(position: int, size: int, key: int) -> int:
    """A keyed bijection of [0, size): a 4-round Feistel network with cycle walking."""
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for number in range(4):
            left, right = right, left ^ (_mix(right + (key >> 16 * number) + number) & mask)
        position = (left << half) | right
        if position < size:
            return position


def _mix(x: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood, 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


@lru_cache(maxsize=4096)
def _key(seed: int, stream: str, number: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{stream}/{number}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")


def _edges(weights: Sequence[float], block_size: int) -> list[int]:
    """E_k, shape (K,)."""
    shares = np.asarray(weights, dtype=np.float64)
    if shares.ndim != 1 or not np.all(np.isfinite(shares) & (shares >= 0)) or shares.sum() <= 0:
        raise ValueError(f"weights: found {weights!r}; use finite shares ≥ 0 that are not all 0")
    cumulative = np.cumsum(shares) / shares.sum() * block_size
    edges = np.rint(cumulative * _ONE).astype(np.int64).tolist()
    # Rounding must not hand the last places to a source whose weight is 0.
    last = int(np.flatnonzero(shares)[-1])
    return edges[:last] + [block_size * _ONE] * (len(edges) - last)


def _prefix_total(scaled: int, blocks: int) -> int:
    """Σ_{b < blocks} ⌊(scaled + u_b) / 2³²⌋."""
    whole, part = divmod(scaled, _ONE)
    carries = _floor_sum(blocks, _ONE, _GOLDEN, part) - _floor_sum(blocks, _ONE, _GOLDEN, 0)
    return blocks * whole + carries


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Σ_{i<n} ⌊(a·i + b) / m⌋ by Euclid's algorithm."""
    total = 0
    while True:
        total += (n - 1) * n // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        top = a * n + b
        if top < m:
            return total
        n, b, a, m = top // m, top % m, m, a
