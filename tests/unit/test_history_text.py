"""The history of many sources in a checkpoint: exact, and small."""

import json

import numpy as np
import pytest

from megatron_fastmix.errors import CheckpointError
from megatron_fastmix.mixture.history_text import packed_rows, unpacked_rows


@pytest.mark.parametrize("count", [3, 256, 257, 1000])
def test_rows_come_back_bit_for_bit(count):
    rows = list(np.random.default_rng(1).dirichlet(np.ones(count), size=4))
    rows[2][0] = np.nan  # an advantage without evidence
    text = json.dumps(packed_rows(rows))
    for found, row in zip(unpacked_rows(json.loads(text), count), rows, strict=True):
        assert found.tobytes() == row.tobytes()
        found += 1  # a resumed search may change what it holds
    assert count <= 256 or len(text) < 11 * 4 * count  # 20 as digits


def test_lists_of_older_checkpoints_are_read():
    assert unpacked_rows([[0.5] * 300], 300)[0].tolist() == [0.5] * 300


@pytest.mark.parametrize(
    "rows", [[[0.5, 0.5]], ["AAAA"], ["no base64!"], [None], [[{}, 1, 1]], ["AAAAAAAAAAA="]]
)
def test_rows_of_others_are_refused(rows):
    with pytest.raises(CheckpointError, match="history"):
        unpacked_rows(rows, 3)
