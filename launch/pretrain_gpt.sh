#!/usr/bin/env bash
# Megatron-LM's pretrain_gpt.py as it is, on a learned mixture.
#   bash launch/pretrain_gpt.sh blend      the exported static blend: Megatron alone
#   bash launch/pretrain_gpt.sh mixture    the same weights through the patch layer, which also
#                                          caps epochs and logs losses by source
#   bash launch/pretrain_gpt.sh schedule   weights that change by consumed samples
# Further arguments go to pretrain_gpt.py; the same command again resumes from CHECKPOINTS.
# DRY_RUN=1 prints the command and runs nothing.
#
# Edit, or set in the environment:
MEGATRON=${MEGATRON:-/opt/Megatron-LM}       # a checkout of Megatron-LM
RUN=${RUN:-runs/quickstart}                  # a finished search: mixture.json, blend.txt
SCHEDULE=${SCHEDULE:-$RUN/phases/schedule.yaml}  # by: megatron-fastmix export RUN --phases 0.8 ...
CHECKPOINTS=${CHECKPOINTS:-$RUN/pretrain}    # checkpoints, TensorBoard and index caches
MAX_EPOCHS=${MAX_EPOCHS:-4}                  # no source is read more often (not in `blend`)
TOKENIZER_TYPE=${TOKENIZER_TYPE:-HuggingFaceTokenizer}  # the tokenizer that made the data
TOKENIZER_MODEL=${TOKENIZER_MODEL:-/data/tokenizer}
GPUS=${GPUS:-8}                              # on this host
PYTHON=${PYTHON:-python}                     # has torch, Megatron's requirements and this package
TENSOR=${TENSOR:-1}
PIPELINE=${PIPELINE:-1}
MICRO_BATCH=${MICRO_BATCH:-2}
GLOBAL_BATCH=${GLOBAL_BATCH:-256}            # samples; also the block of draws
TRAIN_SAMPLES=${TRAIN_SAMPLES:-12207031}     # 50e9 tokens of 4096

set -euo pipefail
mode=${1:-}
shift || true
model=(
  --num-layers 24 --hidden-size 2048 --ffn-hidden-size 5632 --num-attention-heads 16
  --group-query-attention --num-query-groups 8 --seq-length 4096 --max-position-embeddings 4096
  --swiglu --normalization RMSNorm --position-embedding-type rope --disable-bias-linear
  --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0
)
training=(
  --micro-batch-size "$MICRO_BATCH" --global-batch-size "$GLOBAL_BATCH"
  --train-samples "$TRAIN_SAMPLES" --lr 3e-4 --min-lr 3e-5 --lr-decay-style cosine
  --lr-warmup-samples 512000 --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --bf16
  --tensor-model-parallel-size "$TENSOR" --pipeline-model-parallel-size "$PIPELINE"
  --use-distributed-optimizer
)
data=(
  # In every mode: what it says of weights is used in `blend` alone, and elsewhere its paths are
  # matched with the mixture's sources, in any order.
  --data-args-path "$RUN/blend.txt" --split 99,1,0 --data-cache-path "$CHECKPOINTS/cache"
  --tokenizer-type "$TOKENIZER_TYPE" --tokenizer-model "$TOKENIZER_MODEL"
  --dataloader-type single --num-workers 2
)
output=(
  --save "$CHECKPOINTS" --load "$CHECKPOINTS" --save-interval 1000 --tensorboard-dir
  "$CHECKPOINTS/tensorboard" --log-interval 10 --eval-interval 1000 --eval-iters 10
)
script=("$MEGATRON/pretrain_gpt.py" "${model[@]}" "${training[@]}" "${data[@]}" "${output[@]}")
fastmix=(--fastmix-mixture "$RUN" --fastmix-max-epochs "$MAX_EPOCHS")
case $mode in
  blend) command=("${script[@]}" "$@") ;;
  mixture) command=(-m megatron_fastmix.megatron "${script[@]}" "$@" "${fastmix[@]}") ;;
  schedule)
    command=(-m megatron_fastmix.megatron "${script[@]}" "$@" "${fastmix[@]}"
      --fastmix-schedule "$SCHEDULE")
    ;;
  *)
    echo "pretrain_gpt.sh: found '$mode'; use blend, mixture or schedule" >&2
    exit 2
    ;;
esac
# Megatron overlaps communication under this setting, and asks for it on cards before Blackwell.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
launch=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$GPUS" "${command[@]}")
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${launch[@]}"
  echo
  exit
fi
[ -f "$MEGATRON/pretrain_gpt.py" ] || {
  echo "pretrain_gpt.sh: $MEGATRON has no pretrain_gpt.py; set MEGATRON to a checkout" >&2
  exit 2
}
mkdir -p "$CHECKPOINTS"
exec "${launch[@]}"
