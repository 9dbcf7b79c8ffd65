"""Cross-entropy by token: its values, and the tensors in fp32 that it and Megatron's make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_fastmix.proxy import token_cross_entropy as subject
from megatron_fastmix.proxy.megatron_gpt import initialize_world_of_one
from megatron_fastmix.proxy.token_cross_entropy import token_cross_entropy

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
TOKENS, VOCABULARY = (2, 9), 50


def torchs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), labels, reduction="none"
    )


def megatrons(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As `GPTModel` computes it: tokens first."""
    return vocab_parallel_cross_entropy(
        logits.transpose(0, 1).contiguous(), labels.t().contiguous()
    ).t()


def example(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(*TOKENS, VOCABULARY, generator=generator)
    labels = torch.randint(VOCABULARY, TOKENS, generator=generator)
    return logits.to(dtype), labels, torch.randn(TOKENS, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("elements", [1, 4 * VOCABULARY, 1 << 24])
def test_losses_and_gradients_are_torchs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, elements: int
) -> None:
    monkeypatch.setattr(subject, "ELEMENTS", elements)
    logits, labels, weights = example(dtype)
    results = []
    for losses in (token_cross_entropy, torchs):
        leaf = logits.clone().requires_grad_()
        found = losses(leaf, labels)
        (gradient,) = torch.autograd.grad((found * weights).sum(), leaf)
        assert gradient.dtype is dtype
        results.append((found.detach(), gradient))
    (found, gradient), (expected, expected_gradient) = results
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    rounding = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 8e-3, "atol": 0}
    torch.testing.assert_close(gradient, expected_gradient, **rounding)


def test_logits_that_a_sum_of_powers_would_overflow_on() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert token_cross_entropy(logits, torch.tensor([1])).tolist() == [2e4]


class CountLarge(TorchDispatchMode):
    """Counts the new storages in fp32 that are as large as the logits."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel = numel
        self.storages: list[torch.UntypedStorage] = []
        """Kept, so that no address is given out twice."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.dtype is torch.float32:
                storage = tensor.untyped_storage()
                known = [s.data_ptr() for s in self.storages]
                if storage.nbytes() >= 4 * self.numel and storage.data_ptr() not in known:
                    self.storages.append(storage)
        return result


def large_in_fp32(losses: Losses) -> int:
    """New fp32 storages as large as bf16 logits, in both passes."""
    logits, labels, weights = example(torch.bfloat16)
    leaf = logits.requires_grad_()
    with CountLarge(leaf.numel()) as counting:
        torch.autograd.grad((losses(leaf, labels) * weights).sum(), leaf)
    return len(counting.storages)


def test_no_second_copy_of_the_logits_is_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "ELEMENTS", 4 * VOCABULARY)
    assert large_in_fp32(token_cross_entropy) == 0
    initialize_world_of_one()
    try:
        # Megatron-core's own turns one into the softmax, and that into the gradient.
        assert large_in_fp32(megatrons) == 1
    finally:
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()
    assert large_in_fp32(torchs) >= 2  # or the count would see nothing
