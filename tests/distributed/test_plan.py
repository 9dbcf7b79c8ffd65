"""The plan against what real engines and models hold and send."""

import argparse
import gc
import json
import re
from functools import partial

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
from megatron_fastmix.token_count import token_count
from tests.cases import slow


def plan_of(config, ranks):
    return make_plan(config, check_inputs(config, ranks), ranks=ranks, tflops=1, utilisation=0.5)


def changed_plan(values, folder, ranks=2, **changes):
    """The plan of `values` with other keys, by section."""
    changed = values | {name: values.get(name, {}) | keys for name, keys in changes.items()}
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump(changed))
    return plan_of(load_config(file), ranks)


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
    # 3 outer steps of 10 target samples and 15 probe samples, forward and backward.
    assert plan.outer_flops == pytest.approx(3 * (3 * 10 + 3 * 15) * 32 * forward)
    total = plan.training_flops + plan.outer_flops
    assert plan.hours == pytest.approx(total / (4 * 1e12 * 0.5) / 3600)
    inputs = check_inputs(load_config(file), 1)
    expected = [tokens / 3 / size.tokens for size in inputs.sources]
    np.testing.assert_allclose(list(plan.epochs.values()), expected)


def test_a_target_of_short_rows_costs_what_its_rows_do(search_values, answer_corpora, tmp_path):
    search_values["targets"] = [{"name": "target", "path": str(answer_corpora / "target")}]
    plan = changed_plan(search_values, tmp_path)
    inputs = check_inputs(load_config(tmp_path / "plan.yaml"), 1)
    rows = inputs.targets[0].datasets[0].answer_rows
    length = rows.tokens / rows.rows
    assert length < 20 < 32  # the sources' samples
    per_token = plan.training_flops / plan.tokens
    assert plan.outer_flops == pytest.approx(3 * (10 * length + 15 * 32) * per_token)


def test_training_batches_as_the_probe_by_hand(search_values, tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(search_values))
    separate = plan_of(load_config(file), 4)
    plan = plan_of(load_config(file, ["--hypergradient.probe=training"]), 4)
    # Of 10 target samples both passes, of 12 training samples the local products.
    pass_of_a_sample = plan.training_flops / (6 * 12 * 3)
    assert plan.outer_flops == pytest.approx(3 * (3 * 10 + 12) * pass_of_a_sample)
    assert plan.outer_hours / plan.hours == pytest.approx(
        plan.outer_flops / (plan.outer_flops + plan.training_flops)
    )
    # v is there beside the gradients.
    for stage in range(4):
        more = plan.memory[stage].total - separate.memory[stage].total
        assert more == min(plan.memory[stage].gradients, plan.memory[stage].outer_step)
    # A probe of its own has two micro-batches, the training one: v is gathered for each, and the
    # parameters twice for each of the former.
    fp32 = 4 * plan.parameters
    assert separate.gathered_bytes - plan.gathered_bytes == (2 * 2 + 2 - 1) * fp32
    # Three sources in two samples: one of them is probed apart.
    flags = ["--global-batch-size=2", "--micro-batch-size=1", "--hypergradient.probe=training"]
    few = plan_of(load_config(file, flags), 2)
    assert few.outer_flops == pytest.approx(3 * (3 * 10 + 2 + 3 * 5) * pass_of_a_sample)


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


def test_the_shipped_quickstart_is_planned_before_its_data_are_there(capsys):
    arguments = ["--config", "configs/quickstart.yaml", "--assume-tokens", "2M"]
    assert cli.main(["plan", *arguments, "--output.token_budget=3e11"]) == 0
    out = capsys.readouterr().out
    # 32 samples in micro-batches of 8.
    assert out.startswith("For 1 node(s) of 4 GPUs")
    assert re.search(r"Fits: about .* seconds of computing; steps this small wait for more", out)
    assert "Warning: only 80 outer steps" in out
    assert "python: 2.5e+04 times" in out
    # The same flag is the same key as in a search, which has no use for so few samples.
    assert cli.main(["plan", *arguments, "--token-budget", "3e11"]) == 2
    assert "data.token_budget" in capsys.readouterr().err


def test_a_plan_warns_of_sources_read_often_and_of_what_does_not_fit(config_file, capsys):
    flags = ["--gpus-per-node", "2", "--memory-gib", "0.5", "--train-iters=4000"]
    assert cli.main(["plan", "--config", str(config_file), *flags]) == 0
    out = capsys.readouterr().out
    assert "Does not fit: about" in out
    assert "Use " in out
    assert "the search reads forward" in out
    assert "outer steps, and each" not in out
    assert "or lower training.train_iters" in out
    # Under a budget the run repeats them as often.
    budget = ["--data.token_budget=10000000", "--mixture.weighting=sampling"]
    assert cli.main(["plan", "--config", str(config_file), *flags, *budget]) == 0
    out = capsys.readouterr().out
    assert "as often as the run of data.token_budget does" in out
    assert "or lower training.train_iters" not in out


def test_a_plan_compares_the_search_with_the_run_to_come(config_file, capsys):
    def planned(budget):
        flags = ["--gpus-per-node", "2", *budget]
        assert cli.main(["plan", "--config", str(config_file), *flags]) == 0
        return capsys.readouterr().out

    tokens = 6 * 12 * 32
    out = planned([f"--output.token_budget={99 * tokens}"])
    assert "horizon          2.3e+03 of the 2.28e+05 tokens to come, 1.01%" in out
    assert "raise training.train_iters, with a smaller proxy" not in out
    # As the configuration has it, too.
    sampling = [f"--data.token_budget={101 * tokens}", "--mixture.weighting=sampling"]
    for flags in ([f"--output.token_budget={101 * tokens}"], sampling):
        assert "Warning: the search sees 2.3e+03 of the 2.33e+05 tokens to come, 0.99%" in planned(
            flags
        )
    assert "horizon  " not in planned([])


def test_the_probe_counts_in_the_precision_that_it_runs_in(search_values, tmp_path):
    def hours(**hypergradient):
        search_values["engine"] = {"dtype": "bf16"}
        search_values["hypergradient"] |= hypergradient
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump(search_values))
        config = load_config(file)
        return make_plan(config, check_inputs(config, 2), ranks=2)

    plan = hours(estimator="finite_difference")
    rest = plan.training_flops + plan.outer_flops - plan.probe_flops
    seconds = (plan.probe_flops / 67e12 + rest / 989e12) / 2 / 0.3
    assert plan.hours == pytest.approx(seconds / 3600)
    assert hours(estimator="per_source").probe_flops == 0


def test_buckets_offload_and_recomputation_are_counted(search_values, tmp_path):
    plan = partial(changed_plan, search_values, tmp_path)
    search_values["engine"] = {"zero_stage": 2}
    plain = plan()
    # DeepSpeed's buffer has 500 million elements, however small the model is.
    assert plain.memory[2].buckets == 4 * 500_000_000
    settings = tmp_path / "ds.json"
    settings.write_text(
        json.dumps(
            {
                "zero_optimization": {
                    "reduce_bucket_size": 1000,
                    "overlap_comm": True,
                    "offload_optimizer": {"device": "cpu"},
                }
            }
        )
    )
    small = plan(engine={"deepspeed_config": str(settings)})
    assert small.memory[2].buckets == 2 * 4 * 1000
    assert small.memory[2].optimizer == 0 < plain.memory[2].optimizer
    deep = plan(proxy={"num_layers": 20})
    again = plan(proxy={"num_layers": 20, "recompute_granularity": "full"})
    assert again.activations < deep.activations / 2
    assert again.hours == pytest.approx(deep.hours * 4 / 3)
    # What modules read is kept then, beside a layer's input.
    watched = plan(
        proxy={"num_layers": 20, "recompute_granularity": "full"},
        hypergradient={"estimator": "one_pass", "probe": "training"},
        mixture={"weighting": "sampling"},
    )
    assert 2 * again.activations < watched.activations < 0.6 * deep.activations


def test_what_a_rank_holds_follows_the_search(search_values, tmp_path):
    plan = partial(changed_plan, search_values, tmp_path)
    search_values["hypergradient"]["estimator"] = "one_pass"
    plain = plan()
    both = plan(objective={"train_loss_weight": 0.2}, hypergradient={"per_target": True})
    assert both.memory[2].outer_step == 2 * plain.memory[2].outer_step
    # The whole model, before DeepSpeed shards it.
    assert plain.memory[3].at_start == 4 * plain.parameters
    assert plain.memory[3].total >= plain.memory[3].at_start
    split = plan(engine={"tensor_model_parallel_size": 2}, ranks=4)
    assert plain.activations / 2 < split.activations < plain.activations
    wide = plan(proxy={"ffn_hidden_size": 4096})
    batch = wide.activations - plain.activations
    assert batch > 4 * 4096 * load_config(tmp_path / "plan.yaml").data.seq_length
    masked = plan(data={"reset_attention_mask": True})
    config = load_config(tmp_path / "plan.yaml")
    tokens = config.training.micro_batch_size * config.data.seq_length
    assert masked.activations - plain.activations == tokens * config.data.seq_length * 5


@pytest.mark.parametrize("text", ["300B", "3e11", "300_000_000_000", "0.3T", "300000M", "300b"])
def test_tokens_are_read_as_people_write_them(text):
    assert token_count(text) == 300_000_000_000


@pytest.mark.parametrize("text", ["", "B", "many", "-3B", "nan", "0"])
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="300B"):
        token_count(text)
