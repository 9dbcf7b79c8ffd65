"""What `transformers` makes of a chat template, by what all its versions offer: a tokenizer."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import pytest


def rendered(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    """The text of `messages`."""
    text = _tokenizer("").apply_chat_template(
        messages, chat_template=template, tokenize=False, **variables
    )
    assert isinstance(text, str)
    return text


def marked(template: str, messages: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Where the text lies, [start, stop), that `{% generation %}` marks. Needs something between
    two such places."""
    text = rendered(template, messages)
    found = _tokenizer(text).apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    mask = found["assistant_masks"]
    assert len(mask) == len(text)
    places = []
    for flag, places_of_run in groupby(range(len(text)), key=lambda place: bool(mask[place])):
        run = list(places_of_run)
        if flag:
            places.append((run[0], run[-1] + 1))
    return places


def _tokenizer(text: str) -> Any:
    """Makes a token of each character of `text`."""
    transformers = pytest.importorskip("transformers")
    import tokenizers

    vocabulary = {character: number for number, character in enumerate(sorted({*text, "?"}))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[\s\S]"), behavior="isolated"
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
