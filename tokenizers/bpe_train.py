"""Training byte-level BPE: which pairs to merge, learned from text.

Byte-pair encoding (Gage 1994; for words Sennrich et al. 2016, arXiv:1508.07909, algorithm 1) starts from single bytes
and, again and again, makes one new token of the pair that occurs most often:

    while there are fewer than vocab_size tokens:
        count every pair of neighbours in every piece
        join the most frequent pair everywhere; equal counts: the smaller pair of ids

`merges_by_the_book` is that loop. It recounts everything for every merge. The fast path is in two files: the different
pieces and how often each occurs (word_counts.py), then the merges from those counts (bpe_merge.py).

Merges, ids and ties are those of Hugging Face's BpeTrainer, its corners included: a pair whose joined bytes are a token
already reuses that id and still counts as a merge; the count of a pair that was merged stays behind.

Ids: special tokens, then the 256 bytes in Hugging Face's ByteLevel order (printable ones first), then one a merge.

**Extending.** A tokenizer learned on other text spells a new field's words in many tokens. `extend_on_words` spells the
pieces with the tokenizer as it is and goes on merging from there: new ids behind the old, new merges behind the old, so
that every old id stands for what it stood for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from luthier.tokenizers.bpe import BYTE_ORDER, Tokenizer, VocabularyError
from luthier.tokenizers.bpe_merge import WALL, learn_merges
from luthier.tokenizers.pretokenize import split
from luthier.tokenizers.word_counts import MAX_PIECE_LENGTH, WordCounts, count_words

__all__ = [
    "SPECIAL_TOKENS",
    "Trained",
    "check_vocab_size",
    "extend_on_words",
    "merges_by_the_book",
    "train_bpe",
    "train_on_words",
]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
Progress = Callable[[float, int], None]


class Trained(NamedTuple):
    """A tokenizer, and in how many tokens the counted text was spelled before the merges and is spelled after."""

    tokenizer: Tokenizer
    before: int
    after: int


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    pattern: str = "llama3",
    min_frequency: int = 2,
    max_token_length: int = 0,
    num_threads: int = 1,
    max_memory: float = 2048,
    max_piece_length: int = MAX_PIECE_LENGTH,
) -> Tokenizer:
    """Train a byte-level BPE tokenizer of at most `vocab_size` ids, special tokens and the 256 bytes included.

    `pattern` is a name in PATTERNS or a regular expression; pairs rarer than `min_frequency` are not merged, so a small
    text gives fewer ids. `max_token_length` in bytes, 0: no limit. `max_memory` in MB bounds the table of words (see
    word_counts.py), pieces longer than `max_piece_length` bytes are cut. A special token's text in `texts` is ordinary
    text. The result does not depend on `num_threads`. Raises VocabularyError for a size that cannot be, PatternError,
    TextError.
    """
    check_vocab_size(vocab_size, special_tokens)
    words = count_words(
        texts, pattern, num_threads=num_threads, max_memory=max_memory, max_piece_length=max_piece_length
    )
    return train_on_words(
        words,
        vocab_size,
        special_tokens=special_tokens,
        pattern=pattern,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
    ).tokenizer


def train_on_words(
    words: WordCounts,
    vocab_size: int,
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    pattern: str = "llama3",
    min_frequency: int = 2,
    max_token_length: int = 0,
    on_progress: Progress | None = None,
) -> Trained:
    """The same from counted pieces; `on_progress(share, ids)` hears what share of the work is done, by estimate."""
    check_vocab_size(vocab_size, special_tokens)
    base = [token.encode("utf-8") for token in special_tokens] + [bytes([b]) for b in BYTE_ORDER]
    byte_ids = np.empty(256, np.int32)
    byte_ids[list(BYTE_ORDER)] = np.arange(len(special_tokens), len(base))
    tokens, merges, after = learn_merges(
        base,
        [i >= len(special_tokens) for i in range(len(base))],
        byte_ids[words.letters],
        words.ends,
        words.counts,
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
        on_progress=on_progress,
    )
    ids = {token: i for i, token in enumerate(special_tokens)}
    before = int(np.diff(words.ends, prepend=0) @ words.counts)
    return Trained(Tokenizer(tokens, merges, pattern=pattern, special_tokens=ids), before, after)


def extend_on_words(
    tokenizer: Tokenizer,
    words: WordCounts,
    add: int,
    *,
    min_frequency: int = 2,
    max_token_length: int = 0,
    on_progress: Progress | None = None,
) -> Trained:
    """`tokenizer` with up to `add` more ids, learned from `words`, which its own pattern cut and its own normalizer
    normalized. All its ids keep their meaning. Ids that stood for nothing get a special token's name, `<|unused 7|>`:
    Hugging Face's files have no room for a gap below the last token."""
    outside = {*tokenizer.special_tokens.values(), *tokenizer.added_tokens.values()}
    symbols, ends = _spelled(tokenizer, words, outside)
    unused = {f"<|unused {i}|>": i for i, token in enumerate(tokenizer.tokens) if not token}
    tokens = list(tokenizer.tokens)
    for name, i in unused.items():
        tokens[i] = name.encode()
    tokens, merges, after = learn_merges(
        tokens,
        [i not in outside and i not in unused.values() for i in range(len(tokens))],
        symbols,
        ends,
        words.counts,
        vocab_size=len(tokens) + add,
        min_frequency=min_frequency,
        max_token_length=max_token_length,
        on_progress=on_progress,
    )
    known = set(map(tuple, tokenizer.merges.tolist()))  # a pair that was a merge before keeps its rank
    new = [pair for pair in merges.tolist() if tuple(pair) not in known]
    same = ("pattern", "added_tokens", "normalizer", "whole_pieces", "eos_token", "pad_token", "chat_template", "kept")
    settings: dict[str, Any] = {name: getattr(tokenizer, name) for name in same}
    extended = Tokenizer(
        tokens,
        np.concatenate([tokenizer.merges, np.array(new, np.int32).reshape(-1, 2)]),
        special_tokens={**tokenizer.special_tokens, **unused},
        **settings,
    )
    before = int(np.diff(ends, prepend=0) @ words.counts)
    return Trained(extended, before, after)


def _spelled(
    tokenizer: Tokenizer, words: WordCounts, outside: set[int]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The ids of every word, a wall for each of the tokens `outside`, and where the ids of each word end."""
    ids, offsets = tokenizer.encode_batch([word.decode("utf-8", "replace") for word in words.words()])
    wall = np.zeros(tokenizer.vocab_size, bool)
    wall[list(outside)] = True
    return np.where(wall[ids], np.int32(WALL), ids).astype(np.int32), offsets[1:]


def check_vocab_size(vocab_size: int, special_tokens: Sequence[str]) -> None:
    """Raises VocabularyError if the 256 bytes and the special tokens do not fit or a special token is used twice."""
    if len(set(special_tokens)) < len(special_tokens) or "" in special_tokens:
        raise VocabularyError(f"special tokens must be different and not empty: {', '.join(map(repr, special_tokens))}")
    least = 256 + len(special_tokens)
    if vocab_size < least:
        raise VocabularyError(
            f"vocab_size {vocab_size} is too small: 256 bytes and {len(special_tokens)} special tokens need {least}\n"
            f"Use {least} or more; 4,000 for a few documents, 32,000 for a large corpus."
        )


# ---------------------------------------------------------------- the reference


def merges_by_the_book(
    texts: Iterable[str],
    vocab_size: int,
    pattern: str,
    special_tokens: Sequence[str] = (),
    min_frequency: int = 2,
    max_token_length: int = 1 << 30,
) -> list[tuple[bytes, bytes]]:
    """The textbook loop in plain Python: the pairs of tokens that are merged, in order."""
    tokens = [t.encode() for t in special_tokens] + [bytes([b]) for b in BYTE_ORDER]
    byte_ids = {token: i + len(special_tokens) for i, token in enumerate(tokens[len(special_tokens) :])}
    counted = Counter(piece for text in texts for piece in split(text, pattern))
    words = [([byte_ids[bytes([b])] for b in piece.encode()], count) for piece, count in counted.items()]
    merges = []
    while len(tokens) < vocab_size:
        pairs: Counter[tuple[int, int]] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                if len(tokens[pair[0]]) + len(tokens[pair[1]]) <= max_token_length:
                    pairs[pair] += count
        pair = max(pairs, key=lambda p: (pairs[p], -p[0], -p[1]), default=None)
        if pair is None or pairs[pair] < max(min_frequency, 1):
            break
        merges.append((tokens[pair[0]], tokens[pair[1]]))
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        words = [(_join(ids, pair, len(tokens) - 1), count) for ids, count in words]
    return merges


def _join(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """`ids` with every occurrence of `pair`, from the left, replaced by `new`."""
    joined, i = [], 0
    while i < len(ids):
        found = tuple(ids[i : i + 2]) == pair
        joined.append(new if found else ids[i])
        i += 2 if found else 1
    return joined
