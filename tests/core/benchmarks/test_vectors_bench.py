"""The bench of vectors on a small made text: every group gives rows, wrong names are refused."""

import numpy as np
import pytest

from luthier.core.benchmarks import vector_peers, vector_quality
from luthier.core.benchmarks import vectors as bench
from luthier.core.benchmarks.vector_texts import read_source
from luthier.core.errors import ConfigError
from luthier.core.evaluation.word_sets import read_word_set


@pytest.fixture
def text(tmp_path, monkeypatch):
    for module in (bench, vector_peers, vector_quality):
        monkeypatch.setattr(module, "SIZE", 16)
    monkeypatch.setattr(vector_quality, "SHARED", (0, 4))
    monkeypatch.setattr(vector_quality, "thread_counts", lambda: [1])
    rng = np.random.default_rng(0)
    words = [f"w{a}x" for a in "abcdefghijklmnop" for a in (a + b for b in "abcdefghijklmnop")]
    drawn = np.minimum(rng.geometric(0.01, 20_000) - 1, len(words) - 1)
    (tmp_path / "text.txt").write_text(" ".join(words[n] for n in drawn))
    pairs = "".join(f"{words[a]}\t{words[a + 1]}\t{a % 7}\n" for a in range(100))
    (tmp_path / "pairs.tsv").write_text(pairs)
    return tmp_path


OWN = """
import numpy as np

def vectors(source, seed):
    return np.random.default_rng(seed).normal(size=(len(source.words), 8)).astype(np.float32)
"""


def test_every_group_but_the_slow_ones_gives_rows(text):
    (text / "own.py").write_text(OWN)
    rows = bench.run(
        texts=(text / "text.txt",),
        only=("speed", "ngrams", "glove", "quality", "nearest"),
        own=f"{text / 'own.py'}:vectors",
        sets=(text / "pairs.tsv",),
        repeats=2,
    )
    assert {row["group"] for row in rows} == {"speed", "ngrams", "glove", "quality", "nearest"}
    assert all(row["ours"] is not None for row in rows)
    kinds = [row["case"].split(" (")[0] for row in rows if row["group"] == "quality"]
    cases = [row["case"].partition("), ")[2].split(", 2 seeds")[0] for row in rows if row["group"] == "quality"]
    one, share = [f"{kind}, 1 thread" for kind in ("skip-gram", "CBOW")], "skip-gram, 0 share"
    assert kinds == ["pairs similarity"] * 6
    assert cases == [one[0], share, "skip-gram, 4 share", one[1], "CBOW, 4 share", "vectors (own.py)"]
    assert "vectors (own.py)" in {row["peer"] for row in rows if row["group"] == "speed"}
    assert all(row["equal"] for row in rows if row["group"] != "quality")


def test_quality_that_was_stopped_goes_on_where_it_was(text, monkeypatch):
    source, keep = read_source([text / "text.txt"]), text / "seeds.jsonl"
    sets, trained, peer = [read_word_set(text / "pairs.tsv")], [], f"skip-gram, {vector_quality.gensim_version()}"

    def train(source, seed):
        trained.append(seed)
        return np.random.default_rng(seed).normal(size=(len(source.words), 8)).astype(np.float32)

    def cases(source, peers):
        return {peer: vector_quality.Case(source, train), "a": vector_quality.Case(source, train, peer)}

    monkeypatch.setattr(vector_quality, "_cases", cases)
    first = list(vector_quality.quality(source, sets, 2, keep=keep))
    assert trained == [0, 0, 1, 1]
    again = list(vector_quality.quality(source, sets, 2, keep=keep))
    assert trained == [0, 0, 1, 1] and again == first
    list(vector_quality.quality(source, sets, 3, keep=keep))
    assert trained == [0, 0, 1, 1, 2, 2]
    list(vector_quality.quality(source.first(15_000), sets, 2, keep=keep))  # other work
    assert len(trained) == 10
    keep.write_text(keep.read_text()[:-20])  # killed within a line
    list(vector_quality.quality(source.first(15_000), sets, 2, keep=keep))
    assert len(trained) == 11
    before = keep.read_text()
    list(vector_quality.quality(source, sets, 1, ("mine", train), keep=keep))
    assert len(trained) == 12 and keep.read_text() == before
    monkeypatch.setattr(vector_quality, "EPOCHS", vector_quality.EPOCHS + 1)
    list(vector_quality.quality(source, sets, 1, keep=keep))
    assert len(trained) == 14


def test_of_glove_the_final_cost_is_kept_and_less_of_it_is_better(text, monkeypatch):
    """Costs 1% above and below theirs: the interval, the claim and the ratio."""
    source, keep = read_source([text / "text.txt"]), text / "seeds.jsonl"
    sets, peer = [read_word_set(text / "pairs.tsv")], "GloVe, Stanford's C"

    def train(factor):
        def trained(source, seed):
            rng = np.random.default_rng(seed)
            return rng.normal(size=(len(source.words), 8)).astype(np.float32), factor * (0.04 + seed * 1e-6)

        return trained

    def cases(source, peers):
        ours = {name: vector_quality.Case(source, train(f), peer) for name, f in {"more": 1.01, "less": 0.99}.items()}
        return {peer: vector_quality.Case(source, train(1)), **ours}

    monkeypatch.setattr(vector_quality, "_cases", cases)
    rows = list(vector_quality.quality(source, sets, 3, keep=keep))
    scored, (more, less) = rows[::2], rows[1::2]
    assert [row["metric"] for row in scored] == ["points"] * 2 and all(row["equal"] for row in scored)
    assert more["case"] == "final cost, more, 3 seeds: +1.00% to +1.00%" and not more["equal"]
    assert less["case"] == "final cost, less, 3 seeds: -1.00% to -1.00%" and less["equal"]
    assert more["ratio"] == 0.9901 and less["ratio"] == 1.01 and less["peer"] == "Stanford's C"
    monkeypatch.setattr(vector_quality, "_scores", None)
    assert list(vector_quality.quality(source, sets, 3, keep=keep)) == rows


def test_glove_learns_from_the_same_words_as_stanfords_which_is_given_seeds_from_1(text, monkeypatch):
    """Stanford's seed 0 is the clock. Its program is played by one that writes rows of the word's length."""
    given = []

    def fit(build, corpus, x_max, seed):
        def trained(iterations):
            given.append((build.name, x_max, seed, iterations))
            words = sorted({*corpus.read_text().split()})
            lines = [f"{word} {' '.join(['%f' % (seed * len(word))] * 16)}" for word in [*words, "<unk>"]]
            corpus.with_name("glove.out.txt").write_text("\n".join(lines) + "\n")
            return 0.5

        return trained

    monkeypatch.setattr(vector_quality, "glove_count", lambda build, corpus, window: lambda: given.append(window))
    monkeypatch.setattr(vector_quality, "glove_fit", fit)
    monkeypatch.setattr(vector_quality, "WORDS", 5_000)
    monkeypatch.setitem(vector_quality.GLOVE, "iterations", 2)
    cases = vector_quality._cases(read_source([text / "text.txt"]), {"glove": text / "build"})
    theirs, ours = cases["GloVe, Stanford's C"], cases["GloVe, 1 thread"]
    assert not any("n-grams" in name for name in cases) and len(ours.source.rows) == 5_000
    for seed in range(2):
        table, cost = theirs.train(theirs.source, seed)
        assert cost == 0.5 and table[:, 0].tolist() == [(seed + 1) * len(word) for word in theirs.source.words]
    assert given == [10, ("build", 10.0, 1, 2), 10, ("build", 10.0, 2, 2)]
    (table, cost), again, other = (ours.train(ours.source, seed) for seed in (0, 0, 1))
    assert table.shape == (len(ours.source.words), 16) and 0 < cost < 1
    assert cost == again[1] != other[1]


def test_what_glove_is_made_by_changes_no_hash_of_word2vec(text, monkeypatch):
    source = read_source([text / "text.txt"])

    def hashes():
        cases = vector_quality._cases(source, {"glove": text / "build", "fasttext": text / "fasttext"})
        return {name: vector_quality._digest(case, []) for name, case in cases.items()}

    before = hashes()
    monkeypatch.setitem(vector_quality.GLOVE, "window", 5)
    after = hashes()
    assert {name for name in before if before[name] != after[name]} == {"GloVe, Stanford's C", "GloVe, 1 thread"}
    assert before["GloVe, 1 thread"] != before["GloVe, Stanford's C"] != before["n-grams, fasttext"]


def test_fasttext_is_given_seeds_from_1_because_its_0_is_its_1(text, monkeypatch):
    given = []

    def binary(name, path, corpus, sg, threads, max_n, more):
        given.append(more[: more.index("-lr")])
        raise KeyboardInterrupt

    monkeypatch.setattr(vector_quality, "binary", binary)
    source, train = read_source([text / "text.txt"]), vector_quality._fasttext(text / "fasttext")
    for seed in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(source, seed)
    assert given == [["-seed", 1], ["-seed", 2]]


def test_the_first_words_of_a_text_have_their_own_vocabulary(text):
    whole = read_source([text / "text.txt"])
    first = whole.first(700)
    spelled = [whole.words[row] for row in whole.rows[:700]]
    assert [first.words[row] for row in first.rows] == spelled
    assert first.counts.tolist() == [spelled.count(word) for word in first.words]
    assert (np.diff(first.counts) <= 0).all() and first.offsets.tolist() == [0, 700]


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such group"):
        bench.run(only=("sped",))
    with pytest.raises(ConfigError, match="expected NAME=PATH"):
        bench.run(peer=("glove=/nowhere",))
    with pytest.raises(ConfigError, match="there is no file"):
        bench.run(own=f"{tmp_path / 'none.py'}:vectors")
