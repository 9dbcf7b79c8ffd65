"""What a search prints before anything is loaded. Imports no torch, whose import takes seconds."""

from __future__ import annotations

from megatron_fastmix.config import SearchConfig
from megatron_fastmix.proxy.megatron_cost import megatron_parameters
from megatron_fastmix.report.number_texts import amount
from megatron_fastmix.search.inputs import Inputs


def first_line(config: SearchConfig, inputs: Inputs, ranks: int) -> str:
    """Such as `6 sources, 1 target; 1.2 M parameters; 2 ranks; 400 steps, 20 outer steps; loading`.

    Of a proxy that is not Megatron's the model is named: counting would need torch.
    """
    if config.proxy.kind == "megatron":
        split = config.engine.tensor_model_parallel_size
        count = megatron_parameters(config.proxy, inputs.tokenizer.vocab_size, split)
        proxy = f"{amount(count)} parameters"
    else:
        proxy = str(config.proxy.path or config.proxy.provider)
    data = f"{_count(len(config.sources), 'source')}, {_count(len(config.targets), 'target')}"
    return (
        f"{data}; {proxy}; "
        f"{_count(ranks, 'rank')}; {_count(config.training.train_iters, 'step')}, "
        f"{_count(config.outer_steps, 'outer step')}; loading"
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
