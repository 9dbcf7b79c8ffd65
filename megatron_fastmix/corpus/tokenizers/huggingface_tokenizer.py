"""A `tokenizer.json` of Hugging Face, through the `tokenizers` package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_fastmix.corpus.tokenizers.added_tokens import (
    AddedToken,
    ignored_settings,
    stated_tokens,
)
from megatron_fastmix.corpus.tokenizers.tokenizer_files import (
    NamedToken,
    disagreements,
    special_tokens,
)
from megatron_fastmix.corpus.tokenizers.tokenizer_interface import (
    NO_TOKEN,
    LocatedTokens,
    Span,
    Tokenizer,
)
from megatron_fastmix.errors import DataError
from megatron_fastmix.extras import needs_package

_SETTINGS = ("bos_token", "eos_token", "pad_token")


class HuggingFaceTokenizer(Tokenizer):
    """Ids equal those of `tokenizers.Tokenizer.encode` without added special tokens.

    Special tokens are those that the files beside it name (`tokenizer_files`), or else well-known
    names. As in `transformers`, the text of a special token becomes that token wherever it is, and
    tokens that only those files have are added.
    """

    tokenizer_type = "HuggingFaceTokenizer"
    EOD_NAMES = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[SEP]")
    BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]")
    PAD_NAMES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>")

    def __init__(
        self, content: str, path: Path, named: dict[str, NamedToken] | None = None
    ) -> None:
        """`named` are the special tokens where the files beside `path` are not to be asked."""
        self._content, self._path = content, path
        self._more: tuple[AddedToken, ...] = ()
        self._load()
        if named is None:
            self._more = self._unknown(stated_tokens(path.parent))
            self._add_more()
            named = special_tokens(path.parent, self._backend.id_to_token)
            self.encoding_notes = (
                *disagreements(path.parent, named),
                *ignored_settings(path.parent, content),
            )
        self._named: dict[str, NamedToken] = named
        self._find_special_tokens()
        settings = {key: self._named[key].text for key in _SETTINGS if key in self._named}
        identity = content + json.dumps(settings, sort_keys=True)
        if self._more:
            more = [[token.text, dict(token.flags)] for token in self._more]
            identity += json.dumps(more, sort_keys=True)
        self.sha256 = hashlib.sha256(identity.encode()).hexdigest()

    def _load(self) -> None:
        with needs_package("tokenizers", self.tokenizer_type):
            from tokenizers import Tokenizer as Backend
        try:
            self._backend = Backend.from_str(self._content)
            # It adds no token here, but would move where tokens are said to begin and end.
            try:
                self._backend.post_processor = None
            except TypeError:  # before 0.21
                bare = json.loads(self._content) | {"post_processor": None}
                self._backend = Backend.from_str(json.dumps(bare))
            self._backend.no_truncation()
            self._backend.no_padding()
            vocabulary = self._backend.get_vocab()
        except Exception as error:  # the package raises plain Exception
            raise DataError(f"{self._path}: not a tokenizer.json: {error}") from None
        if not vocabulary:
            raise DataError(f"{self._path}: the vocabulary is empty; copy the file again")
        self._add_more()

    def _unknown(self, stated: Sequence[AddedToken]) -> tuple[AddedToken, ...]:
        """Those of the tokens that tokenizer.json does not add by itself."""
        known, unknown = {token.content for token in self._added.values()}, []
        for token in stated:
            # An end token that was never trained is refused; see `_find_special_tokens`.
            is_end = token.name == "eos_token" and not self.has_token(token.text)
            if token.text not in known and not is_end:
                known.add(token.text)
                unknown.append(token)
        return tuple(unknown)

    def _add_more(self) -> None:
        """Adds the tokens of the files beside it, and takes stock."""
        from tokenizers import AddedToken as Added

        for token in self._more:
            self._backend.add_tokens([Added(token.text, **token.flags)])
            number = self._backend.token_to_id(token.text)
            if token.id not in (None, number):
                raise DataError(
                    f"{token.file}: states {token.text!r} with id {token.id}, but after the tokens "
                    f"of {self._path} its id is {number}; copy both files again from one model"
                )
        self._added = dict(self._backend.get_added_tokens_decoder())
        vocabulary = self._backend.get_vocab()
        # Ids may have gaps: the size must exceed the largest.
        self.vocab_size = max(len(vocabulary), 1 + max(vocabulary.values()))

    def _find_special_tokens(self) -> None:
        named: NamedToken | None = self._named.get("eos_token")
        self.eod = self._special("eos_token", self.EOD_NAMES)
        if self.eod == NO_TOKEN and named is not None:
            self.missing_end = (
                f"{named.file}: names {named.text!r} as eos_token, which is no token of "
                f"{self._path}; correct the name, add the token to the tokenizer, or give an id "
                "as eod (--eod)"
            )
        elif self.eod == NO_TOKEN:
            self.missing_end = (
                f"{self._path}: no end-of-document token found; name it as `eos_token` in "
                "tokenizer_config.json beside the file, or give its id as eod (--eod)"
            )
        elif named is None:
            self.notes = (
                f"{self._path}: no file beside it names the end token; "
                f"{self._backend.id_to_token(self.eod)} (id {self.eod}) is taken for it, a guess "
                "by its name; to be sure, name it as eos_token in tokenizer_config.json",
            )
        self.bos = self._special("bos_token", self.BOS_NAMES)
        pad = self._special("pad_token", self.PAD_NAMES)
        self.pad = pad if pad not in {self.eod, self.bos} else NO_TOKEN

    def _special(self, key: str, names: Sequence[str]) -> int:
        candidates = (self._named[key].text,) if key in self._named else names
        for name in candidates:
            token = self._backend.token_to_id(name)
            if token is not None:
                return int(token)
        return NO_TOKEN

    @property
    def template_tokens(self) -> dict[str, str]:
        end = self._backend.id_to_token(self.eod)  # None for one past the tokenizer's
        found = {} if end is None else {"eos_token": str(end)}
        return found | {key: named.text for key, named in self._named.items()}

    def has_token(self, text: str) -> bool:
        return self._backend.token_to_id(text) is not None

    def show(self, token: int) -> str | None:
        if token in self._added:
            return str(self._added[token].content)
        return super().show(token)

    def encode(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_located(
        self, texts: Sequence[str], controls: Sequence[Sequence[Span]]
    ) -> LocatedTokens:
        encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return LocatedTokens.of([(encoding.ids, encoding.offsets) for encoding in encodings])

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode([int(token) for token in ids])

    def __getstate__(self) -> Mapping[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in {"_backend", "_added"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()
        self.__dict__.update(state)  # an end token of its own, see `with_end`
