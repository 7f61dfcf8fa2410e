"""BPE over characters, as SentencePiece has it: Llama 2, Mistral.

Where byte-level BPE (bpe.py) begins with bytes and merges by a list, here a text begins as its characters, a space
written ▁, and any two neighbours that together are a piece may be joined: the piece with the highest score first, the
leftmost of equals. `join_by_the_book` is that loop. A character without a piece is spelled in bytes, `<0xE2><0x98>…`
(byte fallback), or is unknown. User-defined pieces are cut out first and joined with nothing.

The fast path is byte-level BPE's own (bpe_encode.py), for this is a case of it: let each byte be a symbol, and let the
first merges put the characters together; then come the pieces, in order of their scores. Parts of characters that no
merge completes are written as bytes at the end. piece_cut.py says where a text falls into independent words.

Two things it cannot say go the way of sentencepiece's own algorithm in plain Python, with a heap: unused pieces
(joined, and taken apart again at the end), and different pieces with equal scores. Of these, runs of one character are
the exception that every model has (`▁▁`, `▁▁▁` …, all at -1e9): there the leftmost comes first if the pair with the
longer left side does, because a run grows from its left end until it cannot.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from os.path import commonprefix
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import regex

from luthier.tokenizers.bpe import VocabularyError
from luthier.tokenizers.bpe_encode import Encoder, row_of
from luthier.tokenizers.normalizer import SPACE, Normalizer
from luthier.tokenizers.piece_cut import cut_words, finish, joints
from luthier.tokenizers.piece_decode import PieceDecoder
from luthier.tokenizers.shares import encode_in_batches
from luthier.tokenizers.special_tokens import cut_special, first_of, id_of
from luthier.tokenizers.unigram import Kind

__all__ = ["PieceBpeTokenizer", "join_by_the_book"]

Ids = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

UNKNOWN_SURFACE: Final = " ⁇ "  # what sentencepiece writes for an unknown token
UNKNOWN, CONTROL, UNUSED, BYTE = map(
    int, (Kind.UNKNOWN, Kind.CONTROL, Kind.UNUSED, Kind.BYTE)
)  # an enumeration is slow to ask


def join_by_the_book(symbols: Sequence[str], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The textbook loop: join the pair of lowest rank, the leftmost of equals, as long as there is one."""
    symbols = list(symbols)
    while found := [ranks[pair] for pair in pairwise(symbols) if pair in ranks]:
        best = min(found)
        i = next(i for i, pair in enumerate(pairwise(symbols)) if ranks.get(pair) == best)
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return symbols


class PieceBpeTokenizer:
    """Pieces with scores, their kinds, and the rules around them.

    `pieces` id → spelling, a space as ▁; `scores` [V]; `kinds` what each piece is (all NORMAL but `unk_id` if None);
    `normalizer` turns text into what pieces spell; `byte_fallback`: characters without a piece become the pieces
    `<0x00>` to `<0xFF>`. `merges` [M, 2] pairs of ids in order of rank, where a file lists them: then scores do not
    count. `special_tokens` text → id, by default the control pieces. `eos_token` and `pad_token` name the special
    tokens at a document's end and in empty places. `kept` holds what a file said that concerns only other programs.
    Raises VocabularyError naming the piece that is wrong.
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
        merges: npt.NDArray[np.int32] | None = None,
        special_tokens: Mapping[str, int] | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        chat_template: str | None = None,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        self.pieces = list(pieces)
        self.scores = np.asarray(scores, np.float32)
        self.kinds = np.full(len(self.pieces), Kind.NORMAL, np.int8) if kinds is None else np.asarray(kinds, np.int8)
        self.normalizer, self.unk_id, self.byte_fallback = normalizer, unk_id, byte_fallback
        self.merges = None if merges is None else np.asarray(merges, np.int32).reshape(-1, 2)
        self.chat_template, self.kept = chat_template, dict(kept or {})
        self._check()
        if kinds is None:
            self.kinds[unk_id] = Kind.UNKNOWN
        control = {self.pieces[i]: int(i) for i in np.flatnonzero(self.kinds == Kind.CONTROL)}
        self.special_tokens = dict(control if special_tokens is None else special_tokens)
        self.added_tokens: dict[str, int] = {}  # a byte-level tokenizer may have some; here they are special ones
        self.eos_token = first_of(self.special_tokens, eos_token, "</s>", "<|endoftext|>", "<eos>")
        self.pad_token = first_of(self.special_tokens, pad_token, "<pad>", "<|pad|>", self.eos_token)
        self.tokens = [
            self._bytes_of(i, kind, piece)
            for i, (kind, piece) in enumerate(zip(self.kinds.tolist(), self.pieces, strict=True))
        ]
        self._decoder = PieceDecoder(self.tokens, self.kinds, normalizer)
        self._make_tables()

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
        return f"PieceBpeTokenizer({self.vocab_size:,} ids, {len(self.special_tokens)} special)"

    @cached_property
    def ids_of_pieces(self) -> dict[str, int]:
        """Spelling → id, of the pieces that text can become."""
        made = np.isin(self.kinds, [Kind.NORMAL, Kind.USER_DEFINED, Kind.UNUSED])
        return {self.pieces[i]: i for i in np.flatnonzero(made).tolist()}

    @cached_property
    def ranks(self) -> dict[tuple[str, str], int]:
        """Pair of neighbours → order in which it is joined, the lowest first. Pairs that make the same piece, or pieces
        of the same score, have the same rank."""
        if self.merges is not None:
            texts = self.pieces
            return {(texts[left], texts[right]): k for k, (left, right) in enumerate(self.merges.tolist())}
        ids, places = self.ids_of_pieces, {}
        order = {score: k for k, score in enumerate(np.unique(self.scores)[::-1].tolist())}
        scores = self.scores.tolist()
        for piece, i in ids.items():
            rank = order[scores[i]]
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if (cut == 1 or left in ids) and (cut == len(piece) - 1 or right in ids):
                    places[left, right] = rank
        return places

    # ------------------------------------------------------------ encoding

    def encode_ordinary(self, text: str) -> Ids:
        """Ids of `text`; the spelling of a special token is ordinary text."""
        return self._encode_texts([text])[0]

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

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> tuple[Ids, Places]:
        """Ids of all texts one after the other (special tokens as ordinary text), and where each text starts:
        text i is `ids[offsets[i] : offsets[i + 1]]`."""
        return encode_in_batches(self._encode_texts, texts, num_threads)

    def count(self, text: str) -> int:
        """Number of tokens of `text`, special tokens as ordinary text."""
        return len(self.encode_ordinary(text))

    def offsets(self, text: str) -> tuple[Ids, list[tuple[int, int]]]:
        """Ids of `text` as `encode_ordinary` gives them, and for each token the characters [start, end) it came from.
        The bytes of one character all name it; a ▁ that stands for no space is an empty place."""
        plain, places = self.normalizer.normalize_with_places(text)
        ids, ends, begin = [], [], 0
        for symbol in self._symbols(plain):
            own = self._ids_of_symbol(symbol)
            begin += len(symbol)
            if own == [self.unk_id] and ids[-1:] == own:
                ends[-1] = begin
            else:
                ids += own
                ends += [begin] * len(own)
        spans, start, last = [], 0, 0
        for end in ends:
            if end > last:
                start, last = last, end
            spans.append((places[start][0], places[end - 1][1]))
        return np.array(ids, np.int32), spans

    def encode_reference(self, text: str) -> list[int]:
        """`encode_ordinary` by the book in plain Python, unused pieces aside: slow, for reading and for tests."""
        ids: list[int] = []
        for part, frozen in self._parts(self.normalizer.normalize(text)):
            for symbol in [part] if frozen else join_by_the_book(part, self.ranks):
                own = self._ids_of_symbol(symbol)
                ids += [] if own == [self.unk_id] and ids[-1:] == own else own
        return ids

    def forget(self) -> None:
        """Empty the cache of words met before; ids do not change."""
        if self._encoder:
            self._encoder.forget()

    def _encode_texts(self, texts: Sequence[str]) -> tuple[Ids, Places]:
        if self._encoder is None:
            return self._encode_slowly(texts)
        if self._may_be_frozen(texts):
            return self._encode_around(texts)
        data, starts = self.normalizer.to_utf8(texts, wide=False)
        ids, offsets = self._encoder.encode_cut(data, starts, cut_words(data, starts, self._joints))
        return finish(ids, offsets, *self._spelled, self.vocab_size, self.unk_id)

    def _encode_around(self, texts: Sequence[str]) -> tuple[Ids, Places]:
        """The same where user-defined pieces stand in the texts."""
        assert self._encoder
        parts = [(k, *part) for k, text in enumerate(texts) for part in self._parts(self.normalizer.normalize(text))]
        encoded = [part.encode() for _, part, frozen in parts if not frozen]
        data = np.frombuffer(b"".join(encoded), np.uint8)
        starts = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(part) for part in encoded], out=starts[1:])
        ids, places = self._encoder.encode_cut(data, starts, cut_words(data, starts, self._joints))
        rows = iter(pairwise(places.tolist()))
        offsets, made = np.zeros(len(texts) + 1, np.int64), [np.empty(0, np.int32)]
        for k, part, frozen in parts:
            own = np.array([self.ids_of_pieces[part]], np.int32) if frozen else ids[slice(*next(rows))]
            made.append(own)
            offsets[k + 1] += len(own)
        return finish(np.concatenate(made), np.cumsum(offsets), *self._spelled, self.vocab_size, self.unk_id)

    def _encode_slowly(self, texts: Sequence[str]) -> tuple[Ids, Places]:
        """The same with a heap in plain Python."""
        made, offsets = [], [0]
        for text in texts:
            for symbol in self._symbols(self.normalizer.normalize(text)):
                own = self._ids_of_symbol(symbol)
                fresh = len(made) == offsets[-1] or own != [self.unk_id] or made[-1] != self.unk_id
                made += own if fresh else []
            offsets.append(len(made))
        return np.array(made, np.int32), np.array(offsets, np.int64)

    def _symbols(self, plain: str) -> list[str]:
        """The symbols of a normalized text when all is joined, unused pieces taken apart again."""
        unused = {self.pieces[i] for i in np.flatnonzero(self.kinds == Kind.UNUSED)}
        symbols, apart = [], {}
        for part, frozen in self._parts(plain):
            symbols += [(part, True)] if frozen else [(c, False) for c in part]
        joined = _join_with_heap(symbols, self.ranks, unused, apart)
        todo, made = joined[::-1], []
        while todo:
            symbol = todo.pop()
            if symbol in apart:
                left, right = apart[symbol]
                todo += [right, left]
            else:
                made.append(symbol)
        return made

    def _parts(self, plain: str) -> list[tuple[str, bool]]:
        """A normalized text as (stretch, whether it is a user-defined piece)."""
        if self._frozen is None:
            return [(plain, False)]
        parts, end = [], 0
        for match in self._frozen.finditer(plain):
            parts += [(plain[end : match.start()], False), (match.group(), True)]
            end = match.end()
        return [part for part in [*parts, (plain[end:], False)] if part[0]]

    def _may_be_frozen(self, texts: Sequence[str]) -> bool:
        """Whether a user-defined piece may stand in the texts: a quick look at what they begin with."""
        return any(start in text for start in self._frozen_starts for text in texts)

    def _ids_of_symbol(self, symbol: str) -> list[int]:
        found = self.ids_of_pieces.get(symbol)
        if found is not None and self.kinds[found] != UNUSED:
            return [found]
        return [int(self._byte_ids[b]) for b in symbol.encode()] if self.byte_fallback else [self.unk_id]

    # ------------------------------------------------------------ decoding

    def decode_bytes(self, ids: Iterable[int] | npt.NDArray[Any]) -> bytes:
        """The bytes of the tokens, the space before the first word included. Raises TokenIdError for an id out of
        range."""
        return bytes(self._decoder.bytes.join(ids))

    def decode(self, ids: Iterable[int] | npt.NDArray[Any], errors: str = "replace") -> str:
        """The text of the tokens; bytes that are not UTF-8 become � unless `errors` says otherwise."""
        return self._decoder.text(ids, errors)

    # ------------------------------------------------------------ tables

    def _check(self) -> None:
        count = len(self.pieces)
        if len(self.scores) != count or len(self.kinds) != count:
            raise VocabularyError(f"{count} pieces, {len(self.scores)} scores and {len(self.kinds)} kinds: not as many")
        if not 0 <= self.unk_id < count:
            raise VocabularyError(f"the unknown token has id {self.unk_id}, out of range for {count} pieces")
        seen: dict[str, int] = {}
        for i, piece in enumerate(self.pieces):
            if not piece:
                raise VocabularyError(f"piece {i} is empty")
            if seen.setdefault(piece, i) != i:
                raise VocabularyError(f"the piece {piece!r} stands twice in the vocabulary: ids {seen[piece]} and {i}")
        if len(wrong := np.flatnonzero(np.isnan(self.scores))):
            raise VocabularyError(f"piece {wrong[0]}, {self.pieces[wrong[0]]!r}, has no number for a score")

    def _bytes_of(self, i: int, kind: int, piece: str) -> bytes:
        """What id i stands for in text."""
        if kind == BYTE:
            return bytes([_byte_value(i, piece)])
        if kind == UNKNOWN:
            return self.kept.get("unk_surface", UNKNOWN_SURFACE).encode()
        return (piece if kind == CONTROL else piece.replace(SPACE, " ")).encode()

    def _make_tables(self) -> None:
        """The tables of the fast path, or none where it would not be exact."""
        user_defined = [self.pieces[i] for i in np.flatnonzero(self.kinds == Kind.USER_DEFINED)]
        longest_first = sorted(user_defined, key=len, reverse=True)
        self._frozen = regex.compile("|".join(map(regex.escape, longest_first))) if user_defined else None
        spaced = any(SPACE in piece or " " in piece for piece in user_defined)
        groups = [list(group) for _, group in groupby(sorted(user_defined), key=lambda piece: piece[0])]
        self._frozen_starts = [""] if spaced else [commonprefix(group) for group in groups]  # noqa: RUF071
        self._byte_ids = np.full(256, -1, np.int32)
        for i in np.flatnonzero(self.kinds == Kind.BYTE):
            self._byte_ids[_byte_value(int(i), self.pieces[i])] = i
        if self.byte_fallback and (self._byte_ids < 0).any():
            missing = int(np.flatnonzero(self._byte_ids < 0)[0])
            raise VocabularyError(f"byte fallback needs a piece for every byte; <0x{missing:02X}> is missing")
        self._encoder = None
        if (order := self.order) is not None:
            self._joints = joints(self.ids_of_pieces, escaped=self.normalizer.escape_whitespaces)
            self._make_encoder(order)

    @cached_property
    def order(self) -> dict[tuple[str, str], tuple[int, int]] | None:
        """Pair → (rank, rank among equals): pairs of one order make the same piece. None if there is no such order, or
        if there are unused pieces."""
        if (self.kinds == Kind.UNUSED).any():
            return None
        made: dict[int, set[str]] = {}
        for (left, right), rank in self.ranks.items():
            made.setdefault(rank, set()).add(left + right)
        runs = set()
        for rank, pieces in made.items():
            if len(pieces) > 1:
                letters = {c for piece in pieces for c in piece}
                double = 2 * min(letters)
                if len(letters) > 1 or any(double in p and set(p) != letters for p in self.ids_of_pieces):
                    return None
                runs.add(rank)
        longest = max(map(len, self.pieces), default=0)
        places = {}
        for (left, right), rank in self.ranks.items():
            place = (longest - len(left)) * (longest + 1) + len(right) if rank in runs else 0
            places[left, right] = (rank, place)
        return places

    def _make_encoder(self, order: Mapping[tuple[str, str], tuple[int, int]]) -> None:
        """Byte-level BPE that does the same: symbols past the vocabulary are bytes and parts of characters."""
        symbols = {piece.encode(): i for piece, i in self.ids_of_pieces.items()}
        if self.normalizer.escape_whitespaces:
            blank = symbols.get(b" ")
            if SPACE.encode() in symbols:
                symbols[b" "] = symbols[SPACE.encode()]
            elif blank is not None:
                del symbols[b" "]
        parts: list[bytes] = []

        def symbol(part: bytes) -> int:
            if part not in symbols:
                symbols[part] = self.vocab_size + len(parts)
                parts.append(part)
            return symbols[part]

        for b in range(256):
            symbol(bytes([b]))
        rows: list[tuple[int, int, int]] = []  # left, right, rank
        known: set[bytes] = set()
        alphabet = {c for piece in self.ids_of_pieces for c in piece}
        space = b" " if self.normalizer.escape_whitespaces else SPACE.encode()
        symbols.setdefault(SPACE.encode(), symbol(space)) if SPACE in alphabet else None
        made: list[int] = []
        for character in sorted(alphabet):
            data = character.encode()
            for cut in range(2, len(data) + 1):
                if data[:cut] not in known:
                    known.add(data[:cut])
                    rows.append((symbol(data[: cut - 1]), symbol(data[cut - 1 : cut]), len(made)))
                    made.append(symbol(data[:cut]))
        ranks = {place: len(made) + k for k, place in enumerate(sorted(set(order.values())))}
        made += [0] * len(ranks)
        for (left, right), place in order.items():
            rows.append((symbol(left.encode()), symbol(right.encode()), ranks[place]))
            made[ranks[place]] = symbols[(left + right).encode()]
        table = np.array(rows, np.int32).reshape(-1, 3)
        joined = np.array(made, np.int32)[table[:, 2]]
        single = [bytes([b]) for b in range(256)]
        row = row_of(single, [symbols[b] for b in single])
        self._encoder = Encoder(
            row, np.ascontiguousarray(table[:, :2]), joined, whole_pieces=False, ranks=table[:, 2].copy()
        )
        spelled, sizes = np.zeros((len(parts), 4), np.int32), np.zeros(len(parts), np.int32)
        if self.byte_fallback:
            for k, part in enumerate(parts):
                part = SPACE.encode() if part == b" " and self.normalizer.escape_whitespaces else part
                sizes[k] = len(part)
                spelled[k, : len(part)] = self._byte_ids[list(part)]
        self._spelled = spelled, sizes


# ---------------------------------------------------------------- small parts


def _join_with_heap(
    symbols: list[tuple[str, bool]],
    ranks: Mapping[tuple[str, str], int],
    unused: Collection[str],
    apart: dict[str, tuple[str, str]],
) -> list[str]:
    """The textbook loop in n log n steps. `symbols` are (text, whether it is never joined); `apart` takes, for pieces
    in `unused`, the pair that was last seen to make each."""
    texts: list[str] = [text for text, _ in symbols]
    before, after = list(range(-1, len(texts) - 1)), [*range(1, len(texts)), -1]
    heap: list[tuple[int, int, int, int]] = []

    def offer(left: int, right: int) -> None:
        if left < 0 or right < 0 or symbols[left][1] or symbols[right][1]:
            return
        pair = texts[left], texts[right]
        rank = ranks.get(pair)
        if rank is not None:
            heapq.heappush(heap, (rank, left, right, len(pair[0]) + len(pair[1])))
            if pair[0] + pair[1] in unused:
                apart[pair[0] + pair[1]] = pair

    for i in range(1, len(texts)):
        offer(i - 1, i)
    while heap:
        _, left, right, size = heapq.heappop(heap)
        if not texts[left] or not texts[right] or len(texts[left]) + len(texts[right]) != size:
            continue  # one of them was joined since
        texts[left], texts[right] = texts[left] + texts[right], ""
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        offer(before[left], left)
        offer(left, after[left])
    return [text for text in texts if text]


def _byte_value(i: int, piece: str) -> int:
    try:
        if len(piece) != 6 or piece[:3] != "<0x" or piece[5] != ">":
            raise ValueError
        return int(piece[3:5], 16)
    except ValueError:
        raise VocabularyError(f"piece {i}, {piece!r}, is a byte but is not spelled <0x00> to <0xFF>") from None
