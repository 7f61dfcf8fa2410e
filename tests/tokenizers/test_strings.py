"""Python's strings as UTF-8: what `str.encode` gives, for every code point, width and length."""

from __future__ import annotations

import ctypes
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.tokenizers import strings
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.shares import LARGEST, in_threads

EVERY = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))


class Name(str):
    """A string all the same."""


class Liar(str):
    """A string that says to be short and gives bytes without a word where there are none."""

    def __len__(self) -> int:
        return 0

    def encode(self, *_: object) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        return b""


class Proxy:
    """Says to be a string, and is none."""

    __class__ = str  # pyright: ignore[reportAssignmentType]

    def __len__(self) -> int:
        return 4


def utf8(texts: list[str]) -> list[bytes] | int:
    """What the two steps give, or the number of the text that is none."""
    places, starts = np.array([id(text) for text in texts], np.int64), np.zeros(len(texts) + 1, np.int64)
    out = np.empty(4 * sum(map(len, texts)) + 32, np.uint8)
    arrays = (places.ctypes.data, starts.ctypes.data, len(texts))
    size = strings._look(*arrays)
    size = size if size < 0 else strings._write(*arrays, out.ctypes.data)
    if size < 0:
        return -1 - size
    return [ctypes.string_at(*found) for found in zip(places.tolist(), np.diff(starts).tolist(), strict=True)]


@pytest.mark.parametrize("size", [1, 31, 32, 33, 1000, strings.LONG + 1])
def test_every_code_point(size: int):
    texts = [EVERY[i : i + size] for i in range(0, len(EVERY) if size > 1 else 0x3000, size)]
    assert utf8(texts) == [text.encode() for text in texts]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=100), max_size=5), st.integers(0, 70))
def test_as_python_does(texts: list[str], size: int):
    texts = [*texts, *("x" * size + text for text in texts), *(text + "é" + "x" * size for text in texts)]
    assert utf8(texts) == [text.encode() for text in texts]
    assert utf8([*map(Name, texts)]) == [text.encode() for text in texts]


@pytest.mark.parametrize("around", ["", "x" * 40, "東" * 40, "😀" * 40, "x" * strings.LONG])
def test_half_of_a_pair_is_named(around: str):
    assert utf8(["é", around + "\udfff" + around, "\ud800"]) == 1


def test_only_strings_are_taken():
    tokenizer = train_bpe(["some words, some more words"], 260)
    for texts in ([b"some"], ["some", ["words"]], ["some", "words", 3]):
        for num_threads in (1, 2):
            with pytest.raises(TypeError):
                tokenizer.encode_batch(texts, num_threads)  # pyright: ignore[reportArgumentType]
    for text in (b"some", Proxy()):
        with pytest.raises(TypeError):
            tokenizer.encode_ordinary(text)  # pyright: ignore[reportArgumentType]
    assert tokenizer.encode_ordinary(Name("some")).tolist() == tokenizer.encode_ordinary("some").tolist()


def test_room_is_made_for_what_a_string_has():
    tokenizer = train_bpe(["some words, some more words"], 260)
    texts = ["😀" * (LARGEST // 16 - 8)] * 16 + ["東" * (strings.LONG - 1)]  # as many characters as one share takes
    one_by_one = np.concatenate([tokenizer.encode_ordinary(text) for text in texts])
    for kind in (str, Liar):
        for num_threads in (1, 2):
            ids, offsets = tokenizer.encode_batch([*map(kind, texts)], num_threads)
            assert np.array_equal(ids, one_by_one) and offsets[-1] == len(one_by_one) > 3 * LARGEST
    expected = tokenizer.encode_ordinary("\ufffd").tolist()
    assert tokenizer.encode_batch([Liar("\ud800"), Liar("\ud800")])[0].tolist() == 2 * expected


def test_any_collection_of_texts():
    tokenizer = train_bpe(["some words, some more words"], 260)
    expected = tokenizer.encode_batch(["some", "words"])
    for kind in (tuple, deque):
        found = tokenizer.encode_batch(kind(["some", "words"]))
        assert all(map(np.array_equal, found, expected))


def test_an_error_is_not_swallowed_in_threads():
    def encode(share: int) -> tuple[np.ndarray, np.ndarray]:
        done.append(share)
        raise IndexError("of the encoder")

    done: list[int] = []
    with pytest.raises(IndexError, match="of the encoder"):
        in_threads(encode, range(50), 2)
    assert len(done) < 3


def test_threads_that_encode_short_texts_have_their_own_ids():
    tokenizer = train_bpe(["some words, some more words", "日本語 ±é"], 280)
    texts = [f"{n} words, ± some 東 more " * (1 + n % 40) for n in range(200)]
    right = [tokenizer.encode_reference(text) for text in texts]

    def encoded(numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        wrong = [n for n in numbers if tokenizer.encode_ordinary(texts[n]).tolist() != right[n]]
        return np.array(wrong, np.int32), np.zeros(1, np.int64)

    for wrong, _ in in_threads(encoded, [list(range(200))] * 8, 4):
        assert not len(wrong)
    one, two = tokenizer.encode_ordinary("words"), tokenizer.encode_ordinary("more")
    assert one.flags.owndata and one.flags.writeable and tokenizer.decode(one) + tokenizer.decode(two) == "wordsmore"
