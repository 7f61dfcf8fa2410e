"""The compiled reader of ranks beside the book, on whole files and on what may stand in one."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.tokenizers.tiktoken_ranks import RanksError, ranks_by_the_book, read_ranks


def written(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % k for k, token in enumerate(tokens))


def as_tokens(data: bytes) -> list[bytes] | None:
    if (found := read_ranks(data)) is None:
        return None
    letters, ends = found
    return [letters[a:b].tobytes() for a, b in pairwise([0, *ends.tolist()])]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=30))
def test_what_is_written_is_read(tokens: list[bytes]):
    data = written(tokens)
    assert as_tokens(data) == as_tokens(data.removesuffix(b"\n")) == tokens
    assert ranks_by_the_book(data) == dict(enumerate(tokens))


@given(st.lists(st.binary(min_size=1, max_size=5), min_size=1, max_size=6), st.data())
def test_a_changed_byte_is_read_as_the_book_does_or_left_to_it(tokens: list[bytes], data: st.DataObject):
    text = bytearray(written(tokens))
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from(b"A/+= \n\r\t019-_?\xff"))
    if (found := as_tokens(bytes(text))) is not None:
        assert ranks_by_the_book(bytes(text)) == dict(enumerate(found))


@pytest.mark.parametrize("line", [b"IQ= 0", b"IQ 0", b"IR== 0", b"IQ==0", b"IQ== ", b"= 0", b" 0", b"IQ== 1"])
def test_what_is_not_as_expected_is_left_to_the_book(line: bytes):
    assert read_ranks(line + b"\n") is None


def test_the_book_names_the_line():
    with pytest.raises(RanksError) as error:
        ranks_by_the_book(b"IQ== 0\n\nIg== x\n")
    assert error.value.args[0] == 3


@pytest.mark.parametrize("name", ["r50k_base", "p50k_base", "cl100k_base", "o200k_base", "qwen", "llama3_tokenizer"])
def test_files_that_are_about(data: Path, name: str):
    file = next((data / "vocab").glob(f"{name}.*")).read_bytes()
    by_rank = ranks_by_the_book(file)
    found = as_tokens(file)
    assert found is None or by_rank == dict(enumerate(found))
    assert found is not None or sorted(by_rank) != [*range(len(by_rank))]
