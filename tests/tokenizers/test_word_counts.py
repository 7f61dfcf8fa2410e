"""Counting words: equal to the reference whatever the parts, threads and memory; text without spaces; errors."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers import word_counts
from luthier.tokenizers.bpe_train import train_on_words
from luthier.tokenizers.pretokenize import PATTERNS, PatternError, TextError, split
from luthier.tokenizers.word_counts import count_words, cut_place

DATA = os.environ.get("LUTHIER_TEST_DATA")
KINDS = ("english", "code", "multilingual")


def counted(words) -> dict[bytes, int]:
    found = dict(zip(words.words(), words.counts.tolist(), strict=True))
    assert len(found) == len(words.counts)
    return found


def by_the_book(texts, pattern) -> dict[bytes, int]:
    return dict(Counter(piece.encode() for text in texts for piece in split(text, pattern)))


def some_text(kind: str, size: int) -> str:
    if not DATA:
        pytest.skip("LUTHIER_TEST_DATA is not set")
    return Path(DATA, "text", f"{kind}.txt").read_text(encoding="utf-8")[:size]


def random_words(count: int) -> str:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, count)
    return " ".join("".join(map(chr, rng.integers(97, 123, n))) for n in lengths)


def test_table_grows_and_long_words_are_told_apart():
    text = random_words(20_000)
    texts = [text, text[:1000], "x" * 17, "x" * 18, "abcdefgh" * 3, "abcdefgh" * 2 + "abcdefgi"]
    assert counted(count_words(texts, "gpt2")) == by_the_book(texts, "gpt2")


@settings(max_examples=60)
@given(texts=st.lists(st.text(st.sampled_from("ab'\0\n é中7,🎻"), max_size=60), max_size=6))
def test_equals_the_reference(texts):
    assert counted(count_words(texts, "llama3")) == by_the_book(texts, "llama3")


@settings(max_examples=150)
@given(text=st.text(st.sampled_from("aB's \n\r\t,.;/中。7²_"), min_size=1, max_size=40), rest=st.text("aB' \n,/中7"))
def test_a_cut_changes_no_piece(text, rest):
    """Whatever follows a text, cutting it at `cut_place` gives the pieces of the whole, by every pattern."""
    place = cut_place(text)
    whole = text + rest
    if place:
        for pattern in PATTERNS:
            assert split(whole[:place], pattern) + split(whole[place:], pattern) == split(whole, pattern)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_threads_and_little_memory_change_nothing(kind, monkeypatch):
    """A table of 0.1 MB spills dozens of times; the sum is the same, and so are the merges."""
    text = some_text(kind, 400_000)
    expected = by_the_book([text], "o200k")
    monkeypatch.setattr(word_counts, "PART", 5_000)
    tokenizers = []
    for threads, memory in ((1, 2048), (1, 0.1), (3, 2048), (3, 0.3)):
        words = count_words([text], "o200k", num_threads=threads, max_memory=memory)
        assert counted(words) == expected
        tokenizers.append(train_on_words(words, 1000, pattern="o200k").tokenizer)
    assert all(np.array_equal(t.merges, tokenizers[0].merges) and t.tokens == tokenizers[0].tokens for t in tokenizers)


def test_counts_have_64_bits():
    counter = word_counts._Counter(Path(), 1 << 40, 1024)
    data = np.frombuffer(b"ab", np.uint8)
    for _ in range(3):
        counter.add(data, np.array([1, 2]), np.array([1 << 40, (1 << 62) // 3]))
    _, slots, size = word_counts._words_of(counter.table)
    assert sorted(word_counts._contents(counter.table, slots, size)[2].tolist()) == [3 << 40, (1 << 62) // 3 * 3]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a" * 300_000, {b"a" * 1024, b"a" * (300_000 % 1024)}),
        ("ก" * 3000, {"ก".encode() * 341, "ก".encode() * (3000 % 341)}),  # 341 · 3 bytes: no character is cut
        ("中" * 3000, {"中".encode() * 341, "中".encode() * (3000 % 341)}),
        ("a" * 1024, {b"a" * 1024}),
    ],
)
def test_one_long_word_is_capped(text, pieces):
    words = count_words([text], "gpt2")
    found = counted(words)
    assert set(found) == pieces
    assert sum(len(word) * count for word, count in found.items()) == len(text.encode())
    assert words.capped == (len(text.encode()) > 1024)


def test_a_text_without_any_place_to_cut_is_cut_and_told(monkeypatch):
    monkeypatch.setattr(word_counts, "PART", 10_000)
    words = count_words(["q" * 55_000 + " end"], "gpt2")
    assert (words.cut, words.capped) == (5, 6)
    assert sum(len(w) * n for w, n in counted(words).items()) == 55_004


def test_base64_of_some_megabytes():
    """3 MB of base64 in one line: the pieces are many and short, and training on them ends."""
    letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", np.uint8)
    text = letters[np.random.default_rng(0).integers(0, 64, 3_000_000)].tobytes().decode()
    words = count_words([text], "llama3", num_threads=2)
    assert int(np.diff(words.ends, prepend=0) @ words.counts) == 3_000_000
    assert train_on_words(words, 600).tokenizer.vocab_size == 600


def test_errors_of_any_thread_arrive():
    for threads in (1, 3):
        with pytest.raises(TextError, match="U\\+D800"):
            count_words(["a b", "c \ud800"] * 4, "gpt2", num_threads=threads)
        with pytest.raises(PatternError):
            count_words(["a"], "(", num_threads=threads)

        def broken():
            yield "a"
            raise OSError("disk")

        with pytest.raises(OSError, match="disk"):
            count_words(broken(), "gpt2", num_threads=threads)
