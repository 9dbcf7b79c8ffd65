"""Flags of Megatron and DeepSpeed that are no key here, and what stands for them."""

from __future__ import annotations

MEANINGS = {
    "bf16": "engine.dtype: bf16",
    "fp16": "engine.dtype: bf16 (fp16 is refused: the outer step has no loss scaling)",
    "data-path": "sources: [{name, path}, …]; `megatron-fastmix init --data-path …` writes them",
    "train-data-path": "sources: [{name, path}, …]",
    "valid-data-path": "targets: [{name, path}, …]",
    "data-args-path": "sources; `megatron-fastmix init --data-path FILE` writes them",
    "per-split-data-args-path": "sources (its train) and targets (its valid); `megatron-fastmix "
    "init --data-path FILE` writes them",
    "test-data-path": "not there: a search reads no test data; `megatron-fastmix compare-mixtures "
    "--test NAME=PREFIX` measures target models on them",
    "sft": "`megatron-fastmix preprocess --record-type TYPE` writes rows with answers, and of such "
    "a source the answers alone are learned",
    "save": "run_dir",
    "load": "proxy.checkpoint for what the proxy starts from; a search resumes from its run_dir",
    "finetune": "proxy.checkpoint takes the weights alone",
    "ckpt-format": "proxy.checkpoint reads torch_dist",
    "split": "`megatron-fastmix preprocess --split` makes a dataset of each part; a search reads "
    "datasets whole",
    "num-workers": "a thread reads ahead",
    "dataloader-type": "draws are a function of seed, mixture and step",
    "mock-data": "`megatron-fastmix demo`",
    "pretrained-checkpoint": "proxy.checkpoint, or proxy.path for a Hugging Face folder",
    "num-gpus": "`megatron-fastmix search --num-ranks N`",
    "nproc-per-node": "`megatron-fastmix search --num-ranks N`",
    "nnodes": "launch/search_multinode.sh and its hostfile, or sbatch launch/search.sbatch",
    "node-rank": "launch/search_multinode.sh and its hostfile, or torchrun's own",
    "local-rank": "set by the launcher in LOCAL_RANK",
    "num-query-groups": "proxy.num_query_groups",
    "group-query-attention": "proxy.num_query_groups alone switches it on",
    "num-experts": "proxy.num_experts",
    "position-embedding-type": "rope always; see proxy.rotary_base and proxy.rotary_percent",
    "max-position-embeddings": "data.seq_length alone",
    "expert-model-parallel-size": "not there: every rank holds all experts; engine.zero_stage: 3 "
    "shards them",
    "recompute-method": "proxy.recompute_granularity: full recomputes every layer",
    "recompute-num-layers": "proxy.recompute_granularity: full recomputes every layer",
    "transformer-impl": "local always: estimators need each layer's inputs",
    "use-flash-attn": "torch's scaled_dot_product_attention chooses the kernel",
    "attention-backend": "torch's scaled_dot_product_attention chooses the kernel",
    "swiglu": "always on",
    "disable-bias-linear": "always on",
    "recompute-activations": "proxy.recompute_granularity: full",
    "use-distributed-optimizer": "engine.zero_stage: 1, or 2 or 3",
    "sequence-parallel": "not there; engine.zero_stage: 3 saves memory",
    "context-parallel-size": "not there; lower data.seq_length",
    "deepspeed_config": "engine.deepspeed_config",
    "exit-interval": "touch RUN_DIR/stop, or Ctrl-C",
    "rampup-batch-size": "not there: training.global_batch_size is one for the whole search",
    "optimizer": "AdamW always, for the proxy; mixture.optimizer moves the mixture",
    "overlap-grad-reduce": "DeepSpeed's overlap_comm, of zero_optimization in the file of "
    "engine.deepspeed_config",
    "deepspeed": "always on; see engine.zero_stage and engine.deepspeed_config",
    "norm-epsilon": "1e-5 always; models of Hugging Face and of a provider have their own",
    "lr-warmup-fraction": "training.lr_warmup_iters",
    "lr-warmup-samples": "training.lr_warmup_iters",
    "lr-decay-iters": "the decay ends at training.train_iters",
    "train-samples": "training.train_iters × training.global_batch_size",
    "eval-iters": "hypergradient.target_samples, at every outer step",
    "eval-interval": "targets are measured at every outer step, mixture.inner_steps apart",
    "hidden-dropout": "0 always: losses must be functions of the parameters and the batch alone",
    "attention-dropout": "0 always",
}


def meaning_here(flag: str) -> str | None:
    """What stands for `flag`, such as `train-samples`; None for what is none of them."""
    return MEANINGS.get(flag) or MEANINGS.get(flag.replace("_", "-"))
