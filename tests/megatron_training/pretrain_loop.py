"""A pre-training script as users have it, around `megatron.training.pretrain`; also on a GPU.

Datasets, loaders, schedules, evaluation, checkpoints and logs are Megatron's own; so are the model
and its parallelism, unless `--tokenwise` asks for one without attention: Megatron's own attention
needs Transformer Engine under context parallelism. It knows nothing of fastmix, and writes what
the tests compare with: the loss of every source by the `dataset_id` of its batches.
"""

import contextlib
import json
from functools import partial
from pathlib import Path

import megatron.core.datasets.utils as datasets_utils
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.enums import ModelType
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.core.transformer.module import MegatronModule
from megatron.core.utils import (
    get_attr_wrapped_model,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
)
from megatron.training import get_args, pretrain
from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
from megatron.training.arguments import core_transformer_config_from_args, parse_and_validate_args
from megatron.training.utils import get_blend_and_blend_per_split, is_first_or_last_pipeline_stage

from tests.megatron_training.cpu_names import CudaMeansCpu

KEYS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask", "cu_seqlens")
seen = []


class Tokenwise(MegatronModule):
    """Predicts every token from the one before it."""

    def __init__(self, config, vocab_size):
        super().__init__(config)
        self.pg_collection = ProcessGroupCollection.use_mpu_process_groups()
        self.share_embeddings_and_output_weights, self.vp_stage = False, None
        self.embedding = torch.nn.Embedding(vocab_size, config.hidden_size)
        self.output = torch.nn.Linear(config.hidden_size, vocab_size)

    def set_input_tensor(self, tensor):
        pass

    def forward(self, tokens, position_ids, attention_mask, labels=None):
        logits = self.output(self.embedding(tokens))
        return torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")


def tokenwise_provider(pre_process, post_process, vp_stage=None, config=None, pg_collection=None):
    args = get_args()
    config = config or core_transformer_config_from_args(args)
    torch.manual_seed(args.seed)
    return Tokenwise(config, args.padded_vocab_size)


def train_valid_test_datasets_provider(sizes, vp_stage=None):
    args = get_args()
    blend, per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=per_split,
        split=args.split,
        multiple_validation_sets=args.multiple_validation_sets,
        full_validation=args.full_validation,
        path_to_cache=args.data_cache_path,
        tokenizer=build_tokenizer(args),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )

    def built_here():
        return mpu.get_tensor_model_parallel_rank() == 0 and is_first_or_last_pipeline_stage(
            vp_stage
        )

    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, built_here, config).build()


train_valid_test_datasets_provider.is_distributed = True


def get_batch(data_iterator, vp_stage):
    """The batch of this rank, with the sources of its rows where it comes from the loader."""
    if not is_first_or_last_pipeline_stage(vp_stage):
        return dict.fromkeys(KEYS), None
    args = get_args()
    batch, sources = {}, None
    if mpu.get_tensor_model_parallel_rank() == 0:
        read = next(data_iterator)
        sources = read.get("dataset_id")
        batch = {key: None if read.get(key) is None else read[key].cuda() for key in KEYS}
    batch = get_batch_on_this_tp_rank(
        batch,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        has_cu_seqlens=False,
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=False,
        cp_size=args.context_parallel_size,
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=False,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(),
    )
    batch = get_batch_on_this_cp_rank(
        batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group()
    )
    return batch, sources


def loss_func(loss_mask, sources, output_tensor, model=None):
    losses = output_tensor.view(-1).float()
    mask = loss_mask.view(-1).float()
    loss = torch.sum(losses * mask)
    num_tokens = mask.sum().clone().detach().to(torch.int)
    if sources is not None and torch.is_grad_enabled():
        sums = (output_tensor.detach().float() * (loss_mask != 0)).sum(1).tolist()
        for source, total in zip(sources, sums, strict=True):
            seen.append([source, total, output_tensor.shape[1]])
    return loss, num_tokens, {"lm loss": torch.stack([loss.detach(), num_tokens.float()])}


def forward_step(data_iterator, model):
    batch, sources = get_batch(data_iterator, get_attr_wrapped_model(model, "vp_stage"))
    output = model(
        batch["tokens"], batch["position_ids"], batch["attention_mask"], labels=batch["labels"]
    )
    sources = None if sources is None else sources.tolist()
    return output, partial(loss_func, batch["loss_mask"], sources, model=model)


def extra_args_provider(parser):
    parser.add_argument("--tiny-output", required=True)
    parser.add_argument("--tokenwise", action="store_true")
    return parser


def main():
    args = parse_and_validate_args(
        extra_args_provider=extra_args_provider, args_defaults={"tokenizer_type": "NullTokenizer"}
    )
    model = None if args.tokenwise else gpt_config_from_args(args)
    pretrain(
        pretrain_cfg_container_from_args(args, model),
        train_valid_test_datasets_provider,
        ModelType.encoder_or_decoder,
        forward_step,
        model_provider=tokenwise_provider if args.tokenwise else None,
    )
    Path(args.tiny_output, f"{dist.get_rank()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    # A wheel has these compiled and no Makefile, which is for checkouts.
    datasets_utils.compile_helpers = lambda: None
    with contextlib.nullcontext() if torch.cuda.is_available() else CudaMeansCpu():
        main()
