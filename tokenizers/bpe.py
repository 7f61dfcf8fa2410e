"""Byte-level BPE: text to ids and back.

A tokenizer is a list of tokens (id → bytes) and a list of merges in the order in which they were learned. To encode a
piece of text (see pretokenize.py), start from its bytes and, as long as there is one, join the pair of neighbours whose
merge was learned first, the leftmost of equals. `encode_by_the_book` is that loop, n² steps for n bytes. The fast path
in bpe_encode.py gives the same ids.

Because every byte is a token there is no unknown text, and decoding is joining bytes. A token may end in the middle of
a character, so single tokens need not be valid UTF-8.

Special tokens (`<|endoftext|>` …) stand for things that are not text. `encode_ordinary` takes their spelling as the
text it is; `encode` refuses it unless it is allowed, as tiktoken does: text from strangers must not be able to end a
turn. The vocabulary is laid out as bpe_train.py says, or as a file says.
Added tokens are vocabulary from outside the merges (Hugging Face's non-special ones): always recognised.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import regex

from luthier.tokenizers.bpe_decode import Decoder, TokenIdError
from luthier.tokenizers.bpe_encode import Encoder, Row, join_pairs, row_of
from luthier.tokenizers.pretokenize import TextError, compile_pattern, split, utf8
from luthier.tokenizers.special_tokens import SpecialTokenError, cut_tokens, first_of, id_of, recognised

if TYPE_CHECKING:
    from luthier.tokenizers.bpe_dropout import Dropout

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
    places. `kept` holds what a file said that concerns only other programs. `joined` [M] is the id that each
    merge makes, looked up if not given. `ranks` [M]: the order of the merges if it is not theirs; of those with the
    same rank the leftmost comes first (in tiktoken the rank of a merge is the id that it makes). `row`: the tokens that
    text can become, looked for and checked if not given. Raises VocabularyError naming the id or merge that is wrong.
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
        joined: Ids | None = None,
        ranks: Ids | None = None,
        row: Row | None = None,
    ) -> None:
        compile_pattern(pattern)
        self.tokens = list(tokens)
        self.merges = np.asarray(merges if isinstance(merges, np.ndarray) else list(merges), np.int32).reshape(-1, 2)
        self.pattern = pattern
        self.special_tokens = dict(special_tokens or {})
        self.added_tokens = dict(added_tokens or {})
        self.normalizer = normalizer
        self.whole_pieces = whole_pieces
        self.eos_token = first_of(self.special_tokens, eos_token, "<|endoftext|>", "<|end_of_text|>", "</s>")
        self.pad_token = first_of(self.special_tokens, pad_token, "<|pad|>", self.eos_token)
        self.chat_template = chat_template
        self.kept = dict(kept or {})
        self._check_added()
        self.row = self._row() if row is None else row
        self.joined = self._join_merges() if joined is None else joined
        self.order = np.arange(len(self.merges), dtype=np.int32) if ranks is None else ranks
        self._encoder = Encoder(self.row, self.merges, self.joined, whole_pieces=whole_pieces, ranks=ranks)

    # ------------------------------------------------------------ facts

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @property
    def eos_id(self) -> int:
        """The id that ends a document. Raises SpecialTokenError where the tokenizer has none."""
        return id_of(self.special_tokens, self.eos_token, "an end-of-text token such as <|endoftext|>")

    @property
    def pad_id(self) -> int:
        """The id that fills empty places; the end-of-text id where there is no token of its own."""
        return id_of(self.special_tokens, self.pad_token, "a padding or end-of-text token")

    def __repr__(self) -> str:
        special = len(self.special_tokens)
        return f"Tokenizer({self.vocab_size:,} ids, {len(self.merges):,} merges, {special} special, {self.pattern!r})"

    # ------------------------------------------------------------ encoding

    def encode_ordinary(self, text: str) -> Ids:
        """Ids of `text`; the spelling of a special token is ordinary text."""
        if self.added_tokens or self.normalizer:
            return self._encode_texts([text], self.added_tokens)[0]
        try:
            return self._encoder.encode_one(text, self.pattern)
        except TextError:
            return self._encoder.encode_one(mended(text), self.pattern)

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
        special = recognised(text, self.special_tokens, allowed_special, disallowed_special)
        return self._encode_texts([text], {**self.added_tokens, **special})[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts one after the other (special tokens as ordinary text), and where each text starts:
        text i is `ids[offsets[i] : offsets[i + 1]]`. The threads share long texts, too."""
        return self._encode_texts(texts, self.added_tokens, max(1, num_threads))

    def encode_dropout(self, text: str, dropout: float = 0.1, seed: int = 0) -> Ids:
        """Ids of `text` with merges left out at random, each with probability `dropout` each time it could be made
        (BPE-dropout, see bpe_dropout.py): 0 gives `encode_ordinary`'s ids, 1 gives bytes. Another seed, another cut."""
        if not dropout:
            return self.encode_ordinary(text)
        parts = [p if isinstance(p, int) else self._plain(p) for p in cut_tokens(text, self.added_tokens)]
        return self._dropout.encode(parts, self.pattern, dropout, seed)

    @cached_property
    def _dropout(self) -> Dropout:
        from luthier.tokenizers.bpe_dropout import Dropout

        return Dropout(self._encoder.byte_ids, self.merges, self.joined)

    def count(self, text: str) -> int:
        """Number of tokens of `text`, special tokens as ordinary text."""
        return len(self.encode_ordinary(text))

    def split_at(self, text: str, max_tokens: int) -> list[str]:
        """`text` in parts that are at most `max_tokens` tokens each when encoded alone, cut between characters.

        Raises ValueError where one character is more tokens than that.
        """
        _, starts, ends = self._places(text)
        cuts = np.flatnonzero(starts[1:] >= ends[:-1])  # after these tokens no character is cut
        parts, begin = [], 0
        while begin < len(text):
            first = int(np.searchsorted(starts, begin))  # tokens from here on are wholly in this part
            k = int(np.searchsorted(cuts, first + max_tokens)) - 1
            end = len(text) if first + max_tokens >= len(starts) else int(ends[cuts[k]]) if k >= 0 else begin
            parts.append(self._fitting(text[begin : max(end, begin + 1)], max_tokens))
            begin += len(parts[-1])
        return parts

    def _fitting(self, text: str, max_tokens: int) -> str:
        """The beginning of `text` that is at most `max_tokens` tokens. Cut off from what follows, a text may be a token
        or two more than it was."""
        while (count := self.count(text)) > max_tokens:
            if len(text) == 1:
                raise ValueError(
                    f"the character {text!r} is {count} tokens, more than max_tokens = {max_tokens}\n"
                    f"Take {count} or more: no text is cut within a character."
                )
            text = text[: max(1, min(len(text) - 1, len(text) * max_tokens // count))]
        return text

    def offsets(self, text: str) -> tuple[Ids, list[tuple[int, int]]]:
        """Ids of `text` as `encode_ordinary` gives them, and for each token the characters [start, end) that it
        touches. Tokens that share a character both name it."""
        ids, starts, ends = self._places(text)
        return ids, list(zip(starts.tolist(), ends.tolist(), strict=True))

    def _places(self, text: str) -> tuple[Ids, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Ids, and for each the first character that it touches and the one after the last."""
        ids = self.encode_ordinary(text)
        sizes = self._decoder.sizes(ids)
        ends = np.cumsum(sizes)  # in bytes of the text as it was encoded
        plain, starts_of, ends_of = self._origins(text)
        if len(plain) == len(starts_of):
            return ids, starts_of[ends - sizes], ends_of[ends - 1]
        character = np.cumsum((plain & 0xC0) != 0x80) - 1  # byte → character
        return ids, starts_of[character[ends - sizes]], ends_of[character[ends - 1]]

    def _origins(self, text: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The bytes of `text` as it is encoded, and for each of their characters which ones of `text` [start, end) it
        came from."""
        if self._plain(text) == text:
            every = np.arange(len(text) + 1)
            return utf8(text), every[:-1], every[1:]
        plain: list[str] = []
        spans: list[tuple[int, int]] = []
        at = 0
        for part in cut_tokens(text, self.added_tokens):
            is_token = isinstance(part, int)
            for old in self.tokens[part].decode() if is_token else _STRETCHES.findall(part):
                new = old if is_token else self._plain(old)
                plain.append(new)
                if new == "".join(map(self._plain, old)) and len(new) == len(old):
                    spans += [(at + k, at + k + 1) for k in range(len(old))]
                else:
                    spans += [(at, at + len(old))] * len(new)
                at += len(old)
        starts, ends = np.array(spans, np.int64).reshape(-1, 2).T
        return utf8("".join(plain)), starts, ends

    def _plain(self, text: str) -> str:
        """The text as it is encoded."""
        return self._normalize(mended(text))

    def _normalize(self, text: str) -> str:
        return unicodedata.normalize("NFC", text) if self.normalizer == "NFC" else text

    def _encode_texts(
        self, texts: Sequence[str], whole: Mapping[str, int], num_threads: int = 1
    ) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts, with the tokens in `whole` recognised, and where each text starts."""
        if not whole:
            return self._encode_plain(texts, num_threads)
        cut = [cut_tokens(text, whole) for text in texts]
        parts = [part for text in cut for part in text]
        if not any(isinstance(part, int) for part in parts):
            return self._encode_plain(texts, num_threads)
        is_text = np.array([isinstance(part, str) for part in parts])
        plain, offsets = self._encode_plain([part for part in parts if isinstance(part, str)], num_threads)
        sizes = np.ones(len(parts), np.int64)
        sizes[is_text] = np.diff(offsets)
        of_text = np.repeat(is_text, sizes)
        ids = np.empty(len(of_text), np.int32)
        ids[of_text], ids[~of_text] = plain, [part for part in parts if isinstance(part, int)]
        starts = np.append(0, np.cumsum(sizes))
        return ids, starts[np.cumsum([0, *map(len, cut)])]

    def _encode_plain(self, texts: Sequence[str], num_threads: int) -> tuple[Ids, npt.NDArray[np.int64]]:
        try:
            normal = [self._normalize(text) for text in texts] if self.normalizer else texts
            return self._encoder.encode(normal, self.pattern, num_threads)
        except TextError:
            return self._encoder.encode([self._plain(text) for text in texts], self.pattern, num_threads)

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
        return dict(zip(pairs, zip(self.order.tolist(), self.joined.tolist(), strict=True), strict=True))

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
        return bytes(self._decoder.join(ids))

    def decode(self, ids: Iterable[int] | npt.NDArray[Any], errors: str = "replace") -> str:
        """The text of the tokens; bytes that are not UTF-8 become � unless `errors` says otherwise."""
        return self._decoder.text(ids, errors)

    def stream_decode(self, ids: Iterable[int], errors: str = "replace") -> Iterator[str]:
        """The text of ids that come one by one, never half a character: joined, it is what `decode` gives."""
        return self._decoder.stream(ids, errors)

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.tokens)

    # ------------------------------------------------------------ tables

    def _check_added(self) -> None:
        for text, i in {**self.special_tokens, **self.added_tokens}.items():
            if not 0 <= i < len(self.tokens):
                raise VocabularyError(f"token {text!r} has id {i}, out of range for {len(self.tokens)} tokens")
            if self.tokens[i] != text.encode("utf-8"):
                raise VocabularyError(f"id {i} is {text!r} among the special tokens and {self.tokens[i]!r} in the list")

    def _row(self) -> Row:
        """The tokens that text can become."""
        outside = {*self.special_tokens.values(), *self.added_tokens.values()}
        ids: Sequence[int] = range(len(self.tokens))
        texts = self.tokens
        if outside or b"" in texts:
            ids = [i for i, token in enumerate(texts) if token and i not in outside]
            texts = [texts[i] for i in ids]
        if len(known := set(texts)) < len(texts):
            twice = next(text for text, count in Counter(texts).items() if count > 1)
            raise VocabularyError(f"the token {twice!r} stands twice in the vocabulary: every token has one id")
        missing = [b for b in range(256) if bytes([b]) not in known and b not in NEVER]
        if missing:
            raise VocabularyError(f"the vocabulary lacks the byte 0x{missing[0]:02X}: byte-level BPE needs every byte")
        return row_of(texts, ids)

    def _join_merges(self) -> Ids:
        """The id that each merge makes."""
        ids, tokens = self.ids_of_bytes, self.tokens
        wrong = np.flatnonzero(((self.merges < 0) | (self.merges >= len(tokens))).any(axis=1))
        if len(wrong):
            raise VocabularyError(f"merge {wrong[0]} joins {self.merges[wrong[0]].tolist()}: no such ids")
        joined = join_pairs(ids, tokens, self.merges)
        if len(missing := np.flatnonzero(joined < 0)):
            left, right = (tokens[i] for i in self.merges[missing[0]].tolist())
            raise VocabularyError(
                f"merge {missing[0]} joins {left!r} and {right!r}, but the result is not in the vocabulary"
            )
        return joined


# ---------------------------------------------------------------- small parts


# What normalization changes together: a character and those that may combine with it; a pair of surrogates.
_STRETCHES: Final = regex.compile(r"(?s)[\ud800-\udbff][\udc00-\udfff]|.(?:\P{NFC_QC=Y}|\P{ccc=0})*")


def mended(text: str) -> str:
    """`text` with pairs of surrogates as the character they stand for and lone ones as �, as tiktoken does."""
    if text.isascii():
        return text
    return str.encode(text, "utf-16", "surrogatepass").decode("utf-16", "replace")
