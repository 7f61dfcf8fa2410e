"""Unigram tokenization: the most probable way to cut a text into pieces.

A unigram language model (Kudo 2018, arXiv:1804.10959) gives each piece x a probability p(x), and a segmentation the
product of its pieces' probabilities. Of all segmentations of a text the best is found by Viterbi's algorithm: the best
way to reach character j ends in some piece text[i:j], and the way to i before it is the best one there is,

    best(j) = max over pieces text[i:j] of  best(i) + log p(text[i:j]),      best(0) = 0

so one pass with a few look-ups a character is enough. `segment_by_the_book` is that pass; unigram_encode.py is the
fast path. The other segmentations have their use: `nbest` lists the next best, and `sample` draws one with probability
proportional to P^alpha, which shows a model in training the same text cut in several ways.

Text is normalized first, and a space is spelled ▁ (U+2581) so that it can be part of a piece: `▁the`. A character that
no piece covers is unknown: it costs ten nats more than the least probable piece and becomes the unknown token (one for
a run of them), or its UTF-8 bytes where the vocabulary holds `<0x00>` to `<0xFF>` (byte fallback).

Ids are those of the sentencepiece library (0.2.3), ties and rounding included.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.bpe import TokenIdError, VocabularyError
from luthier.tokenizers.shares import encode_in_batches
from luthier.tokenizers.special_tokens import cut_special, first_of, id_of
from luthier.tokenizers.unigram_encode import Encoder
from luthier.tokenizers.unigram_lattice import lattice, sample
from luthier.tokenizers.unigram_trie import build_model

__all__ = ["Kind", "Normalizer", "UnigramTokenizer", "segment_by_the_book"]

Ids = npt.NDArray[np.int32]

SPACE: Final = "▁"
UNKNOWN_SURFACE: Final = " ⁇ "  # what sentencepiece writes for an unknown token


class Kind(IntEnum):
    """What a piece is, numbered as in sentencepiece's files."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # a special token: never made from text
    USER_DEFINED = 4  # always one token, wherever it is spelled
    UNUSED = 5  # keeps its id, is never made
    BYTE = 6  # <0x41>


class Normalizer(Protocol):
    """What a tokenizer asks of its normalizer."""

    def normalize(self, text: str) -> str:
        """The text as pieces spell it, ▁ for a space."""
        ...

    def to_utf8(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """All texts, normalized, in UTF-8, and where each starts and the last ends [len(texts) + 1]."""
        ...

    def normalize_with_places(self, text: str) -> tuple[str, Sequence[tuple[int, int]]]:
        """The same, and for each of its characters the characters [start, end) of `text` it came from."""
        ...

    def restore(self, text: str) -> str:
        """Undo what can be undone in decoded text (spaces, not ▁): drop the space put before the first word."""
        ...


def segment_by_the_book(text: str, log_p: Mapping[str, float]) -> list[str]:
    """The best segmentation of normalized text, in plain Python; a character without a piece is a piece of its own."""
    longest = max(map(len, log_p), default=1)
    unknown = min(log_p.values(), default=0.0) - 10
    best, start = [0.0], [0]  # of the best way to each place: its score, and where its last piece starts
    for j in range(1, len(text) + 1):
        ways = [(best[j - 1] + log_p.get(text[j - 1], unknown), j - 1)]
        for i in range(max(0, j - longest), j - 1):
            if text[i:j] in log_p:
                ways.append((best[i] + log_p[text[i:j]], i))
        score, i = max(ways)
        best.append(score)
        start.append(i)
    pieces, j = [], len(text)
    while j:
        pieces.append(text[start[j] : j])
        j = start[j]
    return pieces[::-1]


class UnigramTokenizer:
    """Pieces with log-probabilities and the rules around them.

    `pieces` id → spelling, a space as ▁; `scores` [V] natural logarithms; `kinds` what each piece is (all NORMAL but
    `unk_id` if None); `unk_id` the unknown token; `normalizer` turns text into what pieces spell; `byte_fallback`:
    unknown characters become the pieces `<0x00>` to `<0xFF>`. `special_tokens` text → id, by default the control
    pieces. `eos_token` and `pad_token` name the special tokens at a document's end and in empty places. `kept` holds
    what a file said that concerns only other programs. Raises VocabularyError naming the piece that is wrong.
    """

    def __init__(
        self,
        pieces: Sequence[str],
        scores: npt.NDArray[np.float32],
        *,
        normalizer: Normalizer,
        kinds: Sequence[int] | None = None,
        unk_id: int = 0,
        byte_fallback: bool = False,
        special_tokens: Mapping[str, int] | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        chat_template: str | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self.pieces = list(pieces)
        self.scores = np.asarray(scores, np.float32)
        self.kinds = np.full(len(self.pieces), Kind.NORMAL, np.int8) if kinds is None else np.asarray(kinds, np.int8)
        self.unk_id = unk_id
        self.normalizer = normalizer
        self.byte_fallback = byte_fallback
        self._check()
        if kinds is None:
            self.kinds[unk_id] = Kind.UNKNOWN
        control = {self.pieces[i]: int(i) for i in np.flatnonzero(self.kinds == Kind.CONTROL)}
        self.special_tokens = dict(control if special_tokens is None else special_tokens)
        self.added_tokens: dict[str, int] = {}  # a byte-level tokenizer may have some; here they are special ones
        self.eos_token = first_of(self.special_tokens, eos_token, "</s>", "<|endoftext|>", "<eos>")
        self.pad_token = first_of(self.special_tokens, pad_token, "<pad>", "<|pad|>", self.eos_token)
        self.chat_template = chat_template
        self.kept = dict(kept or {})
        self.tokens = [self._bytes_of(i) for i in range(len(self.pieces))]
        self._encoder = Encoder(build_model(self.spellings, self._weights(), self._byte_ids(), unk_id), self.cut)

    # ------------------------------------------------------------ facts

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    @property
    def eos_id(self) -> int:
        """The id that ends a document. Raises SpecialTokenError where the tokenizer has none."""
        return id_of(self.special_tokens, self.eos_token, "an end-of-text token such as </s>")

    @property
    def pad_id(self) -> int:
        """The id that fills empty places; the end-of-text id where there is no token of its own."""
        return id_of(self.special_tokens, self.pad_token, "a padding or end-of-text token")

    def __repr__(self) -> str:
        return f"UnigramTokenizer({self.vocab_size:,} ids, {len(self.special_tokens)} special)"

    # ------------------------------------------------------------ encoding

    def encode_ordinary(self, text: str) -> Ids:
        """Ids of `text`; the spelling of a special token is ordinary text."""
        return self._encoder.encode(*self.normalizer.to_utf8([text]))[0]

    def encode(
        self,
        text: str,
        allowed_special: Literal["all"] | Collection[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> Ids:
        """Ids of `text`, with the special tokens in `allowed_special` recognised; see special_tokens.py."""
        parts = cut_special(text, self.special_tokens, allowed_special, disallowed_special)
        ids = [np.array([p], np.int32) if isinstance(p, int) else self.encode_ordinary(p) for p in parts]
        return np.concatenate(ids) if ids else np.empty(0, np.int32)

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids of all texts one after the other (special tokens as ordinary text), and where each text starts:
        text i is `ids[offsets[i] : offsets[i + 1]]`."""
        return encode_in_batches(self._encode_texts, texts, num_threads)

    def _encode_texts(self, texts: Sequence[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        return self._encoder.encode(*self.normalizer.to_utf8(texts))

    def count(self, text: str) -> int:
        """Number of tokens of `text`, special tokens as ordinary text."""
        return len(self.encode_ordinary(text))

    def offsets(self, text: str) -> tuple[Ids, list[tuple[int, int]]]:
        """Ids of `text` as `encode_ordinary` gives them, and for each token the characters [start, end) it came from.
        The bytes of one character all name it; a ▁ that stands for no space is an empty place."""
        plain, places = self.normalizer.normalize_with_places(text)
        data, starts = _utf8(plain)
        ids, offsets, _ = self._encoder.best(data, starts)
        ids, _, ends = self._encoder.finish(data, starts, ids, offsets)
        characters = np.cumsum((data & 0xC0) != 0x80)
        spans, start = [], 0
        for end in characters[ends - 1].tolist():
            first = start if end > start else end - 1  # a byte inside a character
            spans.append((places[first][0], places[end - 1][1]))
            start = end
        return ids, spans

    # ------------------------------------------------------------ other segmentations

    def sample(self, text: str, alpha: float = 0.1, seed: int | np.random.Generator = 0) -> Ids:
        """Ids of a segmentation drawn with probability proportional to P^alpha: alpha 0 makes all equally likely, a
        large one nearly always gives the best (Kudo 2018, section 3.1; there 0.1 to 0.5)."""
        data, starts = self.normalizer.to_utf8([text])
        return self._finish(data, starts, sample(data, self._encoder.model, alpha, np.random.default_rng(seed)))

    def _finish(self, data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ids: Ids) -> Ids:
        """Ids as given out: unknown characters joined, or as bytes."""
        return self._encoder.finish(data, starts, ids, np.array([0, len(ids)]))[0]

    def nbest(self, text: str, n: int) -> list[tuple[Ids, float]]:
        """The `n` best segmentations and their log-probabilities, best first; fewer where there are not so many.

        A* from the end of the text: a way to the end is worth its own score plus the best score of a way to where it
        starts, which Viterbi's pass has found; so ways come off the heap in order of the whole text's score.
        """
        data, starts = self.normalizer.to_utf8([text])
        best, edges = lattice(data, self._encoder.model)  # edges[j]: (start, id, score) of the pieces that end at j
        heap: list[tuple[float, int, float, int, Any]] = [(-best[-1], 0, 0.0, len(best) - 1, None)]
        found, made = [], 1
        while heap and len(found) < n:
            _, _, score, j, way = heapq.heappop(heap)
            if j == 0:
                found.append((self._finish(data, starts, np.array(_unlinked(way), np.int32)), score))
            for i, piece, gain in edges[j]:
                heapq.heappush(heap, (-(best[i] + gain + score), made, gain + score, i, (piece, way)))
                made += 1
        return found

    def log_likelihood(self, text: str) -> float:
        """Natural logarithm of the best segmentation's probability, summed in double precision."""
        ids = self._encoder.best(*self.normalizer.to_utf8([text]))[0]
        return float(self._encoder.model.weights[ids].sum(dtype=np.float64))

    def encode_reference(self, text: str) -> list[str]:
        """The best segmentation in plain Python, user-defined pieces aside: slow, for reading and for tests."""
        log_p = {self.pieces[i]: float(self.scores[i]) for i in np.flatnonzero(self.kinds == Kind.NORMAL)}
        return segment_by_the_book(self.normalizer.normalize(text), log_p)

    def forget(self) -> None:
        """Empty the cache of words met before; ids do not change."""
        self._encoder.forget()

    # ------------------------------------------------------------ decoding

    def decode_bytes(self, ids: Iterable[int] | npt.NDArray[Any]) -> bytes:
        """The bytes of the tokens, the space before the first word included. Raises TokenIdError for an id out of
        range."""
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
        return self.normalizer.restore(self.decode_bytes(ids).decode("utf-8", errors))

    # ------------------------------------------------------------ tables

    def _check(self) -> None:
        if len(self.scores) != len(self.pieces) or len(self.kinds) != len(self.pieces):
            raise VocabularyError(
                f"{len(self.pieces)} pieces, {len(self.scores)} scores and {len(self.kinds)} kinds: there must be one "
                "of each for every id"
            )
        if not 0 <= self.unk_id < len(self.pieces):
            raise VocabularyError(f"the unknown token has id {self.unk_id}, out of range for {len(self.pieces)} pieces")
        seen: dict[str, int] = {}
        for i, piece in enumerate(self.pieces):
            if not piece:
                raise VocabularyError(f"piece {i} is empty")
            if seen.setdefault(piece, i) != i:
                raise VocabularyError(f"the piece {piece!r} stands twice in the vocabulary: ids {seen[piece]} and {i}")
        wrong = np.flatnonzero(~np.isfinite(self.scores))
        if len(wrong):
            raise VocabularyError(f"piece {wrong[0]}, {self.pieces[wrong[0]]!r}, has the score {self.scores[wrong[0]]}")

    def _bytes_of(self, i: int) -> bytes:
        """What id i stands for in text."""
        kind, piece = self.kinds[i], self.pieces[i]
        if kind == Kind.BYTE:
            return bytes([_byte_value(i, piece)])
        if kind == Kind.UNKNOWN:
            return UNKNOWN_SURFACE.encode()
        return (piece if kind == Kind.CONTROL else piece.replace(SPACE, " ")).encode()

    @cached_property
    def spellings(self) -> dict[bytes, int]:
        """UTF-8 spelling → id, of the pieces that text can become."""
        made = (Kind.NORMAL, Kind.USER_DEFINED)
        return {piece.encode(): i for i, piece in enumerate(self.pieces) if self.kinds[i] in made}

    @cached_property
    def cut(self) -> int:
        """Where text falls into words that no piece crosses: 2 before every ▁; 1 before a ▁ after another character,
        as some pieces hold several in a row; 0 nowhere."""
        inner = [p.decode() for p in self.spellings if SPACE in p.decode()[1:]]
        crossing = any(a != SPACE and b == SPACE for p in inner for a, b in pairwise(p))
        return 0 if crossing else 1 if inner else 2

    def _weights(self) -> npt.NDArray[np.float32]:
        """Score of each id in the lattice. An unknown character is ten nats below all pieces; a user-defined piece
        outbids any other."""
        normal = self.scores[self.kinds == Kind.NORMAL]
        weights = self.scores.copy()
        weights[self.unk_id] = normal.min(initial=0) - np.float32(10)
        for i in np.flatnonzero(self.kinds == Kind.USER_DEFINED):
            weights[i] = len(self.pieces[i].encode()) * float(normal.max(initial=-np.inf).clip(0)) - 0.1
        return weights

    def _byte_ids(self) -> Ids:
        """Byte → id, or empty without byte fallback."""
        if not self.byte_fallback:
            return np.empty(0, np.int32)
        ids = np.full(256, -1, np.int32)
        for i in np.flatnonzero(self.kinds == Kind.BYTE):
            ids[_byte_value(int(i), self.pieces[i])] = i
        if (ids < 0).any():
            missing = int(np.flatnonzero(ids < 0)[0])
            raise VocabularyError(f"byte fallback needs a piece for every byte; <0x{missing:02X}> is missing")
        return ids


# ---------------------------------------------------------------- small parts


def _byte_value(i: int, piece: str) -> int:
    try:
        if len(piece) != 6 or piece[:3] != "<0x" or piece[5] != ">":
            raise ValueError
        return int(piece[3:5], 16)
    except ValueError:
        raise VocabularyError(f"piece {i}, {piece!r}, is a byte but is not spelled <0x00> to <0xFF>") from None


def _utf8(text: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    data = np.frombuffer(text.encode("utf-8"), np.uint8)
    return data, np.array([0, len(data)])


def _unlinked(way: Any) -> list[int]:
    ids = []
    while way:
        ids.append(way[0])
        way = way[1]
    return ids
