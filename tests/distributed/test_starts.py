"""What a proxy starts from: checkpoints of Megatron, earlier searches, Hugging Face folders."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.forked_ranks import run_ranks
from megatron_fastmix.search.inputs import check_inputs
from megatron_fastmix.search.loop import Search
from tests.cases import slow
from tests.distributed.searches import load, parameters_of, run_search
from tests.distributed.test_pretrained import make_model

pytestmark = pytest.mark.slow


def proxy_of(config: Any, seed: int) -> Any:
    from megatron_fastmix.corpus.tokenizers import load_tokenizer
    from megatron_fastmix.proxy.megatron_gpt import build_proxy, initialize_parallel_state

    size = config.engine.tensor_model_parallel_size
    initialize_parallel_state(size)
    return build_proxy(
        config.proxy,
        vocab_size=load_tokenizer("ByteLevelTokenizer").vocab_size,
        seq_length=config.data.seq_length,
        seed=seed,
        tensor_model_parallel_size=size,
    )


def flat(model: Any) -> np.ndarray:
    return np.concatenate([p.detach().double().flatten().numpy() for p in model.parameters()])


def write_with_megatron(config: Any, folder: Path, arguments: dict[str, Any] | None = None) -> None:
    """As Megatron's trainer writes `--ckpt-format torch_dist`, its arguments beside the model."""
    import torch
    from megatron.core import dist_checkpointing

    # The writer waits for the GPU before it reads tensors; here there is nothing to wait for.
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: "cpu"
    (folder / "iter_0000007").mkdir(parents=True, exist_ok=True)
    state = proxy_of(config, seed=77).sharded_state_dict()
    state["args"] = argparse.Namespace(**(arguments or {}))
    dist_checkpointing.save(state, str(folder / "iter_0000007"))
    (folder / "latest_checkpointed_iteration.txt").write_text("7")


def initial_and_expected(config: Any) -> tuple[np.ndarray, np.ndarray]:
    import dataclasses

    fresh = dataclasses.replace(config.proxy, checkpoint=None)
    found = parameters_of(Search(config))
    return found, flat(proxy_of(dataclasses.replace(config, proxy=fresh), seed=77))


@pytest.mark.parametrize(
    ("written", "ranks", "split", "stage", "shape"),
    [
        (2, 2, 1, 3, {}),
        (1, 2, 2, 2, {"num_query_groups": 2, "untie_embeddings_and_output_weights": True}),
        slow(1, 1, 1, 0, {"normalization": "LayerNorm", "qk_layernorm": True}),
        slow(1, 2, 1, 2, {"num_experts": 4}),
    ],
)
def test_a_search_starts_from_a_checkpoint_of_megatron(
    search_values: dict,
    tmp_path: Path,
    written: int,
    ranks: int,
    split: int,
    stage: int,
    shape: dict[str, Any],
) -> None:
    search_values["proxy"] |= shape
    there = load(search_values, **{"engine.tensor_model_parallel_size": written})
    run_ranks(written, write_with_megatron, there, tmp_path / "megatron")
    config = load(
        search_values,
        **{
            "proxy.checkpoint": tmp_path / "megatron",
            "engine.zero_stage": stage,
            "engine.tensor_model_parallel_size": split,
        },
    )
    for found, expected in run_ranks(ranks, initial_and_expected, config):
        np.testing.assert_array_equal(found, expected)


def refused_start(config: Any) -> str:
    from megatron_fastmix.errors import CheckpointError

    with pytest.raises(CheckpointError) as caught:
        Search(config)
    return str(caught.value)


def test_a_checkpoint_of_another_model_is_refused_by_name(
    search_values: dict, tmp_path: Path
) -> None:
    run_ranks(1, write_with_megatron, load(search_values), tmp_path / "megatron")
    changes = {"proxy.checkpoint": tmp_path / "megatron" / "iter_0000007"}
    other = load(search_values, **changes, **{"proxy.ffn_hidden_size": 64})
    (message,) = run_ranks(1, refused_start, other)
    assert "linear_fc1.weight" in message
    assert "there" in message
    other = load(search_values, **changes, **{"proxy.qk_layernorm": True})
    (message,) = run_ranks(1, refused_start, other)
    assert "q_layernorm.weight: only here" in message


def write_with_biases(config: Any, folder: Path) -> None:
    """A model of Megatron's defaults: linear layers with biases, a table of positions."""
    import dataclasses

    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.models.gpt.gpt_model import GPTModel

    from megatron_fastmix.proxy.megatron_gpt import initialize_parallel_state
    from megatron_fastmix.proxy.megatron_layers import gpt_block, transformer_config

    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: "cpu"
    initialize_parallel_state()
    model = GPTModel(
        config=dataclasses.replace(
            transformer_config(config.proxy, torch.float32, 1), add_bias_linear=True
        ),
        transformer_layer_spec=gpt_block(config.proxy),
        vocab_size=config.proxy.make_vocab_size_divisible_by * 2,
        max_sequence_length=config.data.seq_length,
        position_embedding_type="learned_absolute",
    )
    folder.mkdir()
    dist_checkpointing.save(model.sharded_state_dict(), str(folder))


def test_weights_that_only_the_checkpoint_has_are_not_lost(
    search_values: dict, tmp_path: Path
) -> None:
    config = load(search_values)
    run_ranks(1, write_with_biases, config, tmp_path / "iter_0000001")
    other = load(search_values, **{"proxy.checkpoint": tmp_path / "iter_0000001"})
    (message,) = run_ranks(1, refused_start, other)
    assert "embedding.position_embeddings.weight: only there" in message
    assert "linear_fc1.bias: only there" in message


def test_settings_that_shapes_do_not_tell_are_compared(search_values: dict, tmp_path: Path) -> None:
    arguments = {"rotary_base": 500_000, "position_embedding_type": "rope", "rotary_percent": 1.0}
    run_ranks(1, write_with_megatron, load(search_values), tmp_path / "megatron", arguments)
    other = load(search_values, **{"proxy.checkpoint": tmp_path / "megatron"})
    (message,) = run_ranks(1, refused_start, other)
    assert "(rotary_base: 500000 there, 10000 here)" in message


def test_other_formats_are_refused_before_a_rank_starts(
    search_values: dict, tmp_path: Path
) -> None:
    folder = tmp_path / "iter_0000001"
    folder.mkdir()
    config = load(search_values, **{"proxy.checkpoint": tmp_path})
    with pytest.raises(ConfigError, match="neither the run folder of a search nor a"):
        check_inputs(config, 1)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1\n")
    with pytest.raises(ConfigError, match="no distributed checkpoint"):
        check_inputs(config, 1)
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": "zarr"}))
    with pytest.raises(ConfigError, match="of format zarr"):
        check_inputs(config, 1)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("2\n")
    with pytest.raises(ConfigError, match="is gone"):
        check_inputs(config, 1)


def target_losses(config: Any) -> list[float]:
    """Of the first outer step, before the proxy has moved."""
    search = Search(config)
    return search.outer_loop.step(1e-9).target_losses.tolist()


def final_target_losses(config: Any) -> list[float]:
    search = Search(config)
    assert search.run()
    return search.outer_loop.step(1e-9).target_losses.tolist()


@pytest.mark.parametrize(("there", "here"), [(2, 1), slow(1, 2), slow(2, 2)])
def test_an_earlier_search_may_have_split_its_layers_otherwise(
    search_values: dict, tmp_path: Path, there: int, here: int
) -> None:
    # 257 tokens: rows are padded to 272 at one size and to 288 at the other.
    search_values["proxy"] |= {"make_vocab_size_divisible_by": 16, "num_query_groups": 2}
    split = "engine.tensor_model_parallel_size"
    earlier = load(search_values, run_dir=tmp_path / "earlier", **{split: there})
    run_ranks(there, run_search, earlier)
    config = load(search_values, **{"proxy.checkpoint": earlier.run_dir, split: here})
    same = load(search_values, **{"proxy.checkpoint": earlier.run_dir, split: there})
    expected = run_ranks(there, target_losses, same)[0]
    found = run_ranks(here, target_losses, config)[0]
    # The padding rows that only one of them has take part in the softmax.
    np.testing.assert_allclose(found, expected, rtol=2e-2)
    fresh = run_ranks(1, target_losses, load(search_values))[0]
    assert expected[0] < fresh[0] - 0.1
    assert found[0] < fresh[0] - 0.1


def test_a_hugging_face_model_goes_on_with_plain_text(search_values: dict, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = str(make_model(tmp_path / "qwen2", "qwen2"))
    search_values["proxy"] = {"kind": "huggingface", "path": path}
    result = run_ranks(2, run_search, load(search_values, **{"engine.zero_stage": 3}))[0]
    assert result["complete"]
    assert result["losses"][-1] < result["losses"][0]
    assert not np.array_equal(result["history"][-1], result["history"][0])


def test_midtraining_goes_on_with_a_replay_source_and_forgets_neither_target(
    search_values: dict, corpora: Path, tmp_path: Path
) -> None:
    """As launch/quickstart_midtrain.sh: other sources than before, one of them a replay."""
    earlier = load(search_values, run_dir=tmp_path / "earlier", **{"training.train_iters": 20})
    run_ranks(1, run_search, earlier)
    names = {"replay": "forward", "new": "backward", "noise": "noise"}
    search_values["sources"] = [
        {"name": name, "path": str(corpora / path)} for name, path in names.items()
    ]
    search_values["targets"] = [
        {"name": "new_domain", "path": str(corpora / "target_backward")},
        {"name": "known", "path": str(corpora / "target")},
    ]
    search_values["objective"] = {"target_aggregation": "least_gain"}
    search_values["mixture"] |= {"optimizer": "scaled_mirror_descent", "lr": 0.5}
    changes = {"proxy.checkpoint": earlier.run_dir, "training.train_iters": 40}
    config = load(search_values, **changes)
    weights = run_ranks(2, run_search, config)[0]["history"][-1]
    # Noise helps neither target; each of the others helps one of them.
    assert weights[2] == weights.min()
    assert weights[2] < 0.25
    assert min(weights[0], weights[1]) > weights[2] + 0.05
