"""Facts about a SentencePiece model that its Python API does not tell, read from the file.

The file is a protocol buffer (`sentencepiece_model.proto`): ModelProto holds `trainer_spec = 2` and
`normalizer_spec = 3`. Reading the few fields here needs no protobuf package.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

BPE = 2
_USER_DEFINED = 4
_NORMALIZER_FIELDS = {1, 2, 3, 4, 5, 6}


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """What decides how a model splits text."""

    model_type: int
    """1 unigram, 2 BPE, 3 word, 4 char."""
    byte_fallback: bool
    whitespace_as_suffix: bool
    normalizes: bool
    """Whether characters are replaced (a precompiled map exists), or may be, by unknown fields."""
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def parse_model(model: bytes) -> SentencePieceModel:
    """Reads a serialized ModelProto that SentencePiece itself has accepted."""
    trainer: dict[int, object] = {}
    normalizer: dict[int, object] = {}
    for number, value in _fields(model):
        if number == 2:
            trainer.update(_fields(_as_bytes(value)))
        elif number == 3:
            normalizer.update(_fields(_as_bytes(value)))
    # Defaults are those of the schema.
    return SentencePieceModel(
        model_type=int(str(trainer.get(3, 1))),
        byte_fallback=bool(trainer.get(35, 0)),
        whitespace_as_suffix=bool(trainer.get(24, 0)),
        normalizes=bool(normalizer.get(2, b"")) or not normalizer.keys() <= _NORMALIZER_FIELDS,
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
    )


def without_dummy_prefix(model: bytes) -> bytes:
    """The same model with `add_dummy_prefix` off.

    A message that occurs twice is merged and the last value holds, so an appended
    `normalizer_spec {add_dummy_prefix: false}` overrides the one before.
    """
    return model + bytes([3 << 3 | 2, 2, 3 << 3, 0])


def with_symbols(model: bytes, symbols: Mapping[int, str]) -> bytes:
    """The same model with other text for some pieces, by id, which then are user-defined symbols:
    found in text before anything else, and never joined or taken apart."""
    out, token, at = [], 0, 0
    while at < len(model):
        start = at
        key, at = _varint(model, at)
        if key & 7 == 2:
            size, at = _varint(model, at)
        else:
            size = {1: 8, 5: 4}.get(key & 7, 0)
            at = at if key & 7 else _varint(model, at)[1]
        at += size
        field = model[start:at]
        if key == 1 << 3 | 2:  # pieces: {piece = 1, score = 2, type = 3}
            if token in symbols:
                text = symbols[token].encode("utf-8")
                piece = bytes([1 << 3 | 2, len(text)]) + text + bytes([3 << 3, _USER_DEFINED])
                field = bytes([key, len(piece)]) + piece
            token += 1
        out.append(field)
    return b"".join(out)


def _as_bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def _fields(message: bytes) -> Iterator[tuple[int, object]]:
    """(field number, value) pairs: int for varints, bytes for everything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
