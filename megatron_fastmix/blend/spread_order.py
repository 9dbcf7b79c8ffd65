"""The draw order of a live mixture: any draw at once, weights that change, caps on epochs.

Draws come in blocks of W. Block r of a segment (a stretch of draws with fixed weights) holds n_k
samples of source k, W·α_k rounded down or up so that the block is full:

    n_k(r) = ⌊(E_k + u_r) / 2³²⌋ − ⌊(E_{k−1} + u_r) / 2³²⌋,   u_r = r with its 32 bits reversed

with E_k = W·(α_1 + … + α_k) in fixed point of 32 binary places. u is van der Corput's sequence,
so that a source with W·α_k < 1 is served in turn, and so that the samples that the blocks before r
took from a source are a sum of one shift per set bit of E_k's fraction: nothing is stored per draw
or per block, and draw 10¹⁰ costs what draw 0 costs.

Inside a block, position p takes slot (p·g + v) mod W of the n_1 + … + n_K slots in the sources'
order, with g ≈ W/φ: neighbours are spread over the sources by the golden ratio, so that batches
smaller than a block are nearly as even as blocks; v is random in every block.

A source may have a capacity, in samples. In the block that would exceed it the source gets what is
left, after it nothing; the other sources share that in proportion to their weights.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from megatron_fastmix.blend.draw_order import Draw, key_of
from megatron_fastmix.blend.shares import normalized
from megatron_fastmix.errors import DataError

_BITS = 32
_ONE = 1 << _BITS
_FRACTION = _ONE - 1
_MASK64 = (1 << 64) - 1
_MULTIPLIER = 0xD1342543DE82EF95  # of Steele and Vigna, 2021, for generators modulo 2⁶⁴
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_UNLIMITED = 1 << 62
_DISCREPANCY = 64
"""More than the samples by which n blocks may depart from n·W·α_k, for n < 2³²."""

MAX_BLOCK_SIZE = 1 << 24


@dataclasses.dataclass(frozen=True)
class _Segment:
    """Blocks with the same weights."""

    start: int
    """The first block."""
    end: float
    """The block after the last; infinite where no capacity ends."""
    edges: list[int]
    """E_k, (K,)."""
    before: list[int]
    """Samples of each source (K,) in the blocks before `start`."""


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
        capacity: Sequence[int | None] | None = None,
    ) -> None:
        """`weights` (K,) hold from draw 0 on; source k gives at most `capacity[k]` samples.

        Raises `ValueError` for weights that are no shares, or a block size out of range.
        """
        if not 1 <= block_size <= MAX_BLOCK_SIZE:
            raise ValueError(f"block_size: found {block_size}; use 1 to {MAX_BLOCK_SIZE}")
        self.seed = seed
        self.block_size = block_size
        self.capacity = list(capacity) if capacity is not None else [None] * len(weights)
        self.history: list[tuple[int, list[float]]] = []
        """Changes so far: (first draw, weights)."""
        self._limits = np.array([_UNLIMITED if c is None else c for c in self.capacity], np.int64)
        self._key = key_of(seed, "spread", 0) & _MASK64
        self._stride = _golden_stride(block_size)
        self._segments: list[_Segment] = []
        self._starts: list[int] = []
        self.change(weights, 0)

    def change(self, weights: Sequence[float] | np.ndarray, at_draw: int) -> None:
        """Uses `weights` (K,) from draw `at_draw` on: the start of a block, not before the last
        change. Raises `ValueError` otherwise."""
        block, inside = divmod(at_draw, self.block_size)
        earliest = self.history[-1][0] if self.history else 0
        if inside or at_draw < earliest:
            raise ValueError(
                f"at_draw: found {at_draw}; the weights can change at a multiple of the block size "
                f"{self.block_size}, from {earliest} on"
            )
        if len(weights) != len(self.capacity):
            raise ValueError(f"weights: found {len(weights)}; expected {len(self.capacity)}")
        shares = normalized(weights)
        before = self._counts(block) if self.history else [0] * len(shares)
        # Segments planned past this point rest on weights that no longer hold there.
        keep = bisect.bisect_left(self._starts, block)
        del self._segments[keep:], self._starts[keep:]
        if self._segments:
            self._segments[-1] = dataclasses.replace(self._segments[-1], end=block)
        self.history.append((at_draw, shares.tolist()))
        self._append(block, before)

    def draw(self, i: int) -> Draw:
        """Draw i ≥ 0. Raises `DataError` where the capacities allow none."""
        return Draw(*self.find(i))

    def find(self, i: int) -> tuple[int, int]:
        """Source and ordinal of draw i, as `draw` has them."""
        # Every sample passes here: calls and objects would cost most of it.
        size = self.block_size
        block, position = divmod(i, size)
        if block >= self._segments[-1].end:
            self._plan(block)
        segment = self._segments[bisect.bisect_right(self._starts, block) - 1]
        edges = segment.edges
        blocks = block - segment.start
        low_bits = (blocks & _FRACTION).to_bytes(4, "little")
        offset = int.from_bytes(low_bits.translate(_REVERSED), "big")
        shift = (block * _MULTIPLIER + self._key & _MASK64) >> 32
        slot = (position * self._stride + shift) % size
        source = bisect.bisect_left(edges, ((slot + 1) << _BITS) - offset)
        high = edges[source]
        ordinal = segment.before[source] + slot + blocks * (high >> _BITS)
        ordinal += _carries(high & _FRACTION, blocks)
        if source:
            low = edges[source - 1]
            ordinal -= ((low + offset) >> _BITS) + blocks * (low >> _BITS)
            ordinal -= _carries(low & _FRACTION, blocks)
        return source, ordinal

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
        for segment in self._segments:
            if segment.start * self.block_size < until:
                ended = np.flatnonzero(np.array(segment.before) >= self._limits).tolist()
                found = dict.fromkeys(ended, segment.start * self.block_size) | found
        return found

    def _counts(self, block: int) -> list[int]:
        if block:
            self._plan(block - 1)
        # At the end of the last segment it has all counts, and no further one need be possible.
        segment = self._segments[max(bisect.bisect_left(self._starts, block) - 1, 0)]
        return _counts_after(segment, block - segment.start)

    def _plan(self, block: int) -> None:
        """Appends segments until block `block` lies in one."""
        while block >= self._segments[-1].end:
            last = self._segments[-1]
            assert isinstance(last.end, int)
            self._append(last.end, _counts_after(last, last.end - last.start))

    def _append(self, start: int, before: list[int]) -> None:
        """Appends the segment that begins with block `start`, under the newest weights."""
        shares = np.array(self.history[-1][1])
        left = self._limits - np.array(before, dtype=np.int64)
        fixed = dict.fromkeys(np.flatnonzero((left <= 0) & (shares > 0)).tolist(), 0)
        edges = _edges(shares, self.block_size, fixed)
        blocks = _blocks_that_fit(edges, left) if edges else 0
        while edges and not blocks:
            # One block in which the sources that end give what is left of them.
            counts = np.diff([0, *(edge >> _BITS for edge in edges)])
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
        self._segments.append(_Segment(start, start + blocks, edges, before))


def visited_sample(seed: int, source: int, ordinal: int, size: int) -> int:
    """The sample, in [0, size), that the `ordinal`-th draw of a source reads.

    Epoch ordinal // size reads every sample once, in a random order of its own: four rounds of a
    Feistel network on a·b ≥ size points, a ≈ √size, whose few points outside are walked past.
    """
    epoch, position = divmod(ordinal, size)
    a, b, one, two, three, four = _network(seed, source, epoch, size)
    while True:
        left, right = divmod(position, b)
        x = (right * _MULTIPLIER + one) & _MASK64
        left = (left + (x ^ x >> 32)) % a
        x = (left * _MULTIPLIER + two) & _MASK64
        right = (right + (x ^ x >> 32)) % b
        x = (right * _MULTIPLIER + three) & _MASK64
        left = (left + (x ^ x >> 32)) % a
        x = (left * _MULTIPLIER + four) & _MASK64
        right = (right + (x ^ x >> 32)) % b
        position = left * b + right
        if position < size:
            return position


@lru_cache(maxsize=1024)
def _network(seed: int, source: int, epoch: int, size: int) -> tuple[int, ...]:
    """a, b and the keys of the rounds."""
    a = math.isqrt(size)
    keys = (key_of(seed, f"epoch/{source}/{epoch}", number) for number in (0, 1))
    return (a, -(-size // a), *(part for key in keys for part in divmod(key, 1 << 64)))


def _edges(shares: np.ndarray, block_size: int, fixed: Mapping[int, int]) -> list[int] | None:
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
        # Rounding must not hand the last places to a source whose weight is 0.
        cumulative[np.flatnonzero(free)[-1] :] = rest * _ONE
        pieces = np.diff(cumulative, prepend=0)
    for source, count in fixed.items():
        pieces[source] = count * _ONE
    return np.cumsum(pieces).tolist()


def _blocks_that_fit(edges: list[int], left: np.ndarray) -> float:
    """How many blocks no source gives more than is `left` of it; infinite where none is capped."""
    rates = np.diff(edges, prepend=0)
    capped = np.flatnonzero((left < _UNLIMITED >> 1) & (rates > 0))
    if not len(capped):
        return math.inf
    per_block = rates[capped] / _ONE
    lowest = np.maximum(np.floor((left[capped] - _DISCREPANCY) / per_block), 0)
    most = float(np.min(np.ceil((left[capped] + _DISCREPANCY) / per_block)))
    for source, low in zip(capped.tolist(), lowest.tolist(), strict=True):
        if low < most:
            limit = int(left[source])

            def fits(blocks: int, source: int = source, limit: int = limit) -> bool:
                return _count(edges, source, blocks) <= limit

            if not fits(int(most)):
                found = bisect.bisect_left(
                    range(int(most) + 1), True, lo=int(low), key=lambda n: not fits(n)
                )
                most = found - 1
    return int(most)


def _count(edges: list[int], source: int, blocks: int) -> int:
    """Samples of `source` in the first `blocks` blocks of a segment."""
    high = edges[source]
    low = edges[source - 1] if source else 0
    whole = blocks * ((high >> _BITS) - (low >> _BITS))
    return whole + _carries(high & _FRACTION, blocks) - _carries(low & _FRACTION, blocks)


def _counts_after(segment: _Segment, blocks: int) -> list[int]:
    """Samples of each source (K,) before the block that is `blocks` after the segment's start."""
    edges = np.array(segment.edges, dtype=np.int64)
    fractions = edges & _FRACTION
    totals = blocks * (edges >> _BITS)
    pattern = np.zeros_like(fractions)
    for bit in range(min(blocks.bit_length(), _BITS)):
        chosen = fractions >> (_BITS - 1 - bit) & 1
        totals += chosen * ((blocks + pattern) >> (bit + 1))
        pattern |= chosen << bit
    return (np.array(segment.before, dtype=np.int64) + np.diff(totals, prepend=0)).tolist()


def _carries(fraction: int, blocks: int) -> int:
    """How many r < `blocks` have fraction + u_r ≥ 2³².

    That is, how many have the reversed bits of ~r below `fraction`: for each set bit of it those r
    whose ~r agrees with it in the bits before and has 0 in this one, a residue class.
    """
    total = 0
    longest = blocks.bit_length()
    for shift, pattern in _classes(fraction):
        if shift > longest:
            break
        total += (blocks + pattern) >> shift
    return total


@lru_cache(maxsize=1024)
def _classes(fraction: int) -> tuple[tuple[int, int], ...]:
    """(s, p) of the classes r ≡ 2ˢ − 1 − p (mod 2ˢ) of `_carries`, the shortest period first."""
    classes = []
    pattern = 0
    for bit in range(_BITS):
        if fraction >> (_BITS - 1 - bit) & 1:
            classes.append((bit + 1, pattern))
            pattern |= 1 << bit
    return tuple(classes)


def _golden_stride(size: int) -> int:
    """The number next to size/φ that has no divisor in common with `size`."""
    start = round(size * 0.6180339887498949)
    return next(
        g for d in range(size) for g in (start - d, start + d) if g > 0 and math.gcd(g, size) == 1
    )
