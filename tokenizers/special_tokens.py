"""Special tokens in text: where they may be spelled, and what lies between them.

`<|endoftext|>` and its like stand for things that are not text. Text from strangers must not be able to end a turn, so
a special token's spelling is refused unless the caller allows it (it becomes the token) or says that none is
disallowed (it is the text it is), as tiktoken has it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import regex

from luthier.tokenizers.bpe import SpecialTokenError

__all__ = ["cut_special"]


def cut_special(
    text: str,
    special_tokens: Mapping[str, int],
    allowed_special: Literal["all"] | Collection[str],
    disallowed_special: Literal["all"] | Collection[str],
) -> list[str | int]:
    """`text` as stretches of ordinary text and ids of the allowed special tokens, in order.

    Raises SpecialTokenError if one of `disallowed_special` ("all": every one that is not allowed) is spelled in it.
    """
    allowed = set(special_tokens) if allowed_special == "all" else set(allowed_special)
    if unknown := allowed - set(special_tokens):
        raise SpecialTokenError(f"{sorted(unknown)[0]!r} is not a special token of this tokenizer")
    refused = set(special_tokens) - allowed if disallowed_special == "all" else set(disallowed_special)
    if refused and (found := _any_of(refused).search(text)):
        raise SpecialTokenError(
            f"the text spells the special token {found.group()!r} at character {found.start()}\nAllow it with "
            f"allowed_special={{{found.group()!r}}}, or take it as text: encode_ordinary, or disallowed_special=()."
        )
    parts: list[str | int] = []
    end = 0
    for match in _any_of(allowed).finditer(text) if allowed else ():
        parts += [text[end : match.start()], special_tokens[match.group()]]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part != ""]


def _any_of(texts: Collection[str]) -> regex.Pattern[str]:
    """Finds any of `texts`, the longest of those that start at the same place."""
    return regex.compile("|".join(regex.escape(text) for text in sorted(texts, key=len, reverse=True)))
