"""An order that draws sources evenly in shuffled blocks: the search's.

Block b of W draws holds n_k samples of source k, where n_k is W/K rounded down or up so that the
block is full; which sources are rounded up rotates from block to block along a golden-ratio
sequence:

    n_k(b) = ⌊(E_k + u_b) / 2³²⌋ − ⌊(E_{k−1} + u_b) / 2³²⌋,   u_b = b·φ mod 2³²

with E_k = W·k/K in fixed point of 32 binary places, coarse enough that the rounding of float64
vanishes in it: where K divides W, every block holds just W/K of each. The samples that the blocks
before b took from a source are a sum of floors of a linear function, which has a closed form in
O(log) steps, so that any draw can be found at once. Inside a block the order is a seeded
permutation.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from megatron_fastmix.blend.order.draw_order import Draw, epoch_sample, key_of

_BITS = 32
_ONE = 1 << _BITS
_GOLDEN = 2654435769  # 2³²·(√5 − 1)/2, which is odd, so that u_b takes every value
_KEPT_BLOCKS = 64


class ShuffledOrder:
    """The order of draws over K sources of equal shares: a pure function of its arguments."""

    def __init__(self, seed: int, block_size: int, sizes: Sequence[int]) -> None:
        """`sizes` (K,) are the samples in one epoch of each source."""
        self.seed = seed
        self.block_size = block_size
        self._sizes = list(sizes)
        shares = np.ones(len(sizes))
        cumulative = np.cumsum(shares) / shares.sum() * block_size
        edges = np.rint(cumulative * _ONE).astype(np.int64).tolist()
        self._edges = [*edges[:-1], block_size * _ONE]
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def draw(self, i: int) -> Draw:
        """Draw i ≥ 0."""
        block, position = divmod(i, self.block_size)
        sources, ordinals = self._block(block)
        return Draw(int(sources[position]), int(ordinals[position]))

    def locate(self, i: int) -> tuple[int, int]:
        """Source of draw i and the sample that it reads."""
        source, ordinal = self.draw(i)
        return source, epoch_sample(self.seed, "train", source, ordinal, self._sizes[source])

    def counts_before(self, i: int) -> list[int]:
        """Samples of each source (K,) in the draws before draw i."""
        block, inside = divmod(i, self.block_size)
        counts = self._counts_before_block(block)
        for source in self._block(block)[0][:inside].tolist():
            counts[source] += 1
        return counts

    def _counts_before_block(self, block: int) -> list[int]:
        totals = [0] + [_prefix_total(edge, block) for edge in self._edges]
        return [high - low for low, high in pairwise(totals)]

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Sources and ordinals of a block, (block_size,) each; the last few are kept."""
        if block not in self._blocks:
            if len(self._blocks) >= _KEPT_BLOCKS:
                self._blocks.clear()
            self._blocks[block] = self._make_block(block)
        return self._blocks[block]

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        offset = block * _GOLDEN % _ONE
        edges = [0] + [(edge + offset) >> _BITS for edge in self._edges]
        counts = np.diff(edges)
        sources = np.repeat(np.arange(len(counts)), counts)
        before = np.asarray(self._counts_before_block(block))
        within = np.arange(self.block_size) - np.repeat(np.asarray(edges[:-1]), counts)
        generator = np.random.Generator(np.random.Philox(key=key_of(self.seed, "block", block)))
        order = generator.permutation(self.block_size)
        return sources[order], (before[sources] + within)[order]


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
