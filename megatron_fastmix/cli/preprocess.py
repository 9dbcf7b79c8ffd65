"""The verb `preprocess`."""

from __future__ import annotations

import argparse
import sys
from typing import get_args

from megatron_fastmix.cli.tokenizer_flags import add_tokenizer_arguments, tokenizer_config
from megatron_fastmix.config import strict_yaml
from megatron_fastmix.corpus.documents.record_types import KEYS, RecordType
from megatron_fastmix.corpus.preprocess import preprocess
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.reading.inputs import InputFormat
from megatron_fastmix.errors import ConfigError

HELP = "turn text into Megatron's indexed datasets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", help="YAML file that names many datasets")
    parser.add_argument(
        "--input", nargs="+", action="extend", help="files, folders and globs of one dataset"
    )
    parser.add_argument(
        "--output-prefix", help="writes OUTPUT_PREFIX_KEY_document.bin, .idx and .json"
    )
    parser.add_argument(
        "--json-keys",
        nargs="+",
        action="extend",
        help="keys of the text (default text), a dataset for each; or the keys of a record with "
        "answers: QUESTION ANSWER, PROMPT COMPLETION, INSTRUCTION INPUT OUTPUT, MESSAGES",
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
        help="all but text also write the loss mask of the answers; messages and sharegpt leave "
        "out those marked weight: 0, train: false, loss: false or loss_mask: 0",
    )
    parser.add_argument(
        "--chat-template",
        help="model folder, tokenizer_config.json or .jinja file, for records with answers",
    )
    parser.add_argument(
        "--split", help="shares of train, valid and test by content, such as 969,30,1"
    )
    parser.add_argument(
        "--split-by",
        metavar="FIELD",
        help="a dataset for each value of this field of the records, such as language",
    )
    parser.add_argument(
        "--quantiles",
        type=int,
        metavar="N",
        help="the field of --split-by is a score: N datasets of as many records, _q1 the lowest",
    )
    parser.add_argument(
        "--max-values",
        type=int,
        default=100,
        metavar="N",
        help="how many values --split-by may find (default 100)",
    )
    parser.add_argument(
        "--skip-bad-lines", type=int, default=0, help="malformed records to skip (default 0)"
    )
    parser.add_argument("--licence", help="licence of the text, for the manifest")
    parser.add_argument("--origin", help="where the text is from, for the manifest")
    add_tokenizer_arguments(parser)
    parser.add_argument(
        "--append-eod", action="store_true", help="end each document with the end token"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    for flag in ("--log-interval", "--partitions"):
        parser.add_argument(flag, type=int, help=_NEEDLESS[flag])
    parser.add_argument(
        "--keep-sequential-samples",
        action="store_true",
        help=_NEEDLESS["--keep-sequential-samples"],
    )


_NEEDLESS = {
    "--log-interval": "of Megatron's script; changes nothing here, where progress comes by time",
    "--partitions": "of Megatron's script; changes nothing here, where --workers share every file "
    "and write one dataset",
    "--keep-sequential-samples": "of Megatron's script; changes nothing here, where documents "
    "always keep their order",
}
"""Flags of Megatron's preprocess_data.py that are taken, so that its command lines work."""


def run(args: argparse.Namespace) -> None:
    for flag, reason in _NEEDLESS.items():
        if getattr(args, flag[2:].replace("-", "_"), None):
            print(f"note: {flag}: {reason}", file=sys.stderr)
    preprocess(preprocess_config(args), also_read=[args.config] if args.config else ())


def _given_beside_config(args: argparse.Namespace) -> list[str]:
    """Flags that differ from their defaults, of those whose values are in the file of --config."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    return [
        f"--{name.replace('_', '-')}"
        for name, default in vars(parser.parse_args([])).items()
        if name not in {"config", "workers"} and getattr(args, name) != default
    ]


def preprocess_config(args: argparse.Namespace) -> PreprocessConfig:
    """The configuration that parsed arguments mean. Raises `ConfigError`."""
    single = {
        "--input": args.input,
        "--output-prefix": args.output_prefix,
        "--tokenizer-type": args.tokenizer_type,
    }
    if args.config:
        given = _given_beside_config(args)
        if given:
            raise ConfigError(f"--config sets everything; leave out {', '.join(given)}")
        values = strict_yaml.load_yaml(args.config)
        if args.workers is not None:
            values["workers"] = args.workers
        return strict_yaml.from_dict(PreprocessConfig, values)
    missing = [flag for flag, value in single.items() if not value]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: missing; give these flags or --config")
    several = len(KEYS[args.record_type]) > 1  # then the keys are those of one record
    keys = ["text"] if several or not args.json_keys else args.json_keys
    return PreprocessConfig(
        tokenizer=tokenizer_config(args),
        datasets=tuple(
            DatasetConfig(
                # Megatron's script names its outputs so.
                prefix=f"{args.output_prefix}_{key}_document",
                input=tuple(args.input),
                json_key=key,
                json_keys=tuple(args.json_keys or ()) if several else (),
                input_format=args.input_format,
                record_type=args.record_type,
                chat_template=args.chat_template,
                split=args.split,
                split_by=args.split_by,
                quantiles=args.quantiles,
                max_values=args.max_values,
                skip_bad_lines=args.skip_bad_lines,
                licence=args.licence,
                origin=args.origin,
            )
            for key in keys
        ),
        append_eod=args.append_eod,
        workers=args.workers,
    )
