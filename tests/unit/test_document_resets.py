"""Documents of one sample apart, as Megatron's --reset-position-ids and --reset-attention-mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

from megatron_fastmix.batch.batch import Batch, Role
from megatron_fastmix.batch.document_resets import documents_of
from megatron_fastmix.batch.packing import collate, packed_mask
from megatron_fastmix.config import ProxyConfig, SearchConfig, strict_yaml
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.hypergradient.one_pass import OnePass
from megatron_fastmix.parallel.groups import DataParallelGroup
from megatron_fastmix.parallel.parameters import Parameters
from megatron_fastmix.proxy.attention import _added_to_scores
from megatron_fastmix.proxy.megatron_gpt import (
    batch_losses,
    batch_token_losses,
    build_proxy,
    initialize_world_of_one,
)
from tests.conftest import synthetic_documents
from tests.unit.every_batch import every_batch

END = 7
BOTH = [(True, True), (True, False), (False, True)]


@pytest.mark.parametrize("length", [13, 16])
def test_all_layers_share_the_mask_that_is_added_to_scores(length: int) -> None:
    mask = packed_mask(torch.arange(length).expand(2, length) // 5)
    added = _added_to_scores(mask, torch.bfloat16)
    assert _added_to_scores(mask, torch.bfloat16) is added
    assert added.equal(torch.zeros(mask.shape).masked_fill(mask, -torch.inf))
    # Else torch's preprocess_mask pads a copy in each layer, for the kernel that takes masks.
    assert added.stride(-1) == 1 and all(stride % 8 == 0 for stride in added.stride()[:-1])


@pytest.mark.parametrize(("positions", "attention"), BOTH)
def test_every_batch_is_as_megatron_makes_it(
    search_values: dict, tmp_path: Path, positions: bool, attention: bool
) -> None:
    tokenizer = load_tokenizer("ByteLevelTokenizer")
    search_values["data"] |= {"reset_position_ids": positions, "reset_attention_mask": attention}
    search_values["objective"] = {"train_loss_weight": 0.1}

    def documents(number: int) -> list[list[int]]:
        return [[*d[:9], tokenizer.eod] for d in synthetic_documents("noise", 60, number)]

    read = every_batch(search_values, tmp_path, tokenizer, documents)
    roles = set()
    for batch in read:
        roles |= set(batch.role.tolist())
        mask = None if batch.blocks is None else packed_mask(batch.blocks)
        assert (mask is None) != attention
        assert (batch.positions is None) != positions
        for row, tokens in enumerate(batch.tokens):
            expected, _, places = _get_ltor_masks_and_position_ids(
                tokens, tokenizer.eod, positions, attention, False, True
            )
            if mask is not None:
                assert mask[row].equal(expected)
            if batch.positions is not None:
                assert batch.positions[row].equal(places)
    assert roles >= {Role.SOURCE, Role.TARGET}


def sample(number: int, *lengths: int) -> dict[str, torch.Tensor]:
    """Text of documents of these lengths, the last of which goes on."""
    generator = torch.Generator().manual_seed(number)
    ids = torch.randint(8, 64, (sum(lengths) + 1,), generator=generator)
    ids[torch.tensor(lengths).cumsum(0)[:-1] - 1] = END
    tokens = ids[:-1]
    _, loss_mask, positions = _get_ltor_masks_and_position_ids(
        tokens, END, True, True, False, False
    )
    return {
        "tokens": tokens,
        "labels": ids[1:],
        "loss_mask": loss_mask,
        "positions": positions,
        "blocks": documents_of(tokens, END),
    }


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    initialize_world_of_one()
    proxy = ProxyConfig(num_layers=2, hidden_size=32, num_attention_heads=2)
    return build_proxy(proxy, vocab_size=64, seq_length=16, seed=1)


TEXT = [sample(1, 5, 4, 3), sample(2, 12), sample(3, 1, 10, 1)]
ROWS = [
    {
        **{key: torch.arange(8, 8 + n) for key in ("tokens", "labels")},
        "loss_mask": (torch.arange(n) > 2).float(),
        "tokens_per_sample": 4.0,
    }
    for n in (5, 7)
]


@pytest.mark.parametrize("rows", [[], ROWS], ids=["text", "text and answers"])
def test_losses_are_those_of_each_document_alone(model: torch.nn.Module, rows: list) -> None:
    samples = [*TEXT, *rows]
    batch = Batch.of_sources(np.arange(len(samples)), **collate(samples, 12, True))
    found = batch_losses(model, batch)
    for number, each in enumerate(samples):
        parts = each["blocks"] if "blocks" in each else torch.zeros(len(each["tokens"]))
        total = 0.0
        for block in parts.unique():
            alone = {k: each[k][parts == block] for k in ("tokens", "labels", "loss_mask")}
            document = Batch.of_sources(np.zeros(1, int), **collate([alone], 12, False))
            total += float(batch_token_losses(model, document).detach().sum())
        divisor = each.get("tokens_per_sample", 12)
        assert float(found[number]) == pytest.approx(total / divisor, rel=1e-5)


@pytest.mark.parametrize("rows", [[], ROWS], ids=["text", "text and answers"])
def test_one_pass_has_the_products_of_a_backward_pass_each(
    model: torch.nn.Module, rows: list
) -> None:
    samples = [*TEXT, *rows]
    batch = Batch.of_sources(np.arange(len(samples)), **collate(samples, 12, True))
    parameters = Parameters(list(model.parameters()), DataParallelGroup())
    target = Batch.of_sources(np.zeros(1, int), **collate([sample(9, 6, 6)], 12, False))
    v = parameters.zeros()
    parameters.accumulate_gradient(batch_losses(model, target).mean(), v)
    expected = []
    for number in range(len(samples)):
        gradient = torch.autograd.grad(
            batch_losses(model, batch)[number], list(model.parameters()), allow_unused=True
        )
        pairs = zip(gradient, v, strict=True)
        expected.append(sum(float((g * part).sum()) for g, part in pairs if g is not None))
    found = OnePass(model, parameters).products(lambda b: batch_losses(model, b), batch, [v])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-6)


def test_models_of_hugging_face_take_both_or_none(search_values: dict) -> None:
    search_values["proxy"] = {"kind": "huggingface", "path": "model"}
    search_values["data"]["reset_attention_mask"] = True
    with pytest.raises(ConfigError, match="set both alike with"):
        strict_yaml.from_dict(SearchConfig, search_values)
