"""Byte-level BPE: text to ids and back.

A tokenizer is a list of tokens (id → bytes) and a list of merges in the order in which they were learned. To encode a
piece of text (see pretokenize.py), start from its bytes and, as long as there is one, join the pair of neighbours whose
merge was learned first, the leftmost of equals. `encode_by_the_book` is that loop, n² steps for n bytes. The fast path,
compiled by Numba, gives the same ids:

    cache   text repeats itself: most pieces are found, with their ids, in a hash table of pieces met before
    scan    a new piece of up to 64 bytes: look for the best pair again after each join
    heap    a longer one: candidates (rank, place) in a heap, neighbours in a linked list, so n log n steps; a megabyte
            of one letter takes a second, not a day

Because every byte is a token there is no unknown text, and decoding is joining bytes. A token may end in the middle of
a character, so single tokens need not be valid UTF-8.

Special tokens (`<|endoftext|>` …) stand for things that are not text. `encode_ordinary` takes their spelling as the
text it is; `encode` refuses it unless it is allowed, as tiktoken does: text from strangers must not be able to end a
turn. The vocabulary is laid out as bpe_train.py says, or as a file says.
Added tokens are vocabulary from outside the merges (Hugging Face's non-special ones): always recognised.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import regex

from luthier.tokenizers.bpe_encode import Encoder
from luthier.tokenizers.pretokenize import compile_pattern, split, utf8

__all__ = [
    "BYTE_ORDER",
    "SpecialTokenError",
    "TokenIdError",
    "Tokenizer",
    "VocabularyError",
    "encode_by_the_book",
]

Ids = npt.NDArray[np.int32]

# Hugging Face's ByteLevel alphabet, ordered by the characters it spells bytes with: printable bytes stand for
# themselves and come first, then the others in their own order.
PRINTABLE: Final = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
NEVER: Final = (0xC0, 0xC1, *range(0xF5, 0x100))  # bytes that UTF-8 does not use
BYTE_ORDER: Final = (*PRINTABLE, *(b for b in range(256) if b not in PRINTABLE))


NO_MERGE = (1 << 62, 0)


class VocabularyError(ValueError):
    """Tokens and merges that make no tokenizer."""


class TokenIdError(ValueError):
    """An id that the tokenizer does not have."""


class SpecialTokenError(ValueError):
    """A special token where it is not allowed, or one that is missing."""


def encode_by_the_book(
    piece: bytes, ranks: Mapping[tuple[int, int], tuple[int, int]], byte_ids: Sequence[int]
) -> list[int]:
    """The textbook loop for one piece: `ranks` maps a pair of ids to (rank, id of the joined token)."""
    ids = [byte_ids[b] for b in piece]
    while len(ids) > 1:
        found = [ranks.get(pair, NO_MERGE) for pair in pairwise(ids)]
        rank, new = min(found)
        if (rank, new) == NO_MERGE:
            break
        i = found.index((rank, new))
        ids[i : i + 2] = [new]
    return ids


class Tokenizer:
    """A byte-level BPE vocabulary, its merges and its rules.

    `tokens` id → bytes (a special token's text in UTF-8; b"" for an id that stands for nothing); `merges` [M, 2] pairs
    of ids in order of rank; `special_tokens` and `added_tokens` text → id; `pattern` a name in PATTERNS or an
    expression; `normalizer` "NFC" or ""; `whole_pieces`: a piece that is a token is taken whole, whatever the merges
    say (tiktoken, Llama 3). `eos_token` and `pad_token` name the special tokens at a document's end and in empty
    places. `kept` holds what a file said that concerns only other programs. `joined` [M] holds the
    id that each merge makes. Raises VocabularyError naming the id or merge that is wrong.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Iterable[tuple[int, int]] | npt.NDArray[np.int32],
        *,
        pattern: str = "llama3",
        special_tokens: Mapping[str, int] | None = None,
        added_tokens: Mapping[str, int] | None = None,
        normalizer: Literal["", "NFC"] = "",
        whole_pieces: bool = False,
        eos_token: str | None = None,
        pad_token: str | None = None,
        chat_template: str | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        compile_pattern(pattern)
        self.tokens = list(tokens)
        self.merges = np.asarray(merges if isinstance(merges, np.ndarray) else list(merges), np.int32).reshape(-1, 2)
        self.pattern = pattern
        self.special_tokens = dict(special_tokens or {})
        self.added_tokens = dict(added_tokens or {})
        self.normalizer = normalizer
        self.whole_pieces = whole_pieces
        self.eos_token = _first_of(self.special_tokens, eos_token, "<|endoftext|>", "<|end_of_text|>", "</s>")
        self.pad_token = _first_of(self.special_tokens, pad_token, "<|pad|>", self.eos_token)
        self.chat_template = chat_template
        self.kept = dict(kept or {})
        self._check_added()
        self._check_tokens()
        self.joined = self._join_merges(self.ids_of_bytes)
        self._encoder = Encoder(self.ids_of_bytes, self.merges, self.joined, whole_pieces=whole_pieces)

    # ------------------------------------------------------------ facts

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @property
    def eos_id(self) -> int:
        """The id that ends a document. Raises SpecialTokenError where the tokenizer has none."""
        return self._special(self.eos_token, "an end-of-text token such as <|endoftext|>")

    @property
    def pad_id(self) -> int:
        """The id that fills empty places; the end-of-text id where there is no token of its own."""
        return self._special(self.pad_token, "a padding or end-of-text token")

    def _special(self, token: str | None, what: str) -> int:
        if token is None:
            have = ", ".join(self.special_tokens) or "none"
            raise SpecialTokenError(f"the tokenizer has not got {what}; its special tokens: {have}")
        return self.special_tokens[token]

    def __repr__(self) -> str:
        special = len(self.special_tokens)
        return f"Tokenizer({self.vocab_size:,} ids, {len(self.merges):,} merges, {special} special, {self.pattern!r})"

    # ------------------------------------------------------------ encoding

    def encode_ordinary(self, text: str) -> Ids:
        """Ids of `text`; the spelling of a special token is ordinary text."""
        return self._encode_with(text, self.added_tokens)

    def encode(
        self,
        text: str,
        allowed_special: Literal["all"] | Collection[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> Ids:
        """Ids of `text`, with the special tokens in `allowed_special` recognised.

        Raises SpecialTokenError if one of `disallowed_special` ("all": every one that is not allowed) is spelled in the
        text; pass () to take them as ordinary text.
        """
        allowed = set(self.special_tokens) if allowed_special == "all" else set(allowed_special)
        if unknown := allowed - set(self.special_tokens):
            raise SpecialTokenError(f"{sorted(unknown)[0]!r} is not a special token of this tokenizer")
        refused = set(self.special_tokens) - allowed if disallowed_special == "all" else set(disallowed_special)
        if refused and (found := _any_of(refused).search(text)):
            raise SpecialTokenError(
                f"the text spells the special token {found.group()!r} at character {found.start()}\nAllow it with "
                f"allowed_special={{{found.group()!r}}}, or take it as text: encode_ordinary, or disallowed_special=()."
            )
        return self._encode_with(text, {**self.added_tokens, **{t: self.special_tokens[t] for t in allowed}})

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts one after the other (special tokens as ordinary text), and where each text starts:
        text i is `ids[offsets[i] : offsets[i + 1]]`."""
        if num_threads > 1 and len(texts) > 1:
            with ThreadPoolExecutor(num_threads) as pool:
                parts = list(pool.map(self.encode_ordinary, texts, chunksize=max(1, len(texts) // (8 * num_threads))))
        else:
            parts = [self.encode_ordinary(text) for text in texts]
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return (np.concatenate(parts) if parts else np.empty(0, np.int32)), offsets

    def count(self, text: str) -> int:
        """Number of tokens of `text`, special tokens as ordinary text."""
        return len(self.encode_ordinary(text))

    def offsets(self, text: str) -> tuple[Ids, list[tuple[int, int]]]:
        """Ids of `text` as `encode_ordinary` gives them, and for each token the characters [start, end) that it
        touches. Tokens that share a character both name it."""
        ids = self.encode_ordinary(text)
        plain, starts = self._normalized_places(text)
        data = utf8(plain)
        character = np.cumsum((data & 0xC0) != 0x80) - 1  # byte → character
        sizes = np.array([len(self.tokens[i]) for i in ids], np.int64)
        ends = np.cumsum(sizes)
        first, last = character[ends - sizes], character[ends - 1]
        return ids, [(starts[a][0], starts[b][1]) for a, b in zip(first, last, strict=True)]

    def _normalized_places(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """The normalized text, and for each of its characters the characters of `text` it came from. Nothing combines
        with an ASCII character before it, so stretches that begin with one are normalized one by one."""
        plain = self._normalize(text)
        if plain == text:
            return text, [(i, i + 1) for i in range(len(text))]
        places: list[tuple[int, int]] = []
        for stretch in regex.finditer(r"[\x00-\x7F]?[^\x00-\x7F]*", text):
            length = len(self._normalize(stretch.group()))
            one_to_one = length == stretch.end() - stretch.start()
            places += [
                (stretch.start() + i, stretch.start() + i + 1) if one_to_one else stretch.span() for i in range(length)
            ]
        return plain, places

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.normalizer == "NFC" else text

    def _encode_with(self, text: str, whole: Mapping[str, int]) -> Ids:
        """Encode with the tokens in `whole` cut out first: the longest of those that start leftmost."""
        if not whole:
            return self._encode_plain(text)
        parts, end = [], 0
        for match in _any_of(whole).finditer(text):
            parts += [self._encode_plain(text[end : match.start()]), np.array([whole[match.group()]], np.int32)]
            end = match.end()
        return np.concatenate([*parts, self._encode_plain(text[end:])]) if parts else self._encode_plain(text)

    def _encode_plain(self, text: str) -> Ids:
        return self._encoder.encode(self._normalize(text), self.pattern)

    def encode_reference(self, text: str) -> list[int]:
        """`encode_ordinary` without added tokens, by the book in plain Python: slow, for reading and for tests."""
        byte_ids, ranks = self._encoder.byte_ids.tolist(), self.ranks
        ids: list[int] = []
        for piece in split(self._normalize(text), self.pattern):
            data = piece.encode("utf-8")
            whole = self.ids_of_bytes.get(data) if self.whole_pieces else None
            ids += encode_by_the_book(data, ranks, byte_ids) if whole is None else [whole]
        return ids

    @cached_property
    def ranks(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Pair of ids → (rank, id of the joined token)."""
        pairs = zip(*self.merges.T.tolist(), strict=True) if len(self.merges) else ()
        return {pair: (k, int(new)) for k, (pair, new) in enumerate(zip(pairs, self.joined, strict=True))}

    @cached_property
    def ids_of_bytes(self) -> dict[bytes, int]:
        """Bytes → id, for tokens that ordinary text can become (no special or added ones)."""
        outside = {*self.special_tokens.values(), *self.added_tokens.values()}
        return {token: i for i, token in enumerate(self.tokens) if token and i not in outside}

    def forget(self) -> None:
        """Empty the cache of pieces met before; ids do not change."""
        self._encoder.forget()

    # ------------------------------------------------------------ decoding

    def decode_bytes(self, ids: Iterable[int] | npt.NDArray[Any]) -> bytes:
        """The bytes of the tokens. Raises TokenIdError for an id out of range."""
        numbers = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
        if not len(numbers):
            return b""
        if not np.issubdtype(numbers.dtype, np.integer):
            raise TokenIdError(f"ids are whole numbers, not {numbers.dtype}")
        if numbers.min() < 0 or numbers.max() >= len(self.tokens):
            wrong = np.flatnonzero((numbers < 0) | (numbers >= len(self.tokens)))
            raise TokenIdError(
                f"id {numbers[wrong[0]]} at position {wrong[0]} is out of range: the tokenizer has ids 0 to "
                f"{len(self.tokens) - 1}"
            )
        return b"".join(map(self.tokens.__getitem__, numbers.tolist()))

    def decode(self, ids: Iterable[int] | npt.NDArray[Any], errors: str = "replace") -> str:
        """The text of the tokens; bytes that are not UTF-8 become � unless `errors` says otherwise."""
        return self.decode_bytes(ids).decode("utf-8", errors)

    # ------------------------------------------------------------ tables

    def _check_added(self) -> None:
        for text, i in {**self.special_tokens, **self.added_tokens}.items():
            if not 0 <= i < len(self.tokens):
                raise VocabularyError(f"token {text!r} has id {i}, out of range for {len(self.tokens)} tokens")
            if self.tokens[i] != text.encode("utf-8"):
                raise VocabularyError(f"id {i} is {text!r} among the special tokens and {self.tokens[i]!r} in the list")

    def _check_tokens(self) -> None:
        ids = self.ids_of_bytes
        outside = {*self.special_tokens.values(), *self.added_tokens.values()}
        twice = [t for i, t in enumerate(self.tokens) if t and i not in outside and ids[t] != i]
        if twice:
            raise VocabularyError(f"the token {twice[0]!r} stands twice in the vocabulary: every token has one id")
        missing = [b for b in range(256) if bytes([b]) not in ids and b not in NEVER]
        if missing:
            raise VocabularyError(f"the vocabulary lacks the byte 0x{missing[0]:02X}: byte-level BPE needs every byte")

    def _join_merges(self, ids: Mapping[bytes, int]) -> Ids:
        """The id that each merge makes."""
        tokens, joined = self.tokens, np.empty(len(self.merges), np.int32)
        wrong = np.flatnonzero(((self.merges < 0) | (self.merges >= len(tokens))).any(axis=1))
        if len(wrong):
            raise VocabularyError(f"merge {wrong[0]} joins {self.merges[wrong[0]].tolist()}: no such ids")
        for k, (left, right) in enumerate(self.merges.tolist()):
            new = ids.get(tokens[left] + tokens[right])
            if new is None:
                raise VocabularyError(
                    f"merge {k} joins {tokens[left]!r} and {tokens[right]!r}, but the result is not in the vocabulary"
                )
            joined[k] = new
        return joined


# ---------------------------------------------------------------- small parts


def _any_of(texts: Collection[str]) -> regex.Pattern[str]:
    """Finds any of `texts`, the longest of those that start at the same place."""
    return regex.compile("|".join(regex.escape(text) for text in sorted(texts, key=len, reverse=True)))


def _first_of(have: Collection[str], *wanted: str | None) -> str | None:
    return next((token for token in wanted if token in have), None)
