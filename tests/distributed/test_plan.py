"""The plan against what real engines and models hold and send."""

import gc

import numpy as np
import pytest
import torch
import yaml

from megatron_fastmix.cli import main as cli
from megatron_fastmix.config import load_config
from megatron_fastmix.deepspeed_engine.engine import learning_rate
from megatron_fastmix.lab.benchmarks.search_ranks import counting_reduced_bytes
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.search.inner_step import inner_step
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.search.loop import Search
from megatron_fastmix.start.plan import make_plan
from tests.distributed.searches import slow


def plan_of(config, ranks):
    return make_plan(config, check_inputs(config, ranks), ranks=ranks, tflops=1, utilisation=0.5)


def _measured(config):
    """Parameters, bytes of parameters and of optimizer state, bytes reduced in an outer step."""
    gc.collect()
    before = _tensor_bytes()
    search = Search(config)
    inner_step(search.engine, search.batches, 0, search.mixture.loss_weights)
    search.engine.zero_grad()
    with counting_reduced_bytes() as count:
        search.outer_loop.step(learning_rate(config.training, 1))
    parameters = [getattr(p, "ds_numel", p.numel()) for p in search.engine.module.parameters()]
    optimizer = search.engine.optimizer
    states = getattr(optimizer, "optimizer", optimizer).state.values()
    moments = sum(
        v.numel() * v.element_size() for state in states for v in state.values() if v.numel() > 1
    )
    gc.collect()
    return sum(parameters), moments, count[0], _tensor_bytes() - before


def _tensor_bytes():
    storages = {}
    for item in gc.get_objects():
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(
    ("stage", "objective"),
    [
        (0, {}),
        slow(1, {}),
        (2, {}),
        (3, {}),
        slow(2, {"target_aggregation": "least_gain"}),
        slow(3, {"target_aggregation": "least_gain", "train_loss_weight": 0.2}),
    ],
)
def test_parameters_states_and_bytes_are_those_of_a_real_run(
    search_values, corpora, tmp_path, stage, objective
):
    search_values["engine"] = {"zero_stage": stage}
    search_values["objective"] = objective
    search_values["targets"].append({"name": "down", "path": str(corpora / "target_backward")})
    search_values["proxy"]["hidden_size"] = 64
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(search_values))
    config = load_config(file)
    plan = plan_of(config, 2)
    for parameters, moments, reduced, held in run_ranks(2, _measured, config):
        assert parameters == plan.parameters
        memory = plan.memory[stage]
        assert moments == pytest.approx(8 * plan.parameters / (2 if stage else 1), rel=0.02)
        # Less what the plan leaves out: datasets, buckets and the like are a few percent.
        assert held >= 0.95 * (memory.parameters + memory.optimizer)
        assert reduced == pytest.approx(plan.reduced_bytes[stage], rel=0.02)


def test_flops_hours_and_epochs_by_hand(search_values, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(search_values))
    plan = plan_of(load_config(file), 4)
    tokens = 6 * 12 * 32
    assert plan.tokens == tokens
    hidden, ffn, rows = 32, load_config(file).proxy.feed_forward_size, 512
    forward = 2 * (4 * hidden**2 + 3 * hidden * ffn + rows * hidden) + 2 * 32 * hidden
    assert plan.training_flops == pytest.approx(3 * forward * tokens)
    # 3 outer steps of 10 target samples (forward and backward) and 15 probe samples, twice.
    assert plan.outer_flops == pytest.approx(3 * (3 * 10 + 2 * 15) * 32 * forward)
    total = plan.training_flops + plan.outer_flops
    assert plan.hours == pytest.approx(total / (4 * 1e12 * 0.5) / 3600)
    inputs = check_inputs(load_config(file), 1)
    expected = [tokens / 3 / size.tokens for size in inputs.sources]
    np.testing.assert_allclose(list(plan.epochs.values()), expected)


def test_the_command_prints_a_table_and_starts_nothing(config_file, tmp_path, capsys):
    arguments = ["plan", "--config", str(config_file), "--nodes", "2", "--gpus-per-node", "2"]
    assert cli.main([*arguments, "--zero-stage=3"]) == 0
    out = capsys.readouterr().out
    assert "3 (configured)" in out
    assert "forward" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--nodes", "0"], "--nodes"),
        (["--utilisation", "1.5"], "--utilisation"),
        (["--tflops", "-1"], "--tflops"),
        (["--gpus-per-node", "7"], "micro_batch_size"),
    ],
)
def test_impossible_machines_are_refused(config_file, capsys, flags, named):
    assert cli.main(["plan", "--config", str(config_file), *flags]) == 2
    assert named in capsys.readouterr().err
