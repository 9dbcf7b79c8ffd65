"""One dataset of a preprocessing run: up to date, continued or begun; one pass over its inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from megatron_fastmix.corpus.dataset_output import DatasetOutput
from megatron_fastmix.corpus.documents.chat_template import read_chat_template
from megatron_fastmix.corpus.documents.records import RecordParser
from megatron_fastmix.corpus.encoding import EncodedChunk, Encoder
from megatron_fastmix.corpus.indexed.earlier_files import remove_dataset
from megatron_fastmix.corpus.indexed.journal import (
    Journal,
    journal_path,
    read_journal,
    write_journal,
)
from megatron_fastmix.corpus.indexed.manifest import (
    InputRecord,
    Manifest,
    TokenizerRecord,
    read_manifest,
)
from megatron_fastmix.corpus.indexed.output_lock import locked_outputs
from megatron_fastmix.corpus.preprocess_config import DatasetConfig, PreprocessConfig
from megatron_fastmix.corpus.progress import Progress
from megatron_fastmix.corpus.reading.inputs import file_format
from megatron_fastmix.corpus.reading.readers import Chunk, iter_chunks
from megatron_fastmix.corpus.split_by import PartitionedDataset
from megatron_fastmix.corpus.splits import Splitter
from megatron_fastmix.corpus.tokenizers.registry import Tokenizer
from megatron_fastmix.corpus.workers import map_chunks
from megatron_fastmix.errors import DataError
from megatron_fastmix.processes import available_cores

JOURNAL_SECONDS = 5.0
"""At most this much work is done again after an interruption."""

Report = Callable[[str], None]


class _WrongInputError(DataError):
    """The inputs cannot become this dataset; unlike an interruption."""


class _TooManyBadLinesError(DataError):
    """After some chunks that are worth keeping: with more of them allowed the same inputs become
    the dataset, so it is as an interruption."""


class DatasetWork:
    """The writing of one configured dataset, all its splits in one pass over the inputs."""

    def __init__(
        self,
        dataset: DatasetConfig,
        config: PreprocessConfig,
        tokenizer: Tokenizer,
        tokenizer_record: TokenizerRecord,
        inputs: tuple[InputRecord, ...],
        excluded: set[bytes],
    ) -> None:
        self.dataset = dataset
        self.inputs = inputs
        self.tokenizer_record = tokenizer_record
        self.append_eod = config.append_eod
        self.workers = config.workers or available_cores()
        self.template = (
            read_chat_template(dataset.chat_template, tokenizer.template_tokens)
            if dataset.chat_template
            else None
        )
        self.encoder = Encoder(
            tokenizer=tokenizer,
            parser=RecordParser(
                record_type=dataset.record_type,
                json_key=dataset.json_key,
                json_keys=dataset.json_keys,
                chat_template=self.template,
                control_tokens=tuple(tokenizer.control_tokens),
                field=dataset.split_by,
            ),
            append_eod=config.append_eod,
            splitter=Splitter.parse(dataset.split),
            partition=dataset.partition if isinstance(dataset, PartitionedDataset) else None,
            held_out=tuple(held_out for _, _, held_out in dataset.outputs),
            excluded=frozenset() if dataset.held_out else frozenset(excluded),
        )
        self.recipe = self._recipe()

    def finished(self, report: Report) -> dict[str, Manifest] | None:
        """The manifests by prefix, where all outputs that are not empty are there and of this
        recipe."""
        manifests: dict[str, Manifest] = {}
        missing = set()
        for prefix, _, _ in self.dataset.outputs:
            try:
                manifest = read_manifest(prefix)
            except DataError:
                return None  # damaged or of another version: written anew
            if manifest is None or manifest.recipe != self.recipe:
                missing.add(Path(prefix).name)
                continue
            too_many = manifest.bad_lines > self.dataset.skip_bad_lines
            if too_many or not DatasetOutput.is_whole(prefix, manifest):
                return None
            manifests[prefix] = manifest
        if any(missing - set(manifest.empty_parts) for manifest in manifests.values()):
            return None
        for prefix, manifest in manifests.items():
            report(f"{prefix}: up to date, {manifest.tokens:,} tokens")
        return manifests or None

    def run_alone(self, report: Report) -> dict[str, Manifest]:
        """As `run`, while no other program writes any of the outputs."""
        outputs = [prefix for prefix, _, _ in self.dataset.outputs]
        with locked_outputs(dict.fromkeys([self.dataset.prefix, *outputs]), report):
            # Another program may have just finished them.
            return self.finished(report) or self.run(report)

    def run(self, report: Report) -> dict[str, Manifest]:
        """Writes all outputs, from the last journal where there is one."""
        self.encoder.tokenizer.prepare()
        for note in self._template_notes():
            report(note)
        journal, outputs = self._open()
        if journal.chunks:
            report(f"{self.dataset.prefix}: continuing after chunk {journal.chunks:,}")
        try:
            with Progress(self.dataset.prefix, sum(i.bytes for i in self.inputs)) as progress:
                self._check_sizes("since this command began")
                journal = self._write(journal, outputs, progress)
                self._check_sizes("while it was read")
                manifests = self._finish(journal, outputs)
                for prefix, manifest in manifests.items():
                    report(_summary(prefix, manifest, progress.rates))
            journal_path(self.dataset.prefix).unlink(missing_ok=True)
        except _TooManyBadLinesError:
            raise
        except DataError as error:
            # Correcting it makes another recipe, or nothing is there: nothing could be continued.
            if isinstance(error, _WrongInputError) or not any(out.tokens for out in outputs):
                for output in outputs:
                    output.discard()
                journal_path(self.dataset.prefix).unlink(missing_ok=True)
            raise
        finally:
            for output in outputs:
                output.close()
        return manifests

    def _template_notes(self) -> list[str]:
        """What users should be told of the special tokens that the chat template names."""
        if self.template is None:
            return []
        where, tokens = self.dataset.chat_template, self.template.special_tokens
        undefined = [
            f"{where}: the template names {name}, which neither it nor the tokenizer defines; it "
            "is written as nothing"
            for name in self.template.undefined_tokens
        ]
        foreign = [
            f"{where}: {name} is {tokens[name]!r}, no token of the tokenizer; it is encoded as text"
            for name in sorted(self.template.used_tokens & tokens.keys())
            if not self.encoder.tokenizer.has_token(tokens[name])
        ]
        return undefined + foreign

    def _write(self, journal: Journal, outputs: list[DatasetOutput], progress: Progress) -> Journal:
        chunks = self._chunks()
        for done in islice(chunks, journal.chunks):
            progress.skip(done.input_bytes)
        saved = time.monotonic()
        for encoded in map_chunks(self.encoder, chunks, self.workers):
            before = sum(output.tokens for output in outputs)
            try:
                journal = self._account(journal, encoded)
            except _TooManyBadLinesError:
                self._save(journal, outputs)
                raise
            for index, output in enumerate(outputs):
                output.write(encoded.splits[index], encoded.duplicates[index])
            progress.advance(encoded.input_bytes, sum(output.tokens for output in outputs) - before)
            if time.monotonic() - saved >= JOURNAL_SECONDS:
                self._save(journal, outputs)
                saved = time.monotonic()
        return journal

    def _check_sizes(self, when: str) -> None:
        """Raises `DataError` for an input that has another size than it had, as text may be lost;
        one that was removed was read whole, or is told as missing. A time alone is no sign."""
        for before in self.inputs:
            with contextlib.suppress(OSError):
                size = os.stat(before.path).st_size
                if size != before.bytes:
                    raise _WrongInputError(
                        f"{before.path}: changed {when}, from {before.bytes:,} to {size:,} bytes; "
                        "run again once nothing writes it"
                    )

    def _save(self, journal: Journal, outputs: list[DatasetOutput]) -> None:
        states = tuple(output.save() for output in outputs)
        write_journal(self.dataset.prefix, dataclasses.replace(journal, outputs=states))

    def _account(self, journal: Journal, encoded: EncodedChunk) -> Journal:
        """Counts a chunk; raises `DataError` at one bad record too many."""
        earlier = journal.records if encoded.path == journal.path else 0
        bad_lines = journal.bad_lines
        for bad in encoded.bad_records:
            bad_lines += 1
            if bad_lines > self.dataset.skip_bad_lines:
                allowed = self.dataset.skip_bad_lines
                more = f" ({allowed:,} bad lines were allowed)" if allowed else ""
                then = ", which goes on from here" if journal.chunks else ""
                error = _TooManyBadLinesError if journal.chunks else _WrongInputError
                raise error(
                    f"{encoded.path}:{earlier + bad.number}: {bad.reason}{more}; correct or remove "
                    f"the line, or allow some with --skip-bad-lines{then}"
                )
        return dataclasses.replace(
            journal,
            chunks=journal.chunks + 1,
            path=encoded.path,
            records=earlier + encoded.records,
            bad_lines=bad_lines,
        )

    def _finish(self, journal: Journal, outputs: list[DatasetOutput]) -> dict[str, Manifest]:
        """Gives the outputs their names, but for empty ones, of which nothing stays."""
        empty = [output for output in outputs if not output.tokens]
        if len(empty) == len(outputs):
            raise _WrongInputError(
                f"{self.dataset.prefix}: no document with text goes there; check the inputs"
            )
        for output in empty:
            shares = " and the shares of the split" if self.dataset.split else ""
            print(
                f"note: {output.prefix}: no document with text goes there, so it is not written; "
                f"check the inputs{shares}",
                file=sys.stderr,
            )
            output.discard()
            remove_dataset(output.prefix)
        base = self.dataset.prefix
        return {
            output.prefix: output.finish(
                bad_lines=journal.bad_lines,
                append_eod=self.append_eod,
                recipe=self.recipe,
                tokenizer=self.tokenizer_record,
                inputs=self.inputs,
                licence=self.dataset.licence,
                origin=self.dataset.origin,
                part_of=None if output.prefix == base else Path(base).name,
                empty_parts=tuple(Path(each.prefix).name for each in empty),
            )
            for output in outputs
            if output.tokens
        }

    def _open(self) -> tuple[Journal, list[DatasetOutput]]:
        vocab_size = self.tokenizer_record.vocab_size
        masked = self.dataset.record_type != "text"
        found = read_journal(self.dataset.prefix, self.recipe)
        specs = self.dataset.outputs
        usable = found is not None and len(found.outputs) == len(specs)
        usable = usable and all(
            DatasetOutput.can_resume(prefix, vocab_size, masked, state)
            for (prefix, _, _), state in zip(specs, found.outputs if found else (), strict=False)
        )
        journal = found if found is not None and usable else Journal(recipe=self.recipe)
        states = journal.outputs or (None,) * len(specs)
        outputs = [
            DatasetOutput(prefix, name, held_out, vocab_size, masked, state)
            for (prefix, name, held_out), state in zip(specs, states, strict=True)
        ]
        return journal, outputs

    def _chunks(self) -> Iterator[Chunk]:
        columns = self.encoder.parser.columns
        for record in self.inputs:
            yield from iter_chunks(record.path, self.dataset.input_format, columns)

    def _recipe(self) -> str:
        excluded = hashlib.sha256()
        for digest in sorted(self.encoder.excluded):
            excluded.update(digest)
        template = self.encoder.parser.chat_template
        # How many lines may be bad moves no byte.
        dataset = dataclasses.asdict(self.dataset) | {"skip_bad_lines": 0}
        if not dataset["json_keys"]:  # younger than many a manifest
            del dataset["json_keys"]
        if self.dataset.split_by is None:  # likewise
            for key in ("split_by", "quantiles", "max_values"):
                del dataset[key]
        else:
            del dataset["max_values"]  # moves no byte
        if self.dataset.record_type != "text":
            dataset["encoding"] = "whole text, with system and tools"
            named = self.dataset.input_format
            if any("parquet" in (named, file_format(each.path)) for each in self.inputs):
                dataset["encoding"] += ", without the nulls of Parquet's structs"
            if any("." in key for key in self.encoder.parser.keys):
                dataset["encoding"] += ", with what is beside nested keys"
        content = {
            "dataset": dataset,
            "append_eod": self.append_eod,
            "tokenizer": dataclasses.asdict(self.tokenizer_record),
            "inputs": [dataclasses.asdict(record) for record in self.inputs],
            "excluded": excluded.hexdigest(),
            "chat_template": template and dataclasses.asdict(template),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _summary(prefix: str, manifest: Manifest, rates: str) -> str:
    notes = [f"{manifest.documents:,} documents", f"{manifest.tokens:,} tokens"]
    if manifest.loss_mask_tokens is not None:
        notes.append(f"{manifest.loss_mask_tokens:,} of them in the loss")
    if manifest.duplicates_removed:
        notes.append(f"{manifest.duplicates_removed:,} held-out duplicates removed")
    if manifest.bad_lines:
        notes.append(f"{manifest.bad_lines:,} bad lines skipped")
    return f"{prefix}: {', '.join(notes)} ({rates})"
