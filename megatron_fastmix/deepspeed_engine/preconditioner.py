"""Adam's second moment, in the form in which each ZeRO stage keeps it, applied to a vector v."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_fastmix.parallel.parameters import Vector


class AdamPreconditioner:
    """P⁻¹v with P = diag(√v̂ + eps): AdamW's own step divides the gradient by the same P.

    The derivative of one AdamW step with respect to α_k is −η·P⁻¹∇L_k, but for a factor that all
    sources share and for the slow change of P itself; so ⟨P⁻¹v, ∇L_k⟩ replaces ⟨v, ∇L_k⟩.
    """

    def __init__(self, engine: Any, beta2: float, eps: float) -> None:
        """`engine` is a DeepSpeed engine around AdamW that has taken a step."""
        self.engine = engine
        self.beta2 = beta2
        self.eps = eps

    def __call__(self, parameters: Sequence[torch.nn.Parameter], vector: Vector) -> None:
        """Divides `vector`, parts of `parameters`, in place. Every rank must call."""
        if self.engine.zero_optimization_stage() in (1, 2):
            # DeepSpeed (0.19) links Adam's state after the first parameter group's first step, when
            # the other groups have none yet, and never again.
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()
        correction = 1 - self.beta2**self.engine.global_steps
        for parameter, part in zip(parameters, vector, strict=True):
            moment = self._second_moment(parameter).view_as(part)
            part.div_((moment / correction).sqrt_().add_(self.eps))

    def _second_moment(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The second moment of a parameter, or of this rank's shard under ZeRO-3."""
        from deepspeed.utils import safe_get_full_optimizer_state, safe_get_local_optimizer_state

        key, optimizer = "exp_avg_sq", self.engine.optimizer
        stage = self.engine.zero_optimization_stage()
        if stage == 3:
            moment = safe_get_local_optimizer_state(parameter, key)
        elif stage > 0:
            moment = safe_get_full_optimizer_state(parameter, key)
        elif hasattr(optimizer, "fp32_groups"):
            moment = optimizer.optimizer.state[_master_copy(optimizer, parameter)][key]
        else:
            moment = optimizer.state[parameter][key]
        assert moment is not None, "the optimizer has taken no step"
        return moment


def _master_copy(optimizer: Any, parameter: torch.nn.Parameter) -> torch.Tensor:
    """The fp32 copy of a bf16 parameter without ZeRO."""
    for group, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for candidate, master in zip(group, masters, strict=True):
            if candidate is parameter:
                return master
    raise AssertionError("the optimizer does not hold this parameter")
