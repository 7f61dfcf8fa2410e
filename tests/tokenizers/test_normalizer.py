"""The normalizer against sentencepiece's, against the plain reference, and its charsmap written and read."""

import os
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers.charsmap import CharsmapError, nmt_nfkc_rules, open_charsmap, read_charsmap, write_charsmap
from luthier.tokenizers.normalizer import Normalizer, nmt_nfkc, normalize_by_the_book
from luthier.tokenizers.pretokenize import TextError

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", ""))
RULES = {"ﬁ": "fi", "é": "é", "\t": " ", "\n": " ", "x": "", "¨": " ̈", "ab": "c", "abc": "ß  d", "Ⅳ": "IV"}
FLAGS = ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces", "treat_whitespace_as_suffix")


@cache
def default() -> Normalizer:
    return nmt_nfkc()


@pytest.mark.parametrize("rules", [{}, {"a": "b"}, {"a": "", "ab": "x", "é": "y"}, RULES])
def test_charsmap_written_and_read(rules):
    assert read_charsmap(write_charsmap(rules)) == dict(sorted(rules.items()))


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), st.text("abcé")
    )
)
def test_any_charsmap(rules):
    assert read_charsmap(write_charsmap(rules)) == rules


def test_bad_charsmaps():
    block = write_charsmap(RULES)
    for broken, what in (
        (block[:3], "should have"),
        (block[:40], "should have"),
        (b"\x07\0\0\0" + block[4:], "should have 7 bytes"),
        (block[:-1], "outside of it"),
        (block[:4] + b"\xff\xff\xff\x7f" + block[8:], "leads outside"),
    ):
        with pytest.raises(CharsmapError, match=what):
            open_charsmap(broken)
    with pytest.raises(CharsmapError, match="zero byte"):
        write_charsmap({"a\0": "b"})


@settings(max_examples=200)
@given(
    st.text("abcxéﬁ¨Ⅳ▁ \t\nAé\u0301日", max_size=20),
    st.tuples(*[st.booleans()] * 4),
    st.sampled_from([(), ("  ", "ab ", "▁b", "ﬁ")]),
    st.booleans(),
)
def test_by_the_book(text, flags, user_defined, mapped):
    settings_ = dict(zip(FLAGS, flags, strict=True))
    normalizer = Normalizer("test", write_charsmap(RULES) if mapped else b"", **settings_, user_defined=user_defined)
    expected = normalize_by_the_book(text, normalizer)
    assert normalizer.normalize(text) == expected
    plain, places = normalizer.normalize_with_places(text)
    assert plain == expected and len(places) == len(plain)
    assert all(0 <= a <= b <= len(text) for a, b in places)
    assert places == sorted(places)
    data, starts = normalizer.to_utf8([text, "", text, "b"], wide=True)
    assert data[starts[2] : starts[3]].tobytes().decode() == expected
    assert starts[1] == starts[2] == starts[3] - starts[2]


def test_places():
    plain, places = default().normalize_with_places(" Ⅳ  ﬁne ")
    assert plain == "▁IV▁fine"
    assert places == [(1, 1), (1, 2), (1, 2), (2, 3), (4, 5), (4, 5), (5, 6), (6, 7)]


def test_default_rules_are_sentencepieces():
    """On every code point that both Unicode versions know, alone and after a letter, and on texts."""
    theirs = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc")
    ours = default()
    known = [c for c in map(chr, range(1, 0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
    texts = [f"a{c}b" for c in known if c in nmt_nfkc_rules() or ord(c) % 7 == 0]
    data, starts = ours.to_utf8(texts)
    made = data.tobytes()
    different = [
        text
        for text, a, b in zip(texts, starts.tolist(), starts[1:].tolist(), strict=False)
        if made[a:b].decode() != theirs.normalize(text)
    ]
    assert len(different) < 100  # rules of a Unicode version that one of the two does not know
    assert all(unicodedata.normalize("NFKC", text[1]) != text[1] for text in different)


def test_texts():
    assert default().normalize("") == default().normalize("  ") == default().normalize("\x01") == ""
    assert default().normalize("한국 e\u0301") == "▁한국▁é"
    with pytest.raises(TextError, match="half of a surrogate pair"):
        default().normalize("a\ud800")
    many = ["a  b", "", "ﬁ"] * 400
    data, starts = default().to_utf8(many)
    assert data.tobytes().decode() == "▁a▁b▁fi" * 400
    assert len(starts) == 1201 and np.all(np.diff(starts) >= 0)
    assert nmt_nfkc_rules()["\t"] == " "
