"""The verb `inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_fastmix.cli.tokenizer_flags import add_tokenizer_arguments, tokenizer_config
from megatron_fastmix.corpus.indexed.answer_rows import check_mask, is_answer_only
from megatron_fastmix.corpus.indexed.indexed_files import inspect_indexed_dataset
from megatron_fastmix.corpus.indexed.manifest import check_same_tokenizer, read_manifest
from megatron_fastmix.corpus.inspection import LEARNED, length_statistics, overlap, sample_texts
from megatron_fastmix.corpus.tokenizers import load_tokenizer
from megatron_fastmix.dataset_paths import find_datasets
from megatron_fastmix.errors import ConfigError

HELP = "say what indexed datasets hold"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prefixes", nargs="+", help="indexed datasets: prefixes, folders or globs")
    parser.add_argument(
        "--target",
        nargs="+",
        action="extend",
        default=[],
        metavar="PREFIX",
        help="held-out datasets; says how much of each is in each of the others",
    )
    parser.add_argument(
        "--ngram", type=int, default=13, help="tokens in a row that count as shared (default 13)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=0,
        help="samples to show as text, with special tokens and what counts in the loss marked",
    )
    add_tokenizer_arguments(parser, "; for --samples")


def run(args: argparse.Namespace) -> None:
    sources, targets = _datasets(args.prefixes, ""), _datasets(args.target, "--target: ")
    tokenizer = None
    if args.samples:
        if not args.tokenizer_type:
            raise ConfigError("--samples: give --tokenizer-type and --tokenizer-model too")
        tokenizer = load_tokenizer(**vars(tokenizer_config(args)))
        datasets: dict[str, str | Path] = {prefix: prefix for prefix in [*sources, *targets]}
        check_same_tokenizer(datasets, tokenizer.sha256)
    for prefix in [*sources, *targets]:
        _print_dataset(prefix)
        if tokenizer is not None:
            if is_answer_only(prefix):
                print(f"  {'…'.join(LEARNED)} in the samples counts in the loss")
            for text in sample_texts(prefix, tokenizer, args.samples):
                print(f"  sample: {text!r}")
    for path in [*args.prefixes, *args.target]:
        _print_total(path)
    if targets:
        _print_overlaps(sources, targets, args.ngram)


def _datasets(paths: list[str], where: str) -> list[str]:
    return [prefix for path in paths for prefix in find_datasets(path, f"{where}{path}")]


def _print_total(path: str) -> None:
    """What a source of this path has, where that is several datasets."""
    prefixes = find_datasets(path, path)
    if len(prefixes) > 1:
        found = [inspect_indexed_dataset(prefix) for prefix in prefixes]
        documents, tokens = sum(s.documents for s in found), sum(s.tokens for s in found)
        print(f"{path}: {len(found):,} datasets, {documents:,} documents, {tokens:,} tokens")


def _print_dataset(prefix: str) -> None:
    summary, lengths = inspect_indexed_dataset(prefix), length_statistics(prefix)
    manifest = read_manifest(prefix)
    check_mask(prefix)
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
