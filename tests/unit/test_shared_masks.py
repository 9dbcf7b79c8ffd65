"""Who attends to whom, and what of it every layer saves."""

import torch

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.proxy.megatron_gpt import build_proxy, initialize_world_of_one


def test_layers_share_what_a_mask_adds_to_scores():
    initialize_world_of_one()
    config = ProxyConfig(num_layers=4, hidden_size=32, num_attention_heads=2)
    model = build_proxy(config, vocab_size=64, seq_length=48, seed=1)
    tokens = torch.arange(96).reshape(2, 48) % 64
    positions = torch.arange(48).repeat(2, 1)
    # Two documents of 24 tokens in each row.
    document = torch.arange(48) // 24
    apart = document[:, None] != document[None]
    mask = (apart | torch.ones(48, 48, dtype=torch.bool).triu(1)).expand(2, 1, 48, 48).clone()
    saved = {}

    def keep(tensor):
        if tensor.shape == mask.shape:
            saved[tensor.untyped_storage().data_ptr()] = tensor.dtype
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        both = model(tokens, positions, mask, labels=tokens)
    assert len(saved) <= 1
    alone = model(tokens[:, 24:], positions[:, 24:], None, labels=tokens[:, 24:])
    torch.testing.assert_close(both[:, 24:], alone)
