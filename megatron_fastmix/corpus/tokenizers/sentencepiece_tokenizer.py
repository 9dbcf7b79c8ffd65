"""SentencePiece models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from megatron_fastmix.corpus.tokenizers.part_cache import (
    PartCache,
    make_part_cache,
    part_kinds,
)
from megatron_fastmix.corpus.tokenizers.sentencepiece_model import (
    parse_model,
    with_symbols,
    without_dummy_prefix,
)
from megatron_fastmix.corpus.tokenizers.tokenizer_interface import (
    NO_TOKEN,
    LocatedTokens,
    Span,
    Tokenizer,
)
from megatron_fastmix.errors import DataError

SYMBOL_START, SYMBOL_END = "\ufdd0", "\ufdd1"
"""What stands around the id of a control piece while a text is encoded: characters that Unicode
will never assign, so that no text has them."""


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; ids equal those of `SentencePieceProcessor.encode`."""

    tokenizer_type = "SentencePieceTokenizer"

    def __init__(self, model: bytes, where: str = "SentencePiece model") -> None:
        self._model, self._where = model, where
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._load()

    def _load(self) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._processor = SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise DataError(f"{self._where}: not a SentencePiece model: {error}") from None
        self._pieces = self.vocab_size = self._processor.get_piece_size()
        self.eod = self._processor.eos_id()
        self.bos = self._processor.bos_id()
        if self.eod < 0:
            self.missing_end = (
                f"{self._where}: the model has no end-of-sentence piece, which must end documents; "
                "train it with eos_id set, or give the id that ends them as eod (--eod)"
            )
        pad = self._processor.pad_id()
        self.pad = pad if pad not in {self.eod, self.bos, self._processor.unk_id()} else NO_TOKEN

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        # One thread: parallelism is a matter of worker processes.
        return self._processor.encode(list(texts), num_threads=1)

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return super().encode_flat(texts) if self._cache is None else self._cache.encode(texts)

    def encode_located(
        self, texts: Sequence[str], controls: Sequence[Sequence[Span]]
    ) -> LocatedTokens:
        found: list[tuple[Sequence[int], Any]] = [([], [])] * len(texts)
        plain = [i for i, spans in enumerate(controls) if not spans]
        encoded = _locate(self._processor, [texts[i] for i in plain])
        for i, tokens in zip(plain, encoded, strict=True):
            found[i] = tokens
        for i, spans in enumerate(controls):
            if spans:
                found[i] = self._with_controls(texts[i], spans)
        return LocatedTokens.of(found)

    def _with_controls(self, text: str, spans: Sequence[Span]) -> tuple[Sequence[int], np.ndarray]:
        """Each control piece gives way to a symbol that a copy of the model never joins or takes
        apart, so that the whole is one encoding."""
        pieces, done, at = [], 0, 0
        olds, news = [0], [0]  # where the text goes on after each symbol, in both texts
        for start, stop in spans:
            symbol = _symbol(self.control_tokens[text[start:stop]])
            pieces += [text[done:start], symbol]
            at += start - done + len(symbol)
            done = stop
            olds.append(stop)
            news.append(at)
        marked = "".join([*pieces, text[done:]])
        # A mark of a word's start before a control piece would be a word of nothing.
        processor = self._symbol_processors[spans[0][0] == 0]
        ((ids, offsets),) = _locate(processor, [marked])
        wanted = [self.control_tokens[text[start:stop]] for start, stop in spans]
        symbols = set(self.control_tokens.values())
        if [token for token in ids if token in symbols] != wanted:
            raise DataError(
                f"{self._where}: this model joins control pieces with the text around them; leave "
                "them out of the chat template"
            )
        places = np.asarray(offsets, np.int64)
        after = np.searchsorted(np.array(news), places, side="right") - 1
        back = places - np.array(news)[after] + np.array(olds)[after]
        # The end of a symbol is counted from it, but its start is before: it lies where it was.
        return ids, back

    @cached_property
    def _symbol_processors(self) -> tuple[Any, Any]:
        """With the model's dummy prefix, and without it."""
        from sentencepiece import SentencePieceProcessor

        symbols = {token: _symbol(token) for token in self.control_tokens.values()}
        model = with_symbols(self._model, symbols)
        return (
            SentencePieceProcessor(model_proto=model),
            SentencePieceProcessor(model_proto=without_dummy_prefix(model)),
        )

    @cached_property
    def control_tokens(self) -> Mapping[str, int]:
        ids = [i for i in range(self._pieces) if self._processor.is_control(i)]
        return {self._processor.id_to_piece(i): i for i in ids if self._processor.id_to_piece(i)}

    @property
    def template_tokens(self) -> dict[str, str]:
        tokens = self.special_tokens_dict.items()
        return {n: self._processor.id_to_piece(i) for n, i in tokens if i < self._pieces}

    def has_token(self, text: str) -> bool:
        unknown = self._processor.unk_id()
        found = self._processor.piece_to_id(text)
        return bool(found != unknown or self._processor.id_to_piece(unknown) == text)

    def show(self, token: int) -> str | None:
        if not 0 <= token < self._pieces:
            return super().show(token)
        special = self._processor.is_control(token) or self._processor.is_unknown(token)
        return self._processor.id_to_piece(token) if special else None

    def prepare(self) -> None:
        self._cache  # noqa: B018  made at its first use

    @cached_property
    def _cache(self) -> PartCache | None:
        """The table of parts of text, where the model permits one."""
        from sentencepiece import SentencePieceProcessor

        model, whole = parse_model(self._model), self._processor
        # Unused pieces count: text is joined to them too, and taken apart afterwards.
        never = (whole.is_control, whole.is_byte, whole.is_unknown)
        pieces = whole.id_to_piece(list(range(self._pieces)))
        kinds = part_kinds(model, pieces, lambda i: not any(test(i) for test in never))
        if kinds is None:
            return None
        bare = SentencePieceProcessor(model_proto=without_dummy_prefix(self._model))

        def encode_parts(parts: list[str]) -> list[list[int]]:
            return bare.encode(parts, num_threads=1)

        return make_part_cache(kinds, encode_parts, " " * model.add_dummy_prefix, self.vocab_size)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(token) for token in ids if token < self._pieces])

    def __getstate__(self) -> dict[str, Any]:
        made = {"_processor", "_cache", "_symbol_processors", "control_tokens"}
        return {key: value for key, value in self.__dict__.items() if key not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()
        self.__dict__.update(state)  # an end token of its own, see `with_end`


class GPTSentencePieceTokenizer(SentencePieceTokenizer):
    """Megatron's other name for it."""

    tokenizer_type = "GPTSentencePieceTokenizer"


class Llama2Tokenizer(SentencePieceTokenizer):
    """Megatron's name for Llama 2's model. As in `megatron.core.tokenizers` a document does not
    begin with `<s>`; under --legacy-tokenizer it did."""

    tokenizer_type = "Llama2Tokenizer"


def _symbol(token: int) -> str:
    return f"{SYMBOL_START}{token}{SYMBOL_END}"


def _locate(processor: Any, texts: list[str]) -> list[tuple[Sequence[int], Any]]:
    """Ids and spans of characters of each text."""
    if not texts:
        return []
    if hasattr(processor, "EncodeAsOffsetMapping"):
        found = processor.encode(texts, return_type="offset_mapping", num_threads=1)
        return [(tokens["ids"], tokens["offsets"]) for tokens in found]
    protos = processor.encode(texts, out_type="immutable_proto", num_threads=1)  # before 0.2.2
    return [
        ([piece.id for piece in proto.pieces], [(p.begin, p.end) for p in proto.pieces])
        for proto in protos
    ]
