"""The flags of a Megatron run, and what its own arguments must not say."""

import dataclasses
from argparse import Namespace
from pathlib import Path

import pytest

from megatron_fastmix.errors import ConfigError, DataError
from megatron_fastmix.megatron.argument_checks import (
    cache_note,
    check_arguments,
    check_blend,
    hides_sources,
    name_validation_sets,
)
from megatron_fastmix.megatron.options import RunOptions, help_text, split_arguments
from megatron_fastmix.megatron.run_mixture import read_run_mixture
from megatron_fastmix.result.mixture_file import write_mixture
from megatron_fastmix.result.sizes import Shard


def test_our_flags_are_told_from_theirs_wherever_they_stand():
    text = (
        "--fastmix-mixture runs/a pretrain_gpt.py --lr 1 --fastmix-max-epochs=web=4 --data-path 1 "
        "a --fastmix-max-epochs code=2.5 --bf16 --fastmix-weighting loss -x "
        "--fastmix-source web=/a,/b --fastmix-source web=/c --fastmix-no-loss-by-source"
    )
    options, command = split_arguments(text.split())
    assert " ".join(command) == "pretrain_gpt.py --lr 1 --data-path 1 a --bf16 -x"
    assert options == RunOptions(
        mixture=Path("runs/a"),
        weighting="loss",
        max_epochs={"web": 4.0, "code": 2.5},
        sources={"web": ("/a", "/b", "/c")},
        loss_by_source=False,
    )
    assert split_arguments(["-m", "pkg.train", "--fastmix-mixture", "r"])[1] == ["-m", "pkg.train"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("s.py", "--fastmix-mixture: missing; give a search's run folder"),
        ("--fastmix-mixture r", "no script; give a script, or -m MODULE"),
        ("-m --fastmix-mixture r", "no script"),
        ("s.py --fastmix-mixture", "--fastmix-mixture: has no value"),
        ("s.py --fastmix-mixture --lr", "--fastmix-mixture: has no value"),
        ("s.py --fastmix-mixture r --fastmix-mix q", "--fastmix-mix: no such flag; choose from"),
        ("s.py --fastmix-mixture r --fastmix-max-epochs 0", "found 0; use a number above 0"),
        ("s.py --fastmix-mixture r --fastmix-max-epochs inf", "found inf; use a number above 0"),
        ("s.py --fastmix-mixture r --fastmix-max-epochs a=x", "found a=x; use a number above 0"),
        ("s.py --fastmix-mixture r --fastmix-max-epochs 2 --fastmix-max-epochs a=1", "not both"),
        ("s.py --fastmix-mixture r --fastmix-source a", "found a; expected NAME=PATH"),
        ("s.py --fastmix-mixture r --fastmix-weighting up", "invalid choice: 'up'"),
        ("s.py --fastmix-mixture r --fastmix-block-size x", "invalid int value: 'x'"),
        ("s.py --fastmix-mixture r --fastmix-block-size 0", "block-size: found 0; use 1 or more"),
    ],
)
def test_flags_that_cannot_work_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        split_arguments(arguments.split())


def test_help_names_every_flag():
    flags = ["mixture", "schedule", "weighting", "max-epochs", "block-size", "source"]
    flags += ["no-loss-by-source", "accept-changes"]
    assert all(f"--fastmix-{flag}" in help_text() for flag in flags)


OPTIONS = RunOptions(mixture=Path("r"))


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"mock_data": True}, {}, "--mock-data has no sources"),
        ({"perform_rl_step": True}, {}, "--perform-rl-step trains on rollouts"),
        ({"phase_transition_iterations": [5]}, {}, "give the phases as --fastmix-schedule"),
        ({"dataloader_type": "external"}, {}, "use single"),
        ({"dataloader_type": "cyclic"}, {"schedule": Path("s")}, "cyclic shuffles the samples"),
        ({"calculate_per_token_loss": False}, {"weighting": "loss"}, "cancels the weights"),
    ],
)
def test_arguments_that_cancel_the_mixture_are_refused(given, options, message):
    with pytest.raises(ConfigError, match=message):
        check_arguments(Namespace(**given), RunOptions(mixture=Path("r"), **options))


def test_arguments_that_leave_the_mixture_alone_pass():
    check_arguments(Namespace(), OPTIONS)
    check_arguments(Namespace(dataloader_type="cyclic", mock_data=False), OPTIONS)
    per_token = Namespace(calculate_per_token_loss=True)
    check_arguments(per_token, RunOptions(mixture=Path("r"), weighting="loss"))
    check_blend((["a", "b"], [1.0, 2.0]))


def test_a_blend_without_weights_or_data_is_refused():
    with pytest.raises(ConfigError, match=r"lists a, b, c \.\.\. without weights"):
        check_blend((["a", "b", "c", "d"], None))
    with pytest.raises(ConfigError, match="no training data"):
        check_blend(None)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"dataloader_type": "cyclic"}, "--dataloader-type cyclic"),
        ({"hybrid_context_parallel": True}, "--hybrid-context-parallel: micro-batches are packed"),
        ({"dynamic_context_parallel": True}, "--dynamic-context-parallel"),
        ({"sequence_packing_scheduler": "dp_balanced"}, "--sequence-packing-scheduler"),
        ({"cuda_graph_impl": "full_iteration"}, "CUDA graphs"),
        ({"cuda_graph_scope": "full_iteration,attn"}, "CUDA graphs"),
        ({"sft": True, "context_parallel_size": 2}, "packed sequences"),
    ],
)
def test_what_hides_losses_by_source_is_named(given, reason):
    assert reason in hides_sources(Namespace(**given))


def test_ordinary_runs_show_losses_by_source():
    assert hides_sources(Namespace(dataloader_type="single", context_parallel_size=4)) is None
    assert hides_sources(Namespace(sft=True, context_parallel_size=1)) is None


def test_runs_that_only_read_caches_are_told_to_prepare_them():
    assert "prepare_cache.py" in cache_note(Namespace(dataloader_defer_npy_index_mmap=True))
    assert cache_note(Namespace(dataloader_fast_cache_load=False)) is None


def test_validation_sets_get_the_names_of_their_files():
    args = Namespace(validation_set_names=None)
    name_validation_sets(args, ["/v/web", "/v/code"])
    assert args.validation_set_names == ["web", "code"]
    args = Namespace(validation_set_names=None)
    name_validation_sets(args, ["/web/v", "/code/v"])
    assert args.validation_set_names == ["web_v", "code_v"]
    args = Namespace(validation_set_names=["a", "b"])
    name_validation_sets(args, ["/v/web", "/v/code"])
    assert args.validation_set_names == ["a", "b"]
    older = Namespace()
    name_validation_sets(older, ["/v/web", "/v/code"])
    assert older == Namespace()


def test_a_run_folders_mixture_is_matched_and_loses_what_has_no_weight(make_mixture, tmp_path):
    # The run's own blend.txt leaves out what rounds to 0, too.
    mixture = make_mixture({"web": 0.75, "code": 0.25 - 2e-5, "idle": 0.0, "rare": 2e-5})
    write_mixture(tmp_path / "mixture.json", mixture)
    asked = read_run_mixture(RunOptions(mixture=tmp_path))
    matched = asked.matched(["/data/code", "/data/web"])
    assert dict(matched.schedule.changes[0].weights) == {"web": 0.75, "code": 0.25 - 2e-5}
    assert matched.paths == {"web": ("/data/web",), "code": ("/data/code",)}
    every = ["/data/idle", "/data/code", "/data/web", "/data/rare"]
    assert set(asked.matched(every).paths) == set(asked.paths)
    with pytest.raises(DataError, match=r"sources without a dataset in the blend: code \(/data/co"):
        asked.matched(["/data/web"])


def test_shares_of_answers_become_shares_of_rows(make_mixture, tmp_path):
    mixture = make_mixture({"web": 0.75, "code": 0.25})
    sources = tuple(
        dataclasses.replace(
            source,
            shards=(Shard(path=source.prefixes[0], tokens=900, loss_tokens=answers, rows=10),),
        )
        for source, answers in zip(mixture.sources, (300, 100), strict=True)
    )
    write_mixture(tmp_path / "mixture.json", dataclasses.replace(mixture, sources=sources))
    options = RunOptions(mixture=tmp_path)
    with pytest.raises(ConfigError, match="shares of answer tokens"):
        read_run_mixture(options)
    # A row of web has three times the answer tokens of one of code.
    weights = read_run_mixture(options, rows=True).schedule.changes[0].weights
    assert dict(weights) == pytest.approx({"web": 0.5, "code": 0.5})


def test_every_dataset_of_a_source_is_its_source(make_mixture, tmp_path):
    mixture = make_mixture({"web": 0.75, "code": 0.25})
    web, code = mixture.sources
    two = tuple(Shard(path=f"/d/w{number}", tokens=50, loss_tokens=50, rows=5) for number in (1, 2))
    sources = (dataclasses.replace(web, shards=two), code)
    write_mixture(tmp_path / "mixture.json", dataclasses.replace(mixture, sources=sources))
    asked = read_run_mixture(RunOptions(mixture=tmp_path))
    matched = asked.matched(["/d/w2", "/data/code", "/d/w1"])
    assert matched.paths == {"web": ("/d/w2", "/d/w1"), "code": ("/data/code",)}


def test_a_schedule_alone_needs_the_paths(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("schedule:\n- at_sample: 0\n  weights: {web: 1, code: 3}\n")
    with pytest.raises(ConfigError, match="web, code: no path known"):
        read_run_mixture(RunOptions(schedule=path))
    sources = {"web": ("/w",), "code": ("/c",)}
    asked = read_run_mixture(RunOptions(schedule=path, sources=sources))
    assert asked.paths == sources
    with pytest.raises(ConfigError, match="max-epochs wbe: no such source; the mixture"):
        read_run_mixture(RunOptions(schedule=path, sources=sources, max_epochs={"wbe": 2.0}))
