"""The draw order of a live mixture: any draw at once, weights that change, caps on epochs.

Draws come in blocks of W. Block r of the run holds n_k samples of source k, W·α_k rounded down or
up so that the block is full:

    n_k(r) = ⌊(E_k + u_r) / 2³²⌋ − ⌊(E_{k−1} + u_r) / 2³²⌋,   u_r = r with its 32 bits reversed

with E_k = W·(α_1 + … + α_k) in fixed point of 32 binary places. u is van der Corput's sequence,
so that a source with W·α_k < 1 is served in turn, and so that the samples that the first r blocks
would take from a source under fixed weights have a closed form (`_count`): a stretch of blocks with
the same weights takes the difference of two, nothing is stored per draw or per block, and draw 10¹⁰
costs what draw 0 costs. r runs through all stretches: if each began at u_0 anew, the same roundings
would come back with every change of the weights, and add up.

Inside a block, position p takes slot (p·g + v) mod W of the n_1 + … + n_K slots in the sources'
order, with g ≈ W/φ: neighbours are spread over the sources by the golden ratio, so that batches
smaller than a block are nearly as even as blocks; v is random in every block.

A source may have a capacity, in samples. In the block that would exceed it the source gets what is
left, after it nothing; the other sources share that in proportion to their weights.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron_fastmix.blend.order.draw_order import Draw, key_of
from megatron_fastmix.blend.shares import normalized
from megatron_fastmix.errors import DataError

_BITS = 32
_ONE = 1 << _BITS
_FRACTION = _ONE - 1
_MULTIPLIER = 0x9E3779B1  # 2³²/φ, next prime
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_COMPILED_BLOCKS = 1 << 31
_KEPT_COMPILED = 16
_UNLIMITED = 1 << 62
_DISCREPANCY = 64
"""More than the samples by which n blocks of the first 2³² may depart from n·W·α_k."""

MAX_BLOCK_SIZE = 1 << 24
DRAW_ORDER = 2
"""Kept in checkpoints. Draws of order 1 went on at other samples where weights had changed or a
capacity had ended."""

try:
    from megatron_fastmix.blend.order import _draws
except ImportError:  # installed without a compiler
    _draws = None  # type: ignore[assignment]
if getattr(_draws, "DRAW_ORDER", 1) != DRAW_ORDER:  # of a checkout that has been updated since
    _draws = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class _Stretch:
    """Blocks with the same weights. All are kept, and lists would take four times the memory."""

    start: int
    """The first block."""
    end: float
    """The block after the last; infinite where no capacity ends."""
    edges: array[int]
    """E_k, (K,)."""
    base: array[int]
    """Of each source (K,) the samples in the blocks before `start`, less those that `start` blocks
    under the weights of this stretch would have taken."""


class SpreadOrder:
    """The order of draws over K sources under weights that may change between blocks.

    A pure function of the arguments and the changes: two objects with the same history agree on
    every draw. It can be pickled.
    """

    def __init__(
        self,
        seed: int,
        block_size: int,
        weights: Sequence[float] | np.ndarray,
        sizes: Sequence[int],
        capacity: Sequence[int | None] | None = None,
    ) -> None:
        """`weights` (K,) hold from draw 0 on. Source k has `sizes[k]` samples in an epoch and gives
        at most `capacity[k]` in all.

        Raises `ValueError` for weights that are no shares, or a block size out of range.
        """
        if not 1 <= block_size <= MAX_BLOCK_SIZE:
            raise ValueError(f"block_size: found {block_size}; use 1 to {MAX_BLOCK_SIZE}")
        self.seed = seed
        self.block_size = block_size
        self.capacity = list(capacity) if capacity is not None else [None] * len(weights)
        self.changes = 0
        """How often weights were given, those of draw 0 among them."""
        self._changed_at = 0
        self._shares = np.zeros(0)
        self._limits = np.array([_UNLIMITED if c is None else c for c in self.capacity], np.int64)
        self._sizes = list(sizes)
        self._key = key_of(seed, "spread", 0) & _FRACTION
        self._stride = _golden_stride(block_size)
        self._stretches: list[_Stretch] = []
        self._starts: list[int] = []
        self._entered: Any = None
        self._compiled: dict[int, Any] = {}
        self.change(weights, 0)

    def change(self, weights: Sequence[float] | np.ndarray, at_draw: int) -> None:
        """Uses `weights` (K,) from draw `at_draw` on: the start of a block, not before the last
        change. Raises `ValueError` otherwise."""
        block, inside = divmod(at_draw, self.block_size)
        if inside or at_draw < self._changed_at:
            raise ValueError(
                f"at_draw: found {at_draw}; the weights can change at a multiple of the block size "
                f"{self.block_size}, from {self._changed_at} on"
            )
        if len(weights) != len(self.capacity):
            raise ValueError(f"weights: found {len(weights)}; expected {len(self.capacity)}")
        shares = normalized(weights)
        before = self._counts(block) if self.changes else [0] * len(shares)
        # Stretches planned past this point rest on weights that no longer hold there.
        keep = bisect_left(self._starts, block)
        del self._stretches[keep:], self._starts[keep:]
        if self._stretches:
            self._stretches[-1] = dataclasses.replace(self._stretches[-1], end=block)
        self.changes += 1
        self._changed_at, self._shares = at_draw, shares
        self._append(block, before)
        self._entered = None
        self._compiled.clear()

    def draw(self, i: int) -> Draw:
        """Draw i ≥ 0. Raises `DataError` where the capacities allow none."""
        block, position = divmod(i, self.block_size)
        stretch = self._stretch_of(block)
        edges = stretch.edges
        offset = _reversed(block & _FRACTION)
        shift = (block * _MULTIPLIER + self._key) >> 16
        slot = (position * self._stride + shift) % self.block_size
        source = bisect_left(edges, ((slot + 1) << _BITS) - offset)
        first = (edges[source - 1] + offset) >> _BITS if source else 0
        ordinal = stretch.base[source] + _count(edges, source, block) + slot - first
        return Draw(source, ordinal)

    def locate(self, i: int) -> tuple[int, int]:
        """Source of draw i and the sample that it reads: `visited_sample` of `draw`.

        Every sample of a run passes here, so it is compiled, where the package was installed with a
        compiler.
        """
        found = self._entered.locate(i) if self._entered is not None else None
        return found or self._locate_elsewhere(i)

    def counts_before(self, i: int) -> list[int]:
        """Samples of each source (K,) in the draws before draw i."""
        block, inside = divmod(i, self.block_size)
        counts = self._counts(block)
        for position in range(inside):
            counts[self.draw(block * self.block_size + position).source] += 1
        return counts

    def exhausted(self, until: int) -> dict[int, int]:
        """The sources whose capacity ends before draw `until`, and the draw from which on each
        gives no sample."""
        self._plan(max(0, -(-until // self.block_size) - 1))
        found: dict[int, int] = {}
        for stretch in self._stretches:
            if stretch.start * self.block_size < until:
                before = _counts_after(stretch, stretch.start)
                ended = np.flatnonzero(np.array(before) >= self._limits).tolist()
                found = dict.fromkeys(ended, stretch.start * self.block_size) | found
        return found

    def _counts(self, block: int) -> list[int]:
        if block:
            self._plan(block - 1)
        # At the end of the last stretch it has all counts, and no further one need be possible.
        stretch = self._stretches[max(bisect_left(self._starts, block) - 1, 0)]
        return _counts_after(stretch, block)

    def _stretch_of(self, block: int) -> _Stretch:
        self._plan(block)
        return self._stretches[bisect_right(self._starts, block) - 1]

    def _locate_elsewhere(self, i: int) -> tuple[int, int]:
        """`locate` in a stretch that is not entered yet, or cannot be."""
        block = i // self.block_size
        if _draws is not None and block < _COMPILED_BLOCKS:
            self._entered = self._compiled_stretch(_draws.Stretch, block)
            found = self._entered.locate(i)
            assert found is not None
            return found
        source, ordinal = self.draw(i)
        return source, visited_sample(self.seed, source, ordinal, self._sizes[source])

    def _compiled_stretch(self, make: Any, block: int) -> Any:
        stretch = self._stretch_of(block)
        if stretch.start not in self._compiled:
            if len(self._compiled) == _KEPT_COMPILED:
                self._compiled.clear()
            self._compiled[stretch.start] = make(
                self.block_size,
                self._stride,
                self._key,
                stretch.start,
                int(min(stretch.end, _COMPILED_BLOCKS)),
                stretch.edges.tobytes(),
                stretch.base.tobytes(),
                np.array(self._sizes, np.int64).tobytes(),
                functools.partial(_epoch_key, self.seed),
            )
        return self._compiled[stretch.start]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_entered": None, "_compiled": {}}

    def _plan(self, block: int) -> None:
        """Appends stretches until block `block` lies in one."""
        while block >= self._stretches[-1].end:
            last = self._stretches[-1]
            assert isinstance(last.end, int)
            self._append(last.end, _counts_after(last, last.end))

    def _append(self, start: int, before: list[int]) -> None:
        """Appends the stretch that begins with block `start`, under the newest weights."""
        shares = self._shares
        left = self._limits - np.array(before, dtype=np.int64)
        fixed = dict.fromkeys(np.flatnonzero((left <= 0) & (shares > 0)).tolist(), 0)
        edges = _edges(shares, self.block_size, fixed)
        blocks = _blocks_that_fit(edges, left, start) if edges else 0
        offset = _reversed(start & _FRACTION)
        while edges and not blocks:
            # One block in which the sources that end give what is left of them.
            counts = np.diff([0, *(edge + offset >> _BITS for edge in edges)])
            over = {k: int(left[k]) for k in np.flatnonzero(counts > left).tolist()}
            if not over:
                blocks = 1
            else:
                fixed |= over
                edges = _edges(shares, self.block_size, fixed)
        if edges is None:
            raise DataError(
                f"max_epochs: after {start * self.block_size} samples every source with a weight "
                "has reached its cap; raise max_epochs, ask for fewer samples, or give other "
                "sources a weight"
            )
        self._starts.append(start)
        base = np.array(before, dtype=np.int64) - _edge_counts(edges, start)
        self._stretches.append(_Stretch(start, start + blocks, edges, _numbers(base)))


def visited_sample(seed: int, source: int, ordinal: int, size: int) -> int:
    """The sample, in [0, size), that the `ordinal`-th draw of a source reads.

    Epoch ordinal // size reads every sample once, in a random order of its own: four rounds of a
    Feistel network on a·b ≥ size points, a ≈ √size, whose few points outside are walked past.
    """
    epoch, position = divmod(ordinal, size)
    a = math.isqrt(size)
    b = -(-size // a)
    key = _epoch_key(seed, source, epoch)
    while True:
        left, right = divmod(position, b)
        for _ in range(2):
            x = right * _MULTIPLIER + key
            left = (left + (x ^ x >> 16)) % a
            x = left * _MULTIPLIER + key
            right = (right + (x ^ x >> 16)) % b
        position = left * b + right
        if position < size:
            return position


def _epoch_key(seed: int, source: int, epoch: int) -> int:
    return key_of(seed, f"epoch/{source}", epoch) & _FRACTION


def _numbers(values: np.ndarray) -> array[int]:
    return array("q", values.astype(np.int64).tobytes())


def _edges(shares: np.ndarray, block_size: int, fixed: Mapping[int, int]) -> array[int] | None:
    """E_k, (K,): sources in `fixed` get that many samples a block, the others share the rest.

    None where nobody is there to take the rest.
    """
    free = shares.copy()
    free[list(fixed)] = 0
    rest = block_size - sum(fixed.values())
    if rest and not free.any():
        return None
    pieces = np.zeros(len(shares), dtype=np.int64)
    if rest:
        cumulative = np.rint(np.cumsum(free) / free.sum() * rest * _ONE).astype(np.int64)
        # Rounding must neither pass the end nor hand the last places to a source of weight 0.
        cumulative = np.minimum(cumulative, rest * _ONE)
        cumulative[np.flatnonzero(free)[-1] :] = rest * _ONE
        pieces = np.diff(cumulative, prepend=0)
    for source, count in fixed.items():
        pieces[source] = count * _ONE
    return _numbers(np.cumsum(pieces))


def _blocks_that_fit(edges: array[int], left: np.ndarray, start: int) -> float:
    """In how many blocks from `start` on no source gives more than is `left` of it; infinite where
    none is capped."""
    rates = np.diff(edges, prepend=0)
    capped = np.flatnonzero((left < _UNLIMITED >> 1) & (rates > 0))
    if not len(capped):
        return math.inf
    per_block = rates[capped] / _ONE
    lowest = np.maximum(np.floor((left[capped] - _DISCREPANCY) / per_block), 0)
    most = float(np.min(np.ceil((left[capped] + _DISCREPANCY) / per_block)))
    for source, low in zip(capped.tolist(), lowest.tolist(), strict=True):
        if low < most:
            limit = _count(edges, source, start) + int(left[source])

            def fits(blocks: int, source: int = source, limit: int = limit) -> bool:
                return _count(edges, source, start + blocks) <= limit

            if not fits(int(most)):
                found = bisect_left(
                    range(int(most) + 1), True, lo=int(low), key=lambda n: not fits(n)
                )
                most = found - 1
    return int(most)


def _count(edges: array[int], source: int, blocks: int) -> int:
    """Samples of `source` in the first `blocks` blocks, had they these edges.

    An edge E with fraction f is carried over by u_r = rev(r) where rev(~r) < f. In R = rev(f) a set
    bit j stands for the r whose lowest j bits are those of ~R and whose bit j is set, of which
    there are (n + (R mod 2ʲ)) >> (j + 1) among the first n: n >> (j + 1), and one more where n has
    bit j and the addition n + R carries into it. With the whole part of E the former add up to
    Σ E >> (32 − i) over the set bits i of n.
    """
    total = 0
    for edge, sign in ((edges[source], 1), (edges[source - 1] if source else 0, -1)):
        high = _reversed(edge & _FRACTION)
        carried = (high & blocks & (high + blocks ^ high ^ blocks)).bit_count()
        total += sign * (carried + sum(_bit_weights(edge, blocks)))
    return total


def _bit_weights(edge: int, blocks: int) -> list[int]:
    """(E · 2ⁱ) >> 32 for each set bit i of `blocks`."""
    return [edge << bit >> _BITS for bit in range(blocks.bit_length()) if blocks >> bit & 1]


def _counts_after(stretch: _Stretch, block: int) -> list[int]:
    """Samples of each source (K,) before `block`, of this stretch or the one after it."""
    return (np.array(stretch.base, dtype=np.int64) + _edge_counts(stretch.edges, block)).tolist()


def _edge_counts(edges_of_all: array[int], blocks: int) -> np.ndarray:
    """`_count` of every source, (K,)."""
    edges = np.array(edges_of_all, dtype=np.int64)
    fractions = edges & _FRACTION
    totals = blocks * (edges >> _BITS)
    pattern = np.zeros_like(fractions)
    for bit in range(min(blocks.bit_length(), _BITS)):
        chosen = fractions >> (_BITS - 1 - bit) & 1
        totals += chosen * ((blocks + pattern) >> (bit + 1))
        pattern |= chosen << bit
    counts: np.ndarray = np.diff(totals, prepend=0)
    return counts


def _reversed(bits: int) -> int:
    """The 32 bits in reverse order."""
    return int.from_bytes(bits.to_bytes(4, "little").translate(_REVERSED), "big")


def _golden_stride(size: int) -> int:
    """The number next to size/φ that has no divisor in common with `size`."""
    start = round(size * 0.6180339887498949)
    return next(
        g for d in range(size) for g in (start - d, start + d) if g > 0 and math.gcd(g, size) == 1
    )
