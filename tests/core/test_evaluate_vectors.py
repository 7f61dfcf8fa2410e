"""Vectors measured on word sets: gensim's scores on the same vectors, scipy's correlation, damaged files, the verb."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from luthier.core.errors import ArtifactError, InputError
from luthier.core.evaluation.vectors import Words, answer, cos_mul, k_means, score_set, spearman
from luthier.core.evaluation.word_sets import Analogies, Categories, Similarities, read_word_set
from luthier.models.vector_files import write_glove, write_word2vec
from luthier.models.vectors import Vectors
from luthier.scripts.evaluate import main

WORDS = [f"{a}{b}" for a in ("Ka", "lo", "mi", "ru", "te", "sa") for b in ("ba", "do", "gi", "nu")] + ["KABA", "lodo"]


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    words = list(dict.fromkeys(WORDS))
    table = rng.normal(size=(len(words), 8)).astype(np.float32)
    return Vectors(table, words, np.arange(len(words)), np.arange(len(words), 0, -1))


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(1)
    pick = lambda n: [str(w) for w in rng.choice([*WORDS, "unheard"], n)]  # noqa: E731
    pairs = "".join(
        f"{a}\t{b}\t{rng.integers(0, 10)}\n" for a, b in (pick(2) for _ in range(200)) if a.lower() != b.lower()
    )
    (tmp_path / "pairs.tsv").write_text("# comment\n" + pairs)
    sections = "".join(f": part {n}\n" + "".join(" ".join(pick(4)) + "\n" for _ in range(300)) for n in range(3))
    (tmp_path / "questions.txt").write_text(sections)
    return tmp_path


def test_the_scores_are_gensims(vectors, files):
    """Words of either case, strangers left out, two spellings of a word taken for one."""
    keyed, words = vectors.to_gensim(), Words(vectors)
    _, theirs, missing = keyed.evaluate_word_pairs(str(files / "pairs.tsv"))
    ours = score_set(words, read_word_set(files / "pairs.tsv"))[0]
    assert ours.value == pytest.approx(theirs[0], abs=1e-6)
    assert 100 * (1 - ours.coverage) == pytest.approx(missing)
    _, theirs = keyed.evaluate_word_analogies(str(files / "questions.txt"))
    scores = [s for s in score_set(words, read_word_set(files / "questions.txt")) if s.kind == "analogies"]
    for mine, section in zip([*scores[1:], scores[0]], theirs, strict=True):
        assert mine.used == len(section["correct"]) + len(section["incorrect"])
        assert round(mine.value * mine.used) == len(section["correct"])


def test_cos_mul_answers_as_gensims(vectors):
    keyed = vectors.to_gensim()
    rng = np.random.default_rng(2)
    rows = np.array([rng.choice(len(vectors), 3, replace=False) for _ in range(50)])
    words = Words(vectors)
    words.same[:] = np.arange(len(vectors))  # gensim's call tells case apart
    for (a, b, c), found in zip(rows.tolist(), answer(words, rows, cos_mul), strict=True):
        tokens = [vectors.tokens[n] for n in (b, c, a)]
        assert keyed.most_similar_cosmul(tokens[:2], tokens[2:], topn=1)[0][0] == vectors.tokens[found]
        assert vectors.analogy(tokens[0], tokens[2], tokens[1], topn=1, multiply=True)[0][0] == vectors.tokens[found]


def test_blocks_do_not_change_the_answers(vectors, monkeypatch):
    from luthier.core.evaluation import vectors as module

    rows = np.random.default_rng(3).integers(0, len(vectors), (40, 3))
    whole = answer(Words(vectors), rows)
    monkeypatch.setattr(module, "TOKENS", 7)
    monkeypatch.setattr(module, "QUESTIONS", 3)
    np.testing.assert_array_equal(answer(Words(vectors), rows), whole)


def test_spearman_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    for n in (2, 5, 50):
        a, b = rng.integers(0, 6, n), rng.normal(size=n)
        expected = np.nan_to_num(np.asarray(spearmanr(a, b), float)[0])
        assert spearman(a, b) == pytest.approx(float(expected))


def test_words_that_lie_in_bunches_are_clustered_purely():
    rng = np.random.default_rng(0)
    centres = np.eye(6, 12)[rng.permutation(6)]
    table = (np.repeat(centres, 10, axis=0) + rng.normal(0, 0.05, (60, 12))).astype(np.float32)
    words = [f"w{n}" for n in range(60)]
    v = Vectors(table, words, np.arange(60), np.ones(60, int))
    given = Categories("bunches", [(w, str(n // 10)) for n, w in enumerate(words)] + [("unheard", "0")])
    (score,) = score_set(Words(v), given)
    assert (score.value, score.used, score.all) == (1.0, 60, 61)
    assert len(set(k_means(Words(v).units_VD, 6).tolist())) == 6
    mixed = Categories("mixed", [(w, str(n % 10)) for n, w in enumerate(words)])
    assert score_set(Words(v), mixed)[0].value < 0.5


def test_tokens_of_a_tokenizer_are_words_where_they_begin_with_their_blank():
    v = Vectors(
        np.eye(4, dtype=np.float32), ["Ġking", "king", "Ġqueen", "x"], np.arange(4), np.ones(4, int), None, "byte-level"
    )
    assert Words(v).rows("King", "queen") == [0, 2]
    assert Words(v).rows("x") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"a b 1\na b\n", r"a\.txt:2: expected two words and a number"),
        ("a.tsv", b"a\tb\tx\n", r"a\.tsv:1: expected two words and a number"),
        ("a.txt", b": s\na b c d\na b c\n", r"a\.txt:3: expected four words"),
        ("a.txt", b"a b 1\n\xff b 2\n", r"a\.txt:2: not UTF-8"),
        ("a.csv", b",colour,word\n0,red,x\n", r"a\.csv:1: the columns colour, word are none"),
        ("a.csv", b",category,word\n0,red\n", r"a\.csv:2: expected 3 columns, found 2"),
        ("a.csv", b",word1,word2,similarity\n0,,,\n1,a,b,\n", r"a\.csv:3: expected two words and a number"),
    ],
)
def test_sets_that_are_damaged_are_refused_with_file_and_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_word_set(tmp_path / name)


def test_a_row_of_a_table_that_only_has_its_number_is_passed_over(tmp_path):
    """As spreadsheets leave behind; WordSim-353's two halves end with one."""
    (tmp_path / "a.csv").write_text(",word1,word2,similarity\n0,tea,cup,7\n1,,,\n,,,\n2,sea,tree,1\n")
    assert read_word_set(tmp_path / "a.csv") == Similarities("a", [("tea", "cup", 7.0), ("sea", "tree", 1.0)])


def test_the_command_prints_a_table_and_draws_a_map(vectors, files, tmp_path, capsys):
    write_word2vec(vectors, tmp_path / "v.bin", binary=True)
    write_glove(vectors, tmp_path / "v.txt")
    (tmp_path / "strange.csv").write_text(",category,word\n0,a,unheard\n1,a,Kaba\n")
    sets = [str(files / "pairs.tsv"), str(files / "questions.txt"), str(tmp_path / "strange.csv")]
    out = tmp_path / "out"
    assert main([str(tmp_path / "v.bin"), "--sets", *sets, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "similarity" in printed
    assert "part 2" in printed
    assert "50%, not counted" in printed
    assert (out / "map.svg").read_text().startswith("<svg")
    assert "<svg" in (out / "report.html").read_text(encoding="utf-8")
    found = json.loads((out / "results.json").read_text())["scores"]
    assert main([str(tmp_path / "v.txt"), "--sets", *sets, "--out", str(tmp_path / "again")]) == 0
    assert [s["value"] for s in json.loads((tmp_path / "again/results.json").read_text())["scores"]] == pytest.approx(
        [s["value"] for s in found]
    )
    with pytest.raises(ArtifactError, match="different work"):
        main([str(tmp_path / "v.txt"), "--sets", sets[0], "--out", str(out)])
    with pytest.raises(InputError, match="no such file"):
        main([str(tmp_path / "v.txt"), "--sets", "nowhere.txt", "--out", str(tmp_path / "third")])
    assert not (tmp_path / "third").exists()


@pytest.mark.skipif("LUTHIER_TEST_DATA" not in os.environ, reason="LUTHIER_TEST_DATA is not set")
def test_published_sets_are_read_whole():
    folder = Path(os.environ["LUTHIER_TEST_DATA"]) / "vectors_eval"
    if not folder.is_dir():
        pytest.skip("no vectors_eval in LUTHIER_TEST_DATA")
    sizes = {"EN-MEN-TR-3k.txt": 3000, "EN-SimVerb-3500.txt": 3500, "simlex999.txt": 999, "wordsim353.tsv": 353}
    sizes |= {"wordsim353-rel.csv": 252, "wordsim353-sim.csv": 203}
    for name, size in {**sizes, "EN-RW-STANFORD.txt": 2034, "rg-65.csv": 65, "semeval17.csv": 500}.items():
        found = read_word_set(folder / name)
        assert isinstance(found, Similarities)
        assert len(found.pairs) == size
    for name, size, sections in (("questions-words.txt", 19544, 14), ("glove_question-data", 19544, 14)):
        found = read_word_set(folder / name)
        assert isinstance(found, Analogies)
        assert (sum(map(len, found.sections.values())), len(found.sections)) == (size, sections)
    msr, ap, battig = (
        read_word_set(folder / n) for n in ("msr-analogy.csv", "categorization_ap.csv", "categorization_battig.csv")
    )
    assert isinstance(msr, Analogies)
    assert sum(map(len, msr.sections.values())) == 8000
    assert isinstance(ap, Categories)
    assert isinstance(battig, Categories)
    assert len({category for _, category in ap.words}) == 21
