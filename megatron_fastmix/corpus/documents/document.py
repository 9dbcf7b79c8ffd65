"""A document: what a record holds, on its way to tokens."""

from __future__ import annotations

from dataclasses import dataclass

FieldValue = str | int | float | bool
"""What a record has in the field that its dataset is split by."""


@dataclass(frozen=True)
class Document:
    """Parts of text in order; `in_loss` says for each whether its tokens count in the loss.

    Parts of a pre-training document are sequences of their own (Megatron's sentences). Those of an
    answer-only document are one text, which is encoded as a whole and makes one sequence.
    """

    parts: tuple[str, ...]
    in_loss: tuple[bool, ...]
    controls: tuple[tuple[int, int], ...] = ()
    """Characters [start, stop) of the whole text that are a control token of the tokenizer's, since
    the chat template wrote them. The same characters in the record's own text are text."""
    field: FieldValue | None = None
    """The record's value of the field that its dataset is split by, where it is."""

    @classmethod
    def of_spans(
        cls, text: str, answers: list[tuple[int, int]], controls: list[tuple[int, int]]
    ) -> Document:
        """A text whose characters [start, stop) in `answers`, in order, count in the loss."""
        parts, in_loss, done = [], [], 0
        for start, stop in answers:
            parts += [text[done:start], text[start:stop]]
            in_loss += [False, True]
            done = stop
        if done < len(text):
            parts.append(text[done:])
            in_loss.append(False)
        return cls(tuple(parts), tuple(in_loss), tuple(controls))
