"""Special tokens in text: where they may be spelled, and what lies between them.

`<|endoftext|>` and its like stand for things that are not text. Text from strangers must not be able to end a turn, so
a special token's spelling is refused unless the caller allows it (it becomes the token) or says that none is
disallowed (it is the text it is). The rules are tiktoken's:

    allowed_special      these become tokens; "all": every one. A name that is no special token changes nothing
    disallowed_special   these are refused, allowed or not; "all": every one that is not allowed
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Literal

import regex

__all__ = ["SpecialTokenError", "cut_special", "cut_tokens", "first_of", "id_of", "recognised"]


class SpecialTokenError(ValueError):
    """A special token where it is not allowed, or one that is missing."""


def first_of(have: Collection[str], *wanted: str | None) -> str | None:
    """The first of the wanted tokens that there is."""
    return next((token for token in wanted if token in have), None)


def id_of(special_tokens: Mapping[str, int], token: str | None, what: str) -> int:
    """The id of a special token. Raises SpecialTokenError where there is none, in words for `what` is missing."""
    if token is None:
        have = ", ".join(special_tokens) or "none"
        raise SpecialTokenError(f"the tokenizer has not got {what}; its special tokens: {have}")
    return special_tokens[token]


def recognised(
    text: str,
    special_tokens: Mapping[str, int],
    allowed_special: Literal["all"] | Collection[str],
    disallowed_special: Literal["all"] | Collection[str],
) -> dict[str, int]:
    """The special tokens that are tokens in `text`. Raises SpecialTokenError if one that is disallowed is spelled there
    (`text` is only looked at for these)."""
    allowed = special_tokens.keys() if allowed_special == "all" else set(allowed_special)
    refused = special_tokens.keys() - allowed if disallowed_special == "all" else set(disallowed_special)
    if refused and (found := _finder(frozenset(refused)).first(text)):
        raise SpecialTokenError(
            f"the text spells the special token {found.group()!r} at character {found.start()}\nAllow it with "
            f"allowed_special={{{found.group()!r}}}, or take it as text: encode_ordinary, or disallowed_special=()."
        )
    return {token: i for token, i in special_tokens.items() if token in allowed}


def cut_tokens(text: str, tokens: Mapping[str, int]) -> list[str | int]:
    """`text` as stretches of ordinary text and ids of the `tokens` spelled in it, in order: the longest of those that
    start leftmost."""
    finder = _finder(frozenset(tokens)) if tokens else None
    if finder is None or not finder.first(text):
        return [text] if text else []
    parts: list[str | int] = []
    end = 0
    for match in finder.expression.finditer(text):
        parts += [text[end : match.start()], tokens[match.group()]]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part != ""]


def cut_special(
    text: str,
    special_tokens: Mapping[str, int],
    allowed_special: Literal["all"] | Collection[str],
    disallowed_special: Literal["all"] | Collection[str],
) -> list[str | int]:
    """`text` as stretches of ordinary text and ids of the allowed special tokens. Raises SpecialTokenError."""
    return cut_tokens(text, recognised(text, special_tokens, allowed_special, disallowed_special))


class _Finder:
    """Finds any of some tokens. Most texts hold none: looking for the first character that they share, then for the
    first two, is many times faster than the expression."""

    def __init__(self, tokens: frozenset[str]) -> None:
        self.expression = regex.compile("|".join(map(regex.escape, sorted(tokens, key=len, reverse=True))))
        self.heads = {token[:2] for token in tokens}

    def first(self, text: str) -> regex.Match[str] | None:
        return self.expression.search(text) if any(head[0] in text and head in text for head in self.heads) else None


@lru_cache(64)
def _finder(tokens: frozenset[str]) -> _Finder:
    return _Finder(tokens)
