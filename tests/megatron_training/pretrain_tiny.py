"""A pre-training script as users have it, on the CPU: it knows nothing of fastmix.

Arguments, datasets, sampler, loader, step and log are `megatron.training`'s own. It also writes
what the tests compare with: the loss of every source by the `dataset_id` of its batches, which
Megatron's own scripts drop.
"""

import json
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.enums import ModelType
from megatron.core.num_microbatches_calculator import (
    get_num_microbatches,
    update_num_microbatches,
)
from megatron.core.rerun_state_machine import RerunDataIterator
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.core.utils import get_model_config
from megatron.training import checkpointing, get_args, get_timers, training
from megatron.training.arguments import parse_and_validate_args
from megatron.training.datasets.data_samplers import build_pretraining_data_loader
from megatron.training.global_vars import get_tensorboard_writer
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_fastmix.config import ProxyConfig
from megatron_fastmix.proxy.megatron_gpt import build_proxy
from tests.megatron_training.cpu_names import CudaMeansCpu

seen = []


class Optimizer:
    """Plain SGD over gloo with the face of Megatron's optimizers."""

    def __init__(self, model):
        self.model = model
        self.sgd = torch.optim.SGD(model.parameters(), lr=get_args().lr)

    def zero_grad(self):
        self.sgd.zero_grad()

    def scale_loss(self, loss):
        return loss

    def step(self):
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=mpu.get_data_parallel_group())
        self.sgd.step()
        return True, 1.0, 0


class Scheduler:
    def step(self, increment):
        pass


def train_valid_test_datasets_provider(sizes):
    args = get_args()
    blend, per_split = get_blend_and_blend_per_split(args)
    config = GPTDatasetConfig(
        random_seed=args.seed,
        sequence_length=args.seq_length,
        blend=blend,
        blend_per_split=per_split,
        split=args.split,
        path_to_cache=args.data_cache_path,
        tokenizer=build_tokenizer(args),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )

    def built_here():
        return mpu.get_tensor_model_parallel_rank() == 0

    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, built_here, config).build()


def loss_func(loss_mask, output_tensor, model=None):
    losses = output_tensor.view(-1).float()
    loss_mask = loss_mask.view(-1).float()
    loss = torch.sum(losses * loss_mask)
    num_tokens = loss_mask.sum().clone().detach().to(torch.int)
    report = {"lm loss": torch.cat([loss.clone().detach().view(1), num_tokens.view(1)])}
    return loss, num_tokens, report


def get_batch(data_iterator):
    group = mpu.get_tensor_model_parallel_group()
    batch = [next(data_iterator) if mpu.get_tensor_model_parallel_rank() == 0 else None]
    dist.broadcast_object_list(batch, mpu.get_tensor_model_parallel_src_rank(), group=group)
    return batch[0]


def forward_step(data_iterator, model):
    batch = get_batch(data_iterator)
    output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    if mpu.get_tensor_model_parallel_rank() == 0:
        sums = (output.detach() * (batch["loss_mask"] != 0)).sum(1).tolist()
        for source, loss in zip(batch["dataset_id"].tolist(), sums, strict=True):
            seen.append([source, loss, output.shape[1]])
    return output, partial(loss_func, batch["loss_mask"], model=model)


def extra_args_provider(parser):
    parser.add_argument("--tiny-output", required=True)
    return parser


def main():
    args = parse_and_validate_args(
        extra_args_provider=extra_args_provider, args_defaults={"tokenizer_type": "NullTokenizer"}
    )
    if not dist.is_initialized():
        dist.init_process_group(args.distributed_backend)
    mpu.initialize_model_parallel(args.tensor_model_parallel_size)
    model = build_proxy(
        ProxyConfig(num_layers=1, hidden_size=32, num_attention_heads=2),
        vocab_size=512,
        seq_length=args.seq_length,
        seed=args.seed,
        tensor_model_parallel_size=args.tensor_model_parallel_size,
    )
    model.model_type = ModelType.encoder_or_decoder
    model.zero_grad_buffer = lambda: None
    config = get_model_config(model)
    config.calculate_per_token_loss = args.calculate_per_token_loss
    optimizer = Optimizer(model)
    args.iteration = 0
    if args.load:
        load(model)
    train = train_valid_test_datasets_provider([1000, args.global_batch_size, 0])[0]
    loader = build_pretraining_data_loader(train, args.consumed_train_samples)
    iterator = None if loader is None else RerunDataIterator(iter(loader))
    passes = training.get_forward_backward_func()
    totals = {}
    get_timers()("interval-time", log_level=0).start(barrier=True)
    for iteration in range(args.iteration, args.train_iters):
        args.curr_iteration = iteration
        update_num_microbatches(args.consumed_train_samples, consistency_check=False)
        losses, skipped, *_ = training.train_step(
            forward_step, iterator, [model], optimizer, Scheduler(), config, passes, iteration
        )
        args.consumed_train_samples += (
            mpu.get_data_parallel_world_size() * args.micro_batch_size * get_num_microbatches()
        )
        training.training_log(
            losses, totals, args.lr, iteration + 1, 1.0, False, skipped, 1.0, None, None, None
        )
        if args.save and (iteration + 1) % args.save_interval == 0:
            save(model, iteration + 1)
    if get_tensorboard_writer():
        get_tensorboard_writer().flush()
    Path(args.tiny_output, f"{dist.get_rank()}.json").write_text(json.dumps(seen))


def save(model, iteration):
    args = get_args()
    state = checkpointing.generate_state_dict(args, [model], None, None, None, iteration)
    if dist.get_rank() == 0:
        torch.save(state, Path(args.save, f"{iteration}.pt"))
    dist.barrier()


def load(model):
    args = get_args()
    state = torch.load(args.load, weights_only=False)
    model.load_state_dict(state["model"], strict=True)
    checkpointing.set_checkpoint_version(state["checkpoint_version"])
    checkpointing.check_checkpoint_args(state["args"])
    args.iteration = state["iteration"]
    args.consumed_train_samples = state["args"].consumed_train_samples


if __name__ == "__main__":
    with CudaMeansCpu():
        main()
