"""The blend in a command line or a shell script with `--data-path`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import zip_longest

from megatron_fastmix.errors import DataError

TRAIN_FLAGS = ("--data-path", "--train-data-path", "--data_paths")
"""Of Megatron-LM, and of Model-Optimizer's distill.py."""
_NAMED = re.compile(r"^\w+\+?=")
"""What stands before the value in an assignment of a shell."""
_OPERATORS = "();<>|&\n"
"""Characters that end a word of a shell."""
_COMMENT = re.compile(
    r"""('[^']*'|"(?:\\.|[^"\\])*"|\\.)|(?<![^\s;])#[^\n]*""",
    re.DOTALL,
)
"""A comment of a shell, or quoted or escaped text (group 1), in which none begins."""


def words_after_flag(text: str, where: str) -> list[str]:
    """What follows the flag in a command or a script, up to the next flag or the end of the command
    or array. After `=` argparse takes one value, which is a blend where it is a list in quotes.

    Raises `DataError`, which begins with `where`, without such a flag or with several, and
    `ValueError` for a quotation mark that is never closed.
    """
    words, depth = shell_words(text), 0
    if sum(word.partition("=")[0] in TRAIN_FLAGS for word in words) > 1:
        raise DataError(
            f"{where}: has several {' or '.join(TRAIN_FLAGS)}; give a file with the one to read"
        )
    for place, word in enumerate(words):
        if _is_operator(word):
            depth += word.count("(") - word.count(")")
            continue
        flag, _, value = word.partition("=")
        if word in TRAIN_FLAGS:
            return _to_the_end(words[place + 1 :], depth)
        if flag in TRAIN_FLAGS and len(value.split()) > 1:
            return value.split()
        if flag in TRAIN_FLAGS:
            raise DataError(f"{where}: {word}: after `=` comes one value alone; leave out the =")
    # A command in quotes, as for `bash -c`, or what a script gives a name: DATA="--data-path ...".
    quoted = [w for w in words if any(f in w for f in TRAIN_FLAGS) and len(w.split()) > 1]
    if len(quoted) > 1:
        raise DataError(f"{where}: has several blends in quotes; give a file with the one to read")
    if quoted:
        return words_after_flag(_NAMED.sub("", quoted[0]), where)
    raise DataError(f"{where}: expected {' or '.join(TRAIN_FLAGS)} WEIGHT PREFIX ...")


def shell_words(text: str) -> list[str]:
    """The words of a shell script; operators, line ends among them, are words of their own. Raises
    `ValueError` for a quotation mark that is never closed."""
    # Comments first: a backslash at the end of one joins no line, and shlex takes the line's end
    # with them, and a # within a word for one.
    bare = _COMMENT.sub(lambda found: found[1] or "", text.replace("\r\n", "\n"))
    joined = bare.replace("\\\n", " ")
    lexer = shlex.shlex(joined, posix=True, punctuation_chars=_OPERATORS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    return list(lexer)


def _to_the_end(words: Sequence[str], depth: int) -> list[str]:
    """The words up to the next flag or what ends a command. A line's end does not inside of `depth`
    parentheses, as of an array, nor where a list of arguments goes on in the next line."""
    found: list[str] = []
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if set(word) == {"\n"} and (depth or not found or _goes_on(found, following)):
            continue
        if _is_operator(word) or word.startswith("-"):
            if word.startswith(">") and found and found[-1].isdecimal():
                found.pop()  # the number of what is redirected
            break
        found.append(word)
    return found


def _goes_on(found: Sequence[str], following: str) -> bool:
    if number(following) is not None or number(found[-1]) is not None:
        return True
    return all(number(word) is None for word in found) and "/" in following and "=" not in following


def number(word: object) -> float | None:
    """The number that a word is; None for any other."""
    try:
        return float(word) if isinstance(word, str | int | float) else None
    except (ValueError, OverflowError):
        return None


def _is_operator(word: str) -> bool:
    return bool(word) and set(word) <= set(_OPERATORS)
