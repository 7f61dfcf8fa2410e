"""Cutting text: the scanner against the `regex` package, patterns that are wrong, text that is no text."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers.pretokenize import PATTERNS, PatternError, TextError, boundaries, pattern_name, split

DATA = os.environ.get("LUTHIER_TEST_DATA")
TRICKY = "aAbZ'’ſstTrRlLvVeEmMdD01٣²Ⅷ .,!/-_\n\r\t \u0085\u00a0\u2028e\u0301ǅʰ中あกß\x00😀"
text_like = st.text(st.sampled_from(TRICKY), max_size=24) | st.text(max_size=24)


def cuts(text: str, pattern: str) -> list[int]:
    return np.cumsum([len(piece.encode()) for piece in split(text, pattern)], dtype=int).tolist()


@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=300)
@given(text=text_like)
def test_scanner_cuts_where_regex_does(name, text):
    data, ends = boundaries(text, name)
    assert data.tobytes() == text.encode()
    assert ends.tolist() == cuts(text, name)


SETS = (
    TRICKY,
    "aA's \n",
    "aB'sl \n/!1",
    "a\n \t!",
    "aA\u0301!' sS中",
    "1 23a\n",
    "  \n\n\ta!é",
    "中，a1ǅ\u0301\u3000",
    "'' aA!s",
)


@pytest.mark.parametrize("name", PATTERNS)
def test_long_strings_of_few_characters(name):
    """Blocks of 64 bytes meet in every state: random strings over small alphabets, some with long runs."""
    draw = np.random.default_rng(1)
    for k in range(900):
        letters = list(SETS[k % len(SETS)])
        runs = draw.choice([1, 1, 1, 2, 3, 20, 70], 60) if k % 2 else np.ones(200, int)
        text = "".join(letters[i] * run for i, run in zip(draw.integers(0, len(letters), len(runs)), runs, strict=True))
        assert boundaries(text, name)[1].tolist() == cuts(text, name), text


@pytest.mark.parametrize("name", PATTERNS)
def test_every_code_point_between_letters_blanks_and_numerals(name):
    every = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for left, right in (("a", "b"), (" ", " "), ("1", "A"), ("'", "s")):
        text = "".join(f"{left}{c}{right}" for c in every[:: 5 if name == "llama3" else 41])
        assert boundaries(text, name)[1].tolist() == cuts(text, name)


def test_examples():
    assert split("It's 20 °C  inside", "gpt2") == ["It", "'s", " 20", " °", "C", " ", " inside"]
    assert split("It'S 12345\n\n  x", "llama3") == ["It", "'S", " ", "123", "45", "\n\n", " ", " x"]
    assert split("HelloWorld's", "o200k") == ["Hello", "World's"]
    assert split("a 12", "smollm") == ["a", " ", "1", "2"]
    assert split(" \n ", "cl100k") == [" \n "]
    assert split(" \n ", "llama3") == [" \n", " "]


@settings(max_examples=200)
@given(text=text_like)
def test_own_pattern_loses_nothing(text):
    """What a pattern does not match is a piece of its own."""
    data, ends = boundaries(text, r"\p{L}{1,3}")
    assert "".join(split(text, r"\p{L}{1,3}")) == text
    assert ends.tolist() == cuts(text, r"\p{L}{1,3}")
    assert not len(data) or ends[-1] == len(data)


def test_pattern_that_does_not_compile():
    with pytest.raises(PatternError, match=r"'\(a' is not a regular expression.*\nKnown by name: gpt2"):
        boundaries("a", "(a")
    assert pattern_name(PATTERNS["qwen2"]) == "qwen2"
    assert pattern_name("x+") == "x+"


def test_half_a_surrogate_pair_is_named_with_its_place():
    with pytest.raises(TextError, match=r"character 2 .* U\+D83C"):
        boundaries("ab\ud83c", "llama3")


@pytest.mark.skipif(not DATA, reason="LUTHIER_TEST_DATA is not set")
@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("kind", ["english", "code", "multilingual"])
def test_real_text(name, kind):
    text = Path(DATA or "", "text", f"{kind}.txt").read_text(encoding="utf-8")[1_000_000:1_300_000]
    assert boundaries(text, name)[1].tolist() == cuts(text, name)
