"""BPE over pieces against sentencepiece itself and against the textbook loop."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.tokenizers.bpe import SpecialTokenError, TokenIdError, VocabularyError
from luthier.tokenizers.normalizer import Normalizer
from luthier.tokenizers.piece_bpe import PieceBpeTokenizer, join_by_the_book
from luthier.tokenizers.sentencepiece_model import load_sentencepiece, save_sentencepiece
from luthier.tokenizers.unigram import Kind

DATA = Path(os.environ.get("LUTHIER_TEST_DATA", ""))
MODELS = ["llama2_tokenizer", "mistral_v1", "mistral_v3"]
TEXTS = ["english", "code", "multilingual"]
EVERY = "LUTHIER_EVERY_CODE_POINT" in os.environ  # all of them take a minute; otherwise one in 29
BYTES = [f"<0x{b:02X}>" for b in range(256)]
HARD = ["", " ", "  ", "a", " a", "a ", "\0", "a\0b", "\r\n\r\n", "▁", "▁▁ ▁a▁", " " * 37 + "x", "x" + " " * 100]
HARD += [
    "\t \t",
    "é",
    "e\u0301",
    "日本語 テキスト",
    "\U0001f600\U0001f468\u200d\U0001f469",
    "￿\U0010ffff",
    "don't I’ll",
    "<s></s><unk>",
    "<0x41>",
    "ﬁ Ⅳ ㍿",
]


def small(
    pieces: list[str], scores: list[float], kinds: list[int] | None = None, *, fallback: bool = True, **rules: bool
) -> PieceBpeTokenizer:
    """A tokenizer with these pieces after <unk>, <s>, </s> and, with fallback, the bytes."""
    head = ["<unk>", "<s>", "</s>", *(BYTES if fallback else [])]
    first = [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, *[Kind.BYTE] * (256 if fallback else 0)]
    last = [int(Kind.NORMAL)] * len(pieces) if kinds is None else kinds
    defined = tuple(p for p, kind in zip(pieces, last, strict=True) if kind == Kind.USER_DEFINED)
    normalizer = Normalizer(**{"remove_extra_whitespaces": False, **rules}, user_defined=defined)  # pyright: ignore
    values = np.array([0.0] * len(head) + scores, np.float32)
    return PieceBpeTokenizer(
        head + pieces, values, kinds=[*first, *last], normalizer=normalizer, byte_fallback=fallback
    )


def judge(tokenizer: PieceBpeTokenizer, folder: Path) -> sentencepiece.SentencePieceProcessor:
    save_sentencepiece(tokenizer, folder / "m.model")
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


def same(tokenizer, processor, text: str) -> None:
    theirs = processor.encode(text)
    ours = tokenizer.encode_ordinary(text).tolist()
    assert ours == theirs, (text, ours, theirs)
    assert tokenizer.decode(ours) == processor.decode(theirs), text


@pytest.fixture(scope="module", params=MODELS)
def both(request):
    if "LUTHIER_TEST_DATA" not in os.environ:
        pytest.skip("LUTHIER_TEST_DATA is not set")
    file = DATA / "vocab" / f"{request.param}.model"
    return load_sentencepiece(file), sentencepiece.SentencePieceProcessor(model_file=str(file))


def test_by_the_book():
    """ab and bc overlap in abc: the better score goes first; of equals the left one."""
    ranks = {("b", "c"): 0, ("a", "b"): 1, ("a", "bc"): 2}
    assert join_by_the_book("abcab", ranks) == ["abc", "ab"]
    assert join_by_the_book("aaaaa", {("a", "a"): 0, ("aa", "a"): 0}) == ["aaa", "aa"]


alphabet = "ab▁é"
vocabularies = st.lists(
    st.tuples(
        st.text(alphabet, min_size=1, max_size=5),
        st.integers(-6, 0),
        st.sampled_from([Kind.NORMAL] * 6 + [Kind.USER_DEFINED, Kind.UNUSED]),
    ),
    min_size=1,
    max_size=25,
    unique_by=lambda row: row[0],
)
texts = st.lists(st.text(alphabet + " cß\n", max_size=20), min_size=1, max_size=4)


@settings(max_examples=60)
@given(vocabularies, texts, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["all", "normal", "distinct"]))
def test_random_vocabularies(tmp_path_factory, rows, lines, fallback, trim, suffix, mode):
    pieces, scores, kinds = (list(column) for column in zip(*rows, strict=True))
    if mode != "all":
        kinds = [Kind.NORMAL] * len(kinds)
    scores = [-float(k) for k in range(len(pieces))] if mode == "distinct" else [float(s) for s in scores]
    rules = {"remove_extra_whitespaces": trim, "treat_whitespace_as_suffix": suffix}
    tokenizer = small(pieces, scores, [int(k) for k in kinds], fallback=fallback, **rules)
    processor = judge(tokenizer, tmp_path_factory.mktemp("model"))
    if mode == "distinct":
        assert tokenizer._encoder is not None
    for line in lines:
        same(tokenizer, processor, line)
        ids, places = tokenizer.offsets(line)
        assert ids.tolist() == processor.encode(line)
        assert all(0 <= a <= b <= len(line) for a, b in places)
        if Kind.UNUSED not in kinds:
            assert tokenizer.encode_reference(line) == ids.tolist()
    ids, offsets = tokenizer.encode_batch(lines, num_threads=2)
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == [processor.encode(x) for x in lines]


@settings(max_examples=60)
@given(st.sets(st.integers(2, 16), min_size=1), st.lists(st.integers(1, 60), max_size=3))
def test_runs_of_equal_score(tmp_path_factory, sizes, runs):
    """`▁▁`, `▁▁▁` … all have the score -1e9, in any choice of lengths."""
    pieces = ["▁", "a", "▁a", *("▁" * n for n in sorted(sizes))]
    tokenizer = small(pieces, [-5.0, -4.0, -1.0] + [-1e9] * len(sizes))
    assert tokenizer._encoder is not None
    same(tokenizer, judge(tokenizer, tmp_path_factory.mktemp("model")), "a".join(" " * n for n in runs) + "a ")


def test_model_on_texts(both):
    tokenizer, processor = both
    for name in TEXTS:
        text = (DATA / "text" / f"{name}.txt").read_text(encoding="utf-8")
        same(tokenizer, processor, text[1_000_000:1_100_000])
    for text in HARD:
        same(tokenizer, processor, text)
        same(tokenizer, processor, f"x{text}y")
    ids, places = tokenizer.offsets("Ünï  code ▁")
    assert ids.tolist() == processor.encode("Ünï  code ▁")
    assert places[0] == (0, 0) or places[0][0] == 0
    assert places[-1][1] == 11


def test_every_code_point(both):
    """Alone and between letters; text of one code point a line, cut at line ends by both."""
    tokenizer, processor = both
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for form in ("{}", "a{}b"):
        lines = [form.format(c) for c in points[:: 1 if EVERY else 29]]
        ids, offsets = tokenizer.encode_batch(lines)
        theirs = processor.encode(lines)
        assert np.array_equal(np.diff(offsets), [len(row) for row in theirs])
        assert np.array_equal(ids, np.concatenate(theirs))


@settings(max_examples=30)
@given(text=st.text(max_size=60))
def test_any_text(both, text):
    tokenizer, processor = both
    same(tokenizer, processor, text)


def test_decode_any_ids(both):
    tokenizer, processor = both
    generator = np.random.default_rng(0)
    control = np.flatnonzero(tokenizer.kinds == Kind.CONTROL)
    for ids in generator.integers(0, tokenizer.vocab_size, (200, 12)):
        ids = ids[~np.isin(ids, control)]
        assert tokenizer.decode(ids) == processor.decode(ids.tolist())
    for ids in generator.integers(3, 259, (200, 9)):  # bytes, mostly no characters
        ids = ids[~np.isin(ids, control)]
        assert tokenizer.decode(ids) == processor.decode(ids.tolist())


def test_special_tokens(both):
    tokenizer, processor = both
    with pytest.raises(SpecialTokenError, match=r"'</s>' at character 2"):
        tokenizer.encode("a </s>")
    ids = tokenizer.encode("a</s>b", allowed_special="all").tolist()
    assert ids == [*processor.encode("a"), processor.eos_id(), *processor.encode("b")]
    assert tokenizer.eos_id == tokenizer.pad_id == processor.eos_id()
    assert tokenizer.decode(ids) == "a</s> b"
    assert tokenizer.count("a b") == len(processor.encode("a b"))
    with pytest.raises(TokenIdError, match="id 99999 at position 1"):
        tokenizer.decode([1, 99999])


def test_long_words():
    """No word is too long: a megabyte of one letter, much of random letters; in square time it would never end."""
    tokenizer = small(["▁", "a", "b", "aa", "aaaa", "ab", "ba"], [-9.0, -9.0, -8.0, -1.0, -2.0, -3.0, -4.0])
    assert tokenizer.count("a" * 1_000_000) < 300_000
    letters = np.random.default_rng(0).choice([97, 98], 300_000).astype(np.uint8).tobytes().decode()
    ids = tokenizer.encode_ordinary(letters)
    assert tokenizer.decode(ids) == letters


def test_bad_vocabularies():
    with pytest.raises(VocabularyError, match="'a' stands twice in the vocabulary: ids 259 and 260"):
        small(["a", "a"], [0.0, 0.0])
    with pytest.raises(VocabularyError, match=r"<0x00> is missing"):
        PieceBpeTokenizer(["<unk>", "a"], np.zeros(2, np.float32), normalizer=Normalizer(), byte_fallback=True)
    with pytest.raises(VocabularyError, match="no number"):
        small(["a"], [float("nan")])
