"""Megatron's `GPT2BPETokenizer`: byte pairs from a vocabulary and a file of merges."""

from __future__ import annotations

from pathlib import Path

from megatron_fastmix.corpus.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer
from megatron_fastmix.corpus.tokenizers.tokenizer_files import NamedToken
from megatron_fastmix.errors import DataError
from megatron_fastmix.extras import needs_package
from megatron_fastmix.text_files import read_json_object, read_text

END = "<|endoftext|>"


class GPT2BPETokenizer(HuggingFaceTokenizer):
    """Ids equal those of `transformers.GPT2TokenizerFast` on the same files; documents end with
    `<|endoftext|>`."""

    tokenizer_type = "GPT2BPETokenizer"

    def __init__(self, vocab_file: Path, merge_file: Path) -> None:
        content = _tokenizer_json(vocab_file, merge_file)
        end = NamedToken(text=END, file=vocab_file)
        super().__init__(content, vocab_file, {"eos_token": end})


def _tokenizer_json(vocab_file: Path, merge_file: Path) -> str:
    with needs_package("tokenizers", "GPT2BPETokenizer"):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    vocabulary = read_json_object(vocab_file, "the vocabulary")
    # Not at other ends of lines, which pieces may hold.
    lines = read_text(merge_file, "the merges").replace("\r\n", "\n").split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in vocabulary.values()):
        raise DataError(f"{vocab_file}: expected an id for each piece; give GPT-2's vocab.json")
    if any(len(pair) != 2 for pair in pairs):
        raise DataError(f"{merge_file}: expected two pieces a line; give GPT-2's merges.txt")
    if END not in vocabulary:
        raise DataError(f"{vocab_file}: has no {END}, which ends documents; give GPT-2's files")
    try:
        backend = Tokenizer(models.BPE(vocabulary, [(first, second) for first, second in pairs]))
    except Exception as error:  # the package raises plain Exception
        raise DataError(f"{vocab_file}, {merge_file}: do not fit together: {error}") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END, special=True)])
    return str(backend.to_str())
