"""Target models: stopped and resumed bitwise, and trained under weights that change."""

import dataclasses

import pytest
import torch

from megatron_fastmix.blend.weight_schedule import Change, WeightSchedule
from megatron_fastmix.config import ProxyConfig, TargetConfig, TokenizerConfig, TrainingConfig
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import DataError
from megatron_fastmix.lab.comparison.candidates import Candidate
from megatron_fastmix.lab.comparison.config import CompareConfig
from megatron_fastmix.lab.comparison.inputs import check_setting
from megatron_fastmix.lab.comparison.row_checkpoint import RowCheckpoint
from megatron_fastmix.lab.comparison.row_data import RowData
from megatron_fastmix.lab.comparison.row_training import train_row
from megatron_fastmix.lab.comparison.rows import Task
from megatron_fastmix.lab.forked_ranks import run_ranks
from tests.conftest import SEQ_LENGTH, SOURCES


class _Killed(Exception):
    pass


class _UntilStep(RowCheckpoint):
    """As if the process were killed after step 5, whose checkpoint is that of step 4."""

    def is_due(self, step):
        if step == 5:
            raise _Killed
        return super().is_due(step)


def _setting(corpora):
    compare = CompareConfig(
        tests=(TargetConfig(name="test", path=str(corpora / "target_backward")),),
        model=ProxyConfig(num_layers=1, hidden_size=32, num_attention_heads=2),
        training=TrainingConfig(
            train_iters=8, micro_batch_size=2, global_batch_size=4, lr=1e-2, lr_warmup_iters=2
        ),
        eval_samples=8,
    )
    return check_setting(
        compare,
        sources={name: [str(corpora / name)] for name in SOURCES},
        targets={"target": [str(corpora / "target")]},
        tokenizer_config=TokenizerConfig(tokenizer_type="ByteLevelTokenizer"),
        seq_length=SEQ_LENGTH,
        data={},
    )


def _task():
    weights = {"forward": "0.6", "backward": "0.3", "noise": "0.1"}
    return Task(candidate=Candidate(name="mine", kind="blend", weights=weights), seed=5)


def _train(corpora, folder, checkpoint):
    cache = folder / f"cache-{len(list(folder.iterdir()))}"
    cache.mkdir()
    return train_row(_setting(corpora), _task(), cache, checkpoint)


def _straight_and_stopped(corpora, folder):
    straight = _train(corpora, folder, None)
    file = folder / "work" / "row.pt"
    with pytest.raises(_Killed):
        _train(corpora, folder, _UntilStep(file, 2))
    assert file.exists()
    began_at = []

    class Counted(RowCheckpoint):
        def restore(self, *arguments):
            losses, progress = super().restore(*arguments)
            began_at.append((progress.step, len(losses), progress.seconds > 0))
            return losses, progress

    resumed = _train(corpora, folder, Counted(file, 100))
    return straight, resumed, began_at


def test_a_stopped_training_goes_on_bitwise(corpora, tmp_path):
    ((straight, resumed, began_at),) = run_ranks(1, _straight_and_stopped, corpora, tmp_path)
    assert began_at == [(4, 4, True)]
    assert dataclasses.replace(resumed, wall_seconds=0.0) == dataclasses.replace(
        straight, wall_seconds=0.0
    )
    assert straight.tokens == 8 * 4 * SEQ_LENGTH


def _damaged(corpora, folder):
    file = folder / "row.pt"
    file.write_bytes(b"PK no checkpoint")
    with pytest.raises(
        DataError, match=r"row\.pt: no checkpoint of this training \(.*\); delete it"
    ):
        _train(corpora, folder, RowCheckpoint(file, 2))
    return True


def test_a_damaged_checkpoint_is_named(corpora, tmp_path):
    assert run_ranks(1, _damaged, corpora, tmp_path) == [True]


def _share_of_noise(corpora, folder):
    changes = ((0, {"forward": 1.0, "noise": 0.0}), (8, {"forward": 0.0, "noise": 1.0}))
    schedule = WeightSchedule(changes=tuple(Change(at_sample=at, weights=w) for at, w in changes))
    mean = {"forward": "0.25", "noise": "0.75"}
    moving = Candidate(name="moving", kind="moving", weights=mean, schedule=schedule)
    assert moving.key != dataclasses.replace(moving, schedule=None).key
    setting = _setting(corpora)
    tokenizer = load_tokenizer(**vars(setting.tokenizer))
    data = RowData(setting, Task(candidate=moving, seed=3), tokenizer, folder, torch.device("cpu"))
    # Documents that count have numbers below 64, besides their end token; noise has all bytes.
    return [
        float(((batch.tokens >= 64) & (batch.tokens < 256)).float().mean())
        for step in range(8)
        for batch in data.step(step)
    ]


def test_a_target_model_reads_by_its_schedule(corpora, tmp_path):
    (shares,) = run_ranks(1, _share_of_noise, corpora, tmp_path)
    # Two micro-batches of each of eight steps of four samples; the change is at the third step.
    assert shares[:4] == [0.0] * 4
    assert min(shares[4:]) > 0.5
