"""Decoding: the bytes of the book, from every kind of ids; a stream of whole characters; what is no id is named."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers.bpe_decode import FEW, Decoder, TokenIdError, join_by_the_book

TOKENS = [
    b"a",
    b"",
    b" the",
    "ß".encode(),
    b"\xf0\x9f",
    b"\x8e\xbb",
    b"\xc3",
    b"x" * 15,
    b"y" * 16,
    b"z" * 17,
    b"w" * 100,
]
some_ids = st.lists(st.integers(0, len(TOKENS) - 1), max_size=3 * FEW)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(TOKENS)


@settings(max_examples=200)
@given(ids=some_ids)
def test_bytes_are_those_of_the_book(decoder, ids):
    wanted = join_by_the_book(TOKENS, ids)
    assert bytes(decoder.join(ids)) == wanted
    for kind in (np.int32, np.int64, np.uint16, np.uint32, np.uint64, np.int8):
        assert bytes(decoder.join(np.array(ids, kind))) == wanted
    assert decoder.text(ids, "replace") == wanted.decode("utf-8", "replace")


@settings(max_examples=200)
@given(ids=some_ids)
def test_a_stream_joined_is_the_text_and_never_half_a_character(decoder, ids):
    parts = list(decoder.stream(iter(ids), "replace"))
    assert "".join(parts) == decoder.text(ids, "replace")
    assert all(parts)


def test_a_stream_waits_for_the_rest_of_a_character(decoder):
    stream = decoder.stream(iter([0, 4, 5, 3, 4]), "replace")
    assert [next(stream), next(stream), next(stream)] == ["a", "🎻", "ß"]
    assert list(stream) == ["�"]  # the text ended inside a character


def test_other_rows_of_ids(decoder):
    many = [0, 2, 3] * FEW
    wanted = join_by_the_book(TOKENS, many)
    read_only = np.array(many)
    read_only.flags.writeable = False
    every_second = np.repeat(many, 2)[::2]
    for ids in (tuple(many), iter(many), read_only, every_second, np.array(many, object).tolist(), range(0)):
        assert bytes(decoder.join(ids)) == (b"" if isinstance(ids, range) else wanted)
    assert decoder.join([np.int32(0), np.uint8(2)]) == b"a the"

    class Tensor:
        """What tensors of other libraries have in common."""

        def __array__(self, dtype=None, copy=None):
            return np.array(many)

    assert bytes(decoder.join(Tensor())) == wanted


@pytest.mark.parametrize("before", [0, 2 * FEW])
@pytest.mark.parametrize(
    "wrong", [len(TOKENS), -1, -len(TOKENS), 2 * len(TOKENS), 1 << 31, -(1 << 40), 1 << 63, 1 << 70]
)
def test_an_id_out_of_range_is_named_with_its_place(decoder, before, wrong):
    ids = [*[0] * before, wrong, 0]
    where = f"id {wrong} at position {before} is out of range: the tokenizer has ids 0 to {len(TOKENS) - 1}"
    with pytest.raises(TokenIdError, match=where):
        decoder.join(ids)
    if -(1 << 63) <= wrong < 1 << 63:
        with pytest.raises(TokenIdError, match=where):
            decoder.join(np.array(ids, np.int64))
    with pytest.raises(TokenIdError, match=f"id {wrong} at position 0"):
        list(decoder.stream([wrong], "replace"))


@pytest.mark.parametrize("before", [0, 2 * FEW])
@pytest.mark.parametrize("wrong", [0.5, "a", None])
def test_what_is_no_whole_number_is_refused(decoder, before, wrong):
    with pytest.raises(TokenIdError, match="whole numbers"):
        decoder.join([*[0] * before, wrong])
    with pytest.raises(TokenIdError, match="whole numbers"):
        decoder.join(np.array([*[0.0] * before, 0.5]))
    with pytest.raises(TokenIdError, match="whole numbers"):
        decoder.join(np.zeros((2, 2 * FEW), np.int32))
