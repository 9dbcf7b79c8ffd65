"""The corpus commands: arguments and what they run, for the command line and for tools/."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from megatron_fastmix.config import TokenizerConfig, strict_yaml
from megatron_fastmix.corpus.indexed_files import inspect_indexed_dataset
from megatron_fastmix.corpus.inputs import InputFormat
from megatron_fastmix.corpus.inspection import length_statistics, overlap, sample_texts
from megatron_fastmix.corpus.manifest import check_same_tokenizer, read_manifest
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.records import RecordType
from megatron_fastmix.corpus.sentencepiece_training import SentencePieceConfig, train_sentencepiece
from megatron_fastmix.corpus.tokenizers import TOKENIZER_TYPES, load_tokenizer
from megatron_fastmix.errors import ConfigError
from megatron_fastmix.lab.demo import demo
from megatron_fastmix.program import run_program

AddArguments = Callable[[argparse.ArgumentParser], None]
Run = Callable[[argparse.Namespace], None]


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, help="folder for the JSONL files")
    parser.add_argument(
        "--kind",
        choices=sorted(demo.DEMOS),
        default="text",
        help="text for pre-training (default), or rows with answers for fine-tuning",
    )
    parser.add_argument("--cache", help="folder for downloaded wheels (default: OUTPUT/wheels)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor on the size of every corpus (default 1)"
    )


def run_demo(args: argparse.Namespace) -> None:
    if args.scale <= 0:
        raise ConfigError(f"--scale: found {args.scale}; use a positive factor")
    files, made = demo.build_demo(args.output, kind=args.kind, cache=args.cache, scale=args.scale)
    print(demo.format_table(files))
    state = "written" if made else "up to date, nothing to do"
    print(f"{Path(args.output) / demo.PROVENANCE_FILE}: {state}")


def add_train_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, help="files, folders and globs to train on"
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        help="share of each input in the sample (default: equal)",
    )
    parser.add_argument("--json-key", default="text", help="key of the text (default text)")
    parser.add_argument("--tokenizer-model", required=True, help="file to write, *.model")
    parser.add_argument("--vocab-size", type=int, required=True, help="number of pieces")
    parser.add_argument("--model-type", choices=("bpe", "unigram"), default="bpe")
    parser.add_argument("--character-coverage", type=float, default=0.9995)
    parser.add_argument(
        "--sample-bytes", type=int, default=10_000_000, help="bytes of text to train on"
    )


def run_train_tokenizer(args: argparse.Namespace) -> None:
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


def add_preprocess_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="YAML file that names many datasets")
    parser.add_argument("--input", nargs="+", help="files, folders and globs of one dataset")
    parser.add_argument(
        "--output-prefix", help="writes OUTPUT_PREFIX_KEY_document.bin, .idx and .json"
    )
    parser.add_argument(
        "--json-keys", nargs="+", default=["text"], help="keys of the text, a dataset for each"
    )
    parser.add_argument(
        "--input-format",
        choices=get_args(InputFormat),
        default="auto",
        help="text: a document per file, lines: per line (default: by the file's name)",
    )
    parser.add_argument(
        "--record-type",
        choices=get_args(RecordType),
        default="text",
        help="all but text also write the loss mask of the answers",
    )
    parser.add_argument(
        "--chat-template",
        help="model folder, tokenizer_config.json or .jinja file, for --record-type messages",
    )
    parser.add_argument(
        "--split", help="shares of train, valid and test by content, such as 969,30,1"
    )
    parser.add_argument(
        "--skip-bad-lines", type=int, default=0, help="malformed records to skip (default 0)"
    )
    parser.add_argument("--licence", help="licence of the text, for the manifest")
    parser.add_argument("--origin", help="where the text is from, for the manifest")
    parser.add_argument("--tokenizer-type", help=f"one of {', '.join(TOKENIZER_TYPES)}")
    parser.add_argument("--tokenizer-model", help="file of the tokenizer")
    parser.add_argument(
        "--append-eod", action="store_true", help="end each document with the end token"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")


def run_preprocess(args: argparse.Namespace) -> None:
    preprocess(preprocess_config(args))


def preprocess_config(args: argparse.Namespace) -> PreprocessConfig:
    """The configuration that parsed arguments mean. Raises `ConfigError`."""
    single = {
        "--input": args.input,
        "--output-prefix": args.output_prefix,
        "--tokenizer-type": args.tokenizer_type,
    }
    if args.config:
        given = [flag for flag, value in single.items() if value]
        given += ["--append-eod"] if args.append_eod else []
        if given:
            raise ConfigError(f"--config sets everything; leave out {', '.join(given)}")
        values = strict_yaml.load_yaml(args.config)
        if args.workers is not None:
            values["workers"] = args.workers
        return strict_yaml.from_dict(PreprocessConfig, values)
    missing = [flag for flag, value in single.items() if not value]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: missing; give these flags or --config")
    return PreprocessConfig(
        tokenizer=TokenizerConfig(
            tokenizer_type=args.tokenizer_type, tokenizer_model=args.tokenizer_model
        ),
        datasets=tuple(
            DatasetConfig(
                # Megatron's script names its outputs so.
                prefix=f"{args.output_prefix}_{key}_document",
                input=tuple(args.input),
                json_key=key,
                input_format=args.input_format,
                record_type=args.record_type,
                chat_template=args.chat_template,
                split=args.split,
                skip_bad_lines=args.skip_bad_lines,
                licence=args.licence,
                origin=args.origin,
            )
            for key in args.json_keys
        ),
        append_eod=args.append_eod,
        workers=args.workers,
    )


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefixes", nargs="+", help="prefixes of indexed datasets")
    parser.add_argument(
        "--target",
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="held-out datasets; says how much of each is in each of the others",
    )
    parser.add_argument(
        "--ngram", type=int, default=13, help="tokens in a row that count as shared (default 13)"
    )
    parser.add_argument("--samples", type=int, default=0, help="samples to show as text")
    parser.add_argument("--tokenizer-type", help="for --samples")
    parser.add_argument("--tokenizer-model", help="for --samples")


def run_inspect(args: argparse.Namespace) -> None:
    tokenizer = None
    if args.samples:
        if not args.tokenizer_type:
            raise ConfigError("--samples: give --tokenizer-type and --tokenizer-model too")
        tokenizer = load_tokenizer(args.tokenizer_type, args.tokenizer_model)
        datasets = {prefix: prefix for prefix in [*args.prefixes, *args.target]}
        check_same_tokenizer(datasets, tokenizer.sha256)
    for prefix in [*args.prefixes, *args.target]:
        _print_dataset(prefix)
        if tokenizer is not None:
            for text in sample_texts(prefix, tokenizer, args.samples):
                print(f"  sample: {text!r}")
    if args.target:
        _print_overlaps(args.prefixes, args.target, args.ngram)


def _print_dataset(prefix: str) -> None:
    summary, lengths = inspect_indexed_dataset(prefix), length_statistics(prefix)
    manifest = read_manifest(prefix)
    print(
        f"{prefix}: {summary.documents:,} documents, {summary.tokens:,} tokens of {summary.dtype}"
    )
    print(
        f"  tokens per sequence: mean {lengths.mean:,.1f}, median {lengths.median:,.0f}, "
        f"95% have at most {lengths.percentile_95:,.0f}, longest {lengths.longest:,}"
    )
    if manifest is None:
        return
    if manifest.tokens:
        print(f"  {manifest.text_bytes / manifest.tokens:.2f} bytes of text per token")
    if manifest.loss_mask_tokens is not None:
        print(f"  {manifest.loss_mask_tokens:,} tokens count in the loss")
    print(
        f"  {manifest.duplicates_removed:,} held-out duplicates removed, "
        f"{manifest.bad_lines:,} bad lines skipped, {manifest.empty_documents:,} empty documents"
    )
    print(f"  licence: {manifest.licence}, origin: {manifest.origin}")


def _print_overlaps(sources: list[str], targets: list[str], ngram: int) -> None:
    rows = []
    for target in targets:
        for source in sources:
            found = overlap(source, target, ngram)
            rows.append((f"{target} in {source}", found.equal, found.touched, found.runs))
    width = max(len("target in source"), *(len(name) for name, *_ in rows))
    shared = f"share {ngram} tokens"
    print(f"{'target in source':<{width}}  equal  {shared}  runs of {ngram}")
    for name, equal, touched, runs in rows:
        mark = "  contaminated" if equal > 0 else ""
        print(f"{name:<{width}}  {equal:>5.1%}  {touched:>{len(shared)}.1%}  {runs:>9.2%}{mark}")


COMMANDS: dict[str, tuple[str, AddArguments, Run]] = {
    "demo": ("fetch the demo corpora", add_demo_arguments, run_demo),
    "train-tokenizer": (
        "train a SentencePiece tokenizer on text",
        add_train_tokenizer_arguments,
        run_train_tokenizer,
    ),
    "preprocess": (
        "turn text into Megatron's indexed datasets",
        add_preprocess_arguments,
        run_preprocess,
    ),
    "inspect": ("say what indexed datasets hold", add_inspect_arguments, run_inspect),
}
"""Verb to (help, arguments, function)."""


def main(verb: str) -> int:
    """Runs one verb as a program of its own; returns its exit code."""
    text, add_arguments, run = COMMANDS[verb]
    parser = argparse.ArgumentParser(description=text[0].upper() + text[1:] + ".")
    add_arguments(parser)
    args = parser.parse_args()
    return run_program(lambda: run(args), parser.prog)
