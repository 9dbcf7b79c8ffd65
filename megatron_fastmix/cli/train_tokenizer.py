"""The verb `train-tokenizer`."""

from __future__ import annotations

import argparse

from megatron_fastmix.corpus.sentencepiece_training import SentencePieceConfig, train_sentencepiece
from megatron_fastmix.corpus.tokenizers import load_tokenizer

HELP = "train a SentencePiece tokenizer on text"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        nargs="+",
        action="extend",
        required=True,
        help="files, folders and globs to train on",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        action="extend",
        type=float,
        help="share of each input in the sample (default: equal)",
    )
    parser.add_argument("--json-key", default="text", help="key of the text (default text)")
    parser.add_argument("--tokenizer-model", required=True, help="file to write, *.model")
    parser.add_argument("--vocab-size", type=int, required=True, help="number of pieces")
    parser.add_argument(
        "--model-type",
        choices=("bpe", "unigram"),
        default="bpe",
        help="bpe (default), which preprocess encodes faster than unigram",
    )
    parser.add_argument(
        "--character-coverage",
        type=float,
        default=0.9995,
        metavar="SHARE",
        help="of the characters that become pieces; the rest is encoded as bytes (default 0.9995)",
    )
    parser.add_argument(
        "--sample-bytes",
        type=int,
        default=10_000_000,
        metavar="BYTES",
        help="of text to train on, taken from the beginning of each input by --weights (default "
        "10,000,000)",
    )


def run(args: argparse.Namespace) -> None:
    config = SentencePieceConfig(
        vocab_size=args.vocab_size,
        model_type=args.model_type,
        sample_bytes=args.sample_bytes,
        character_coverage=args.character_coverage,
    )
    trained = train_sentencepiece(
        args.input, args.tokenizer_model, config, weights=args.weights, json_key=args.json_key
    )
    tokenizer = load_tokenizer("SentencePieceTokenizer", args.tokenizer_model)
    state = f"{tokenizer.vocab_size:,} pieces, sha256 {tokenizer.sha256[:12]}..."
    print(f"{args.tokenizer_model}: {state}" + ("" if trained else " (up to date)"))
