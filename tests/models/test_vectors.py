"""The vectors store against gensim, brute force, and files that are damaged on purpose."""

import gensim.models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models import vectors as store
from luthier.models.ngrams import fnv
from luthier.models.vector_files import read_glove, read_word2vec, write_glove, write_word2vec
from luthier.models.vectors import Vectors, VectorsError, load_vectors


def made(size=50, dim=12, seed=0, tokens=None):
    rng = np.random.default_rng(seed)
    tokens = tokens or [f"w{n}" if n % 3 else f"Ġä{n}" for n in range(size)]
    return Vectors(
        rng.normal(size=(len(tokens), dim)).astype(np.float32),
        tokens,
        rng.permutation(len(tokens) * 2)[: len(tokens)],
        np.sort(rng.integers(1, 1000, len(tokens)))[::-1].copy(),
        rng.normal(size=(len(tokens), dim)).astype(np.float32),
        "byte-level",
    )


# ---------------------------------------------------------------- the folder


def test_a_folder_gives_back_what_was_saved_and_is_mapped(tmp_path):
    v = made()
    v.save(tmp_path)
    again = load_vectors(tmp_path)
    assert (again.tokens, again.spelling, len(again), again.dim) == (v.tokens, "byte-level", 50, 12)
    for name in ("vectors", "contexts", "ids", "counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(v, name))
    assert isinstance(again.vectors.base, np.memmap)


def test_safetensors_opens_the_table(tmp_path):
    from safetensors.numpy import load_file

    v = made()
    v.save(tmp_path)
    np.testing.assert_array_equal(load_file(tmp_path / "vectors.safetensors")["vectors"], v.vectors)


def test_a_folder_that_is_damaged_is_refused_with_file_and_line(tmp_path):
    with pytest.raises(VectorsError, match=r"no vectors\.safetensors"):
        load_vectors(tmp_path)
    made().save(tmp_path)
    table, vocabulary = tmp_path / "vectors.safetensors", tmp_path / "vocabulary.jsonl"
    whole, lines = table.read_bytes(), vocabulary.read_text(encoding="utf-8").splitlines(keepends=True)
    for cut in (4, 40, len(whole) - 1):
        table.write_bytes(whole[:cut])
        with pytest.raises(VectorsError, match=r"vectors\.safetensors.*(cut short|cannot be read)"):
            load_vectors(tmp_path)
    table.write_bytes(whole)
    vocabulary.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(VectorsError, match=r"49 lines.*50 rows"):
        load_vectors(tmp_path)
    vocabulary.write_text("".join([*lines[:7], '{"token": "x"}\n', *lines[8:]]), encoding="utf-8")
    with pytest.raises(VectorsError, match=r"vocabulary\.jsonl:8"):
        load_vectors(tmp_path)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(VectorsError, match="2 tokens"):
        Vectors(np.zeros((3, 2), np.float32), ["a", "b"], np.arange(3), np.arange(3))


# ---------------------------------------------------------------- gensim


def test_gensim_holds_the_same_vectors_and_finds_the_same_neighbours():
    v = made(200)
    keyed = v.to_gensim()
    assert keyed.index_to_key == v.tokens
    np.testing.assert_array_equal(keyed.vectors, v.vectors)
    assert keyed.get_vecattr("w1", "count") == v.counts[1]
    for query in ({"positive": "w1"}, {"positive": ["w1", "w5"], "negative": ["w7"]}, {"positive": ["w2", "Ġä0"]}):
        ours, theirs = v.most_similar(**query, topn=25), keyed.most_similar(**query, topn=25)
        assert [t for t, _ in ours] == [t for t, _ in theirs]
        np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], atol=1e-5)
    again = Vectors.from_gensim(keyed)
    np.testing.assert_array_equal(again.vectors, v.vectors)
    np.testing.assert_array_equal(again.counts, v.counts)


@pytest.mark.parametrize("binary", [False, True])
def test_word2vec_files_are_gensims_and_back(tmp_path, binary):
    v, file = made(), tmp_path / "v.w2v"
    write_word2vec(v, file, binary=binary)
    keyed = gensim.models.KeyedVectors.load_word2vec_format(str(file), binary=binary)
    assert keyed.index_to_key == v.tokens
    np.testing.assert_array_equal(keyed.vectors, v.vectors)
    keyed.save_word2vec_format(str(tmp_path / "gensim"), binary=binary)
    for path in (file, tmp_path / "gensim"):
        again = read_word2vec(path, binary=binary)
        assert again.tokens == v.tokens
        np.testing.assert_allclose(again.vectors, v.vectors, rtol=1e-6)


def test_binary_entries_may_end_with_a_line_feed(tmp_path):
    """As word2vec.c writes them."""
    v, file = made(3), tmp_path / "c.bin"
    entries = (t.encode() + b" " + row.tobytes() + b"\n" for t, row in zip(v.tokens, v.vectors, strict=True))
    file.write_bytes(b"3 12\n" + b"".join(entries))
    again = read_word2vec(file, binary=True)
    assert again.tokens == v.tokens
    np.testing.assert_array_equal(again.vectors, v.vectors)


def test_glove_files_are_gensims_and_back(tmp_path):
    v, file = made(), tmp_path / "v.txt"
    write_glove(v, file)
    keyed = gensim.models.KeyedVectors.load_word2vec_format(str(file), no_header=True)
    assert keyed.index_to_key == v.tokens
    again = read_glove(file)
    np.testing.assert_array_equal(again.vectors, v.vectors)
    np.testing.assert_array_equal(keyed.vectors, v.vectors)


# ---------------------------------------------------------------- what files cannot hold


@pytest.mark.parametrize("token", ["New York", "", "a\nb", "\u00a0", "\ud800"])
@pytest.mark.parametrize("write", [write_word2vec, write_glove])
def test_a_token_that_the_format_cannot_hold_is_named_and_nothing_is_written(tmp_path, token, write):
    file = tmp_path / "out"
    file.write_text("before")
    with pytest.raises(VectorsError, match="token"):
        write(made(tokens=["good", token]), file)
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r":1: expected the number of words"),
        (b"two 3\n", r":1: expected the number of words"),
        (b"2 2\na 1 2\n", r":1: the header counts 2 words, the file holds 1"),
        (b"1 2\na 1 2\nb 1 2\n", r":1: the header counts 1 words, the file holds 2"),
        (b"2 2\na 1 2\nb 1\n", r":3: expected a word and 2 numbers, found 1"),
        (b"2 2\na 1 2\nb 1 x\n", r":3: not a number"),
        (b"2 2\na 1 2\na 1 2\n", r":3: the word 'a' stands a second time"),
        (b"1 2\n\xff 1 2\n", r":2: the word .* is not UTF-8"),
    ],
)
def test_bad_text_files_are_refused_with_file_and_line(tmp_path, content, message):
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(VectorsError, match=r"bad\.txt" + message):
        read_word2vec(file)


def test_a_binary_file_cut_anywhere_is_refused(tmp_path):
    file = tmp_path / "v.bin"
    write_word2vec(made(4), file, binary=True)
    whole = file.read_bytes()
    for cut in range(0, len(whole), 5):
        file.write_bytes(whole[:cut])
        with pytest.raises(VectorsError, match=r"v\.bin"):
            read_word2vec(file, binary=True)
    file.write_bytes(whole + b"more")
    with pytest.raises(VectorsError, match="holds more"):
        read_word2vec(file, binary=True)


def test_bad_glove_files_are_refused(tmp_path):
    file = tmp_path / "bad.txt"
    short = (b"a 1 2\nb 1\n", ":2: expected a word and 2 numbers")
    for content, message in ((b"", ":1:"), short, (b"a 1 2\nb 1 2", ":2: cut short")):  # 2 was perhaps 2.5
        file.write_bytes(content)
        with pytest.raises(VectorsError, match=message):
            read_glove(file)


# ---------------------------------------------------------------- search


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 10), st.integers(1, 20))
def test_the_search_in_blocks_equals_the_search_at_once(size, topn, seed, block):
    v = made(size, 5, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "BLOCK", block)
        found = v.nearest(v.vectors[0], topn, without=[0])
    unit = v.vectors / np.linalg.norm(v.vectors, axis=1, keepdims=True)
    cosine = unit @ unit[0]
    expected = [row for row in np.argsort(-cosine, kind="stable") if row != 0][:topn]
    assert [row for row, _ in found] == expected
    np.testing.assert_allclose([score for _, score in found], cosine[expected], atol=1e-5)


def test_analogy_is_a_minus_b_plus_c():
    """Four corners of a square, sex one way and rank the other: king − man + woman is exactly queen."""
    corners = {"man": (1, 0, 1), "woman": (0, 1, 1), "king": (2, 0, 3), "queen": (1, 1, 3), "tree": (-1, -1, 0)}
    v = Vectors(np.array(list(corners.values()), np.float32), list(corners), np.arange(5), np.ones(5, int))
    assert v.analogy("king", "man", "woman", topn=2)[0][0] == "queen"


def test_three_cos_mul_and_the_odd_one_out_are_gensims():
    v = made(200)
    keyed, rng = v.to_gensim(), np.random.default_rng(0)
    for _ in range(20):
        a, b, c, *rest = (v.tokens[n] for n in rng.choice(200, 8, replace=False))
        ours, theirs = v.analogy(a, b, c, 20, multiply=True), keyed.most_similar_cosmul([a, c], [b], topn=20)
        assert [t for t, _ in ours] == [t for t, _ in theirs]
        np.testing.assert_allclose([s for _, s in ours], [s for _, s in theirs], rtol=1e-4)
        assert v.odd_one_out([a, b, c, *rest]) == keyed.doesnt_match([a, b, c, *rest])
    with pytest.raises(VectorsError, match="no token"):
        v.odd_one_out([])


def test_an_unknown_token_is_named():
    v = made()
    with pytest.raises(VectorsError, match="'xyz' is not among the 50 tokens"):
        v.most_similar("xyz")
    assert "xyz" not in v
    assert "w1" in v
    np.testing.assert_array_equal(v["w1"], v.vectors[1])


def test_a_word_never_seen_has_neighbours_by_its_ngrams():
    """<kings> shares <ki, kin, ing with <king>; by fastText's rule its vector is the mean of its n-grams'."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 6)).astype(np.float32)
    buckets = rng.normal(size=(1000, 6)).astype(np.float32)
    words = ["king", "queen", "tree", "kingdom"]
    v = Vectors(table, words, np.arange(4), np.ones(4, int), None, "words", buckets, (3, 3))
    mean = np.mean([buckets[fnv(gram) % 1000] for gram in ("<ki", "kin", "ing", "ngs", "gs>")], axis=0)
    np.testing.assert_allclose(v["kings"], mean, rtol=1e-6)
    expected = [(v.tokens[row], score) for row, score in v.nearest(mean, 4)]
    assert [t for t, _ in expected] == [t for t, _ in v.most_similar("kings", topn=9)]
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    aim = unit(mean) - unit(table[0]) + unit(table[1])
    assert v.analogy("kings", "king", "queen", 1)[0][1] == pytest.approx(max(unit(t) @ unit(aim) for t in table[2:]))
    for multiply in (False, True):
        assert {t for t, _ in v.analogy("kings", "king", "queen", 9, multiply)} == {"tree", "kingdom"}
    assert v.odd_one_out(["kings", "kingss", "tree"]) == "tree"
    with pytest.raises(VectorsError, match="'' is not among"):
        v.most_similar("")


# ---------------------------------------------------------------- sentences


def test_sentence_vectors_are_arora_algorithm_1():
    """v_s = mean of a/(a + p(w))·v_w, then v_s − u uᵀ v_s, u the first singular vector; by numpy's SVD in float64."""
    v = made()
    rng = np.random.default_rng(0)
    sentences = [[v.tokens[n] for n in rng.integers(0, 50, rng.integers(1, 9))] for _ in range(30)]
    ours, common = v.sentence_vectors(sentences)
    p = v.counts / v.counts.sum()
    plain = np.array(
        [np.mean([1e-3 / (1e-3 + p[v.row(t)]) * v[t].astype(float) for t in s], axis=0) for s in sentences]
    )
    u = np.linalg.svd(plain)[2][0]
    np.testing.assert_allclose(ours, plain - np.outer(plain @ u, u), atol=1e-6)
    assert abs(common @ u) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(v.sentence_vector(sentences[3], common=common), ours[3], atol=1e-6)


def test_sentences_are_given_as_tokens_or_ids_and_strangers_are_passed_over():
    v = made()
    by_token = v.sentence_vector(["w1", "unheard", "w2"])
    by_id = v.sentence_vector(np.array([v.ids[1], 10_000, -1, v.ids[2]]))
    np.testing.assert_array_equal(by_token, by_id)
    for nothing in ([], ["unheard"], np.zeros(0, np.int32)):
        assert (v.sentence_vector(nothing) == 0).all()
    rows, common = v.sentence_vectors([["unheard"], []])
    assert (rows == 0).all()
    assert (common == 0).all()


# ---------------------------------------------------------------- spelling


def test_tokens_are_shown_as_the_text_they_stand_for():
    v = made(tokens=["Ġwood", "Ã¤", "Ã", "<|im_start|>", "<｜fin｜>", "ĊĊ"])
    assert [v.text(row) for row in range(6)] == [" wood", "ä", "�", "<|im_start|>", "<｜fin｜>", "\n\n"]
    v.spelling = "words"
    assert v.text(0) == "Ġwood"
