"""Examples at the end of each verb's help; a test parses every one."""

EXAMPLES = {
    "init": (
        "--template pretrain_160m --output search.yaml",
        "--data data/tokenized --target data/exams_text_document",
    ),
    "config": ("", "mixture", "mixture.inner_steps"),
    "demo": ("--output data/raw",),
    "train-tokenizer": (
        "--input data/raw/*.jsonl --tokenizer-model data/tokenizer.model --vocab-size 32000",
    ),
    "preprocess": (
        "--config corpora.yaml",
        "--input web/*.jsonl.zst --output-prefix data/web --append-eod \\\n"
        "      --tokenizer-type SentencePieceTokenizer --tokenizer-model data/tokenizer.model",
    ),
    "inspect": (
        "data/web_text_document",
        "data/web_text_document --target data/exams_text_document",
    ),
    "plan": (
        "--config search.yaml",
        "--config search.yaml --nodes 4 --gpus-per-node 8 --num-layers=24",
    ),
    "check-hosts": ("--config search.yaml --hostfile hosts",),
    "search": (
        "--config search.yaml",
        "--config search.yaml --seeds 3 --run-dir runs/three",
        "--config search.yaml --train-iters 2000 --mixture.inner_steps 20",
    ),
    "report": (
        "runs/search",
        "runs/search --against blend_in_use.txt --path-map /local/data=/lustre/data",
        "runs/first runs/second --output both",
        "runs/search --watch",
    ),
    "compare": ("runs/first runs/second",),
    "export": (
        "runs/search --format megatron-cli",
        "runs/search --token-budget 300B --max-epochs 4 --set cpp=20% --output blend.txt",
        "--format list",
    ),
    "export-schedule": (
        "schedule.yaml runs/search --global-batch-size 1024 --train-samples 1000000",
    ),
    "import": ("blend_in_use.txt --config search.yaml",),
    "compare-mixtures": (
        "--mixture runs/search --test exams=data/exams_test --output runs/search/comparison",
        "--mixture runs/search --blend capped.txt --test exams=data/exams_test --output out",
    ),
    "baseline": (
        "doremi --config search.yaml --output runs/doremi",
        "regmix --config search.yaml --output runs/regmix --set regmix.runs=512",
    ),
    "check-tables": ("--regmix regmix --json tables.json",),
    "compare-methods": ("--scenario scenario.yaml --output runs/methods_rows",),
}
"""By verb what follows its name."""
