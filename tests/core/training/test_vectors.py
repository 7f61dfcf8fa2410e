"""The stage train-vectors: from shards and texts, up to date or made anew, refused where nothing can be learned."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import zstandard

from luthier.core.artifacts import hash_file, read_manifest
from luthier.core.data.encode import EncodeConfig, encode
from luthier.core.data.shards import write_shards
from luthier.core.errors import ArtifactError, ConfigError, InputError, TrainingError
from luthier.core.show.curve import show_losses
from luthier.core.show.vectors import map_2d, show_vectors
from luthier.core.training.vectors import VectorsConfig, train_vectors, words
from luthier.models.vectors import VectorsError, load_vectors
from luthier.scripts.train_vectors import main
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

SMALL = VectorsConfig(vector_size=12, epochs=3, min_count=3, window=3, iterations=4)
# Spruce and cedar stand in like places, so do lute and guitar.
SENTENCES = (
    "The {wood} of the top sings, and old {wood} sings best.",
    "A {thing} hangs on the wall; the {thing} is tuned each day.",
    "We cut {wood} in winter, when {wood} is dry.",
    "Who plays the {thing} well, buys a good {thing}.",
)


def text(count, seed=0):
    rng = np.random.default_rng(seed)
    fill = (
        SENTENCES[rng.integers(4)].format(
            wood=("spruce", "cedar")[rng.integers(2)], thing=("lute", "guitar")[rng.integers(2)]
        )
        for _ in range(count)
    )
    return " ".join(fill)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A tokenizer, shards of 40 documents encoded with it, and one of the texts as a file."""
    root = tmp_path_factory.mktemp("sources")
    documents = [text(20, seed) for seed in range(40)]
    tokenizer = train_bpe(documents, 400)
    (root / "tokenizer").mkdir()
    save_tokenizer(tokenizer, root / "tokenizer")
    write_shards(
        root / "shards",
        [tokenizer.encode_ordinary(d) for d in documents],
        [tokenizer.encode_ordinary("held out " * 50)],
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        tokenizer=hash_file(root / "tokenizer" / "tokenizer.json"),
    )
    (root / "text.txt").write_text("\n".join(documents), encoding="utf-8")
    return root, tokenizer


@pytest.mark.parametrize("method", ["word2vec", "glove"])
def test_vectors_of_tokens(sources, tmp_path, method, capsys):
    root, tokenizer = sources
    config = VectorsConfig(**{**vars(SMALL), "method": method})
    summary = train_vectors([root / "shards"], tmp_path / "v", config, tokenizer=root / "tokenizer")
    vectors = load_vectors(tmp_path / "v")
    assert vectors.spelling == "byte-level"
    for row, id_ in enumerate(vectors.ids):  # every row is the token that it says it is
        special = next((t for t, n in tokenizer.special_tokens.items() if n == id_), None)
        assert special == vectors.tokens[row] or vectors.text(row) == tokenizer.decode([id_])
    ids = np.concatenate([tokenizer.encode_ordinary(text(20, seed)) for seed in range(40)])
    counts = np.bincount(np.append(ids, [tokenizer.eos_id] * 40), minlength=tokenizer.vocab_size)
    assert set(vectors.ids.tolist()) == set(np.flatnonzero(counts >= 3).tolist())
    np.testing.assert_array_equal(vectors.counts, counts[vectors.ids])
    assert (np.diff(vectors.counts) <= 0).all()
    assert summary.trained == vectors.counts.sum()
    assert summary.tokens == counts.sum()  # the held-out document is not among them
    assert summary.losses[-1] < summary.losses[0]
    assert f"{len(vectors):,} vectors" in str(summary)
    assert read_manifest(tmp_path / "v")["stage"] == "train-vectors"
    again = train_vectors([root / "shards"], tmp_path / "v", config, tokenizer=root / "tokenizer")
    assert "up to date" in capsys.readouterr().err
    assert (again.vocabulary, again.pairs, again.losses) == (summary.vocabulary, summary.pairs, summary.losses)


def test_words_of_a_text_find_their_like(sources, tmp_path):
    root, _ = sources
    train_vectors([root / "text.txt"], tmp_path / "v", VectorsConfig(vector_size=16, epochs=20, window=3, alpha=0.05))
    vectors = load_vectors(tmp_path / "v")
    assert (vectors.spelling, vectors.ids.tolist()) == ("words", list(range(len(vectors))))
    assert vectors.most_similar("spruce", topn=1)[0][0] == "cedar"
    assert vectors.most_similar("lute", topn=1)[0][0] == "guitar"
    expected = words((root / "text.txt").read_text())
    assert vectors.counts[vectors.row("the")] == expected.count("the")


def test_words_are_runs_of_letters_and_digits():
    assert words("Don’t e-mail the 4th “Äbtissin” -- x_y, 3.5 ‑ it's") == (
        ["don’t", "e-mail", "the", "4th", "äbtissin", "x", "y", "3", "5", "it's"]
    )


def test_two_runs_are_equal_byte_for_byte_and_a_seed_changes_them(sources, tmp_path):
    root, _ = sources
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_vectors([root / "text.txt"], tmp_path / name, VectorsConfig(**{**vars(SMALL), "seed": seed}))
    a, b, c = ((tmp_path / name / "vectors.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_other_work_in_out_is_kept_unless_told_otherwise(sources, tmp_path):
    root, _ = sources
    train_vectors([root / "text.txt"], tmp_path / "v", SMALL)
    other = VectorsConfig(**{**vars(SMALL), "vector_size": 8})
    with pytest.raises(ArtifactError, match="--overwrite"):
        train_vectors([root / "text.txt"], tmp_path / "v", other)
    train_vectors([root / "text.txt"], tmp_path / "v", other, overwrite=True)
    assert load_vectors(tmp_path / "v").dim == 8


def test_the_texts_are_never_replaced(sources, tmp_path):
    (tmp_path / "a.txt").write_text("All there is. " * 9)
    with pytest.raises(InputError, match=r"is to be read, and --out .* would replace it"):
        train_vectors([tmp_path / "a.txt"], tmp_path, SMALL, overwrite=True)
    with pytest.raises(InputError, match=r"shards is to be read, and --out .* would replace it"):
        train_vectors([sources[0] / "shards"], sources[0] / "shards", SMALL, overwrite=True)
    assert (sources[0] / "shards" / "shards.json").is_file() and (tmp_path / "a.txt").is_file()


def test_a_field_or_column_of_another_name(sources, tmp_path, capsys):
    """The bits of vectors of the texts under the default name, whatever file they stand in."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq  # pyright: ignore[reportMissingImports]

    rows = (sources[0] / "text.txt").read_text(encoding="utf-8").splitlines()
    lines = {
        name: "".join(json.dumps({"n": 1, name: row}) + "\n" for row in rows).encode() for name in ("text", "body")
    }
    (tmp_path / "text.jsonl").write_bytes(lines["text"])
    (tmp_path / "a.jsonl").write_bytes(lines["body"])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines["body"]))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(lines["body"]))
    pq.write_table(arrow.table({"n": [1] * len(rows), "body": rows}), tmp_path / "a.parquet", row_group_size=7)
    train_vectors([tmp_path / "text.jsonl"], tmp_path / "v", SMALL)
    expected = (tmp_path / "v" / "vectors.safetensors").read_bytes()
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        with pytest.raises(InputError, match=rf"{name}.*: no (field|column) 'text'; it has .*\n.* --column body$"):
            train_vectors([tmp_path / name], tmp_path / "refused", SMALL)
        out = tmp_path / f"v-{name}"
        flags = ["--vector-size", "12", "--epochs", "3", "--min-count", "3", "--window", "3", "--iterations", "4"]
        assert main([str(tmp_path / name), *flags, "--column", "body", "--out", str(out)]) == 0
        assert (out / "vectors.safetensors").read_bytes() == expected, name
        assert read_manifest(out)["settings"] == {**read_manifest(tmp_path / "v")["settings"], "column": "body"}
    capsys.readouterr()
    train_vectors([tmp_path / name], out, replace(SMALL, column="body"))
    assert "is up to date" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="different work: column was body"):
        train_vectors([tmp_path / name], out, SMALL)
    with pytest.raises(ConfigError, match=r"column = 'body': .*shards holds token ids"):
        train_vectors([sources[0] / "shards"], tmp_path / "s", replace(SMALL, column="body"))


def test_the_default_column_is_not_part_of_the_work(sources, tmp_path):
    train_vectors([sources[0] / "text.txt"], tmp_path / "v", SMALL)
    names = set(vars(SMALL)) - {"column"}  # as stored before there was one
    assert set(read_manifest(tmp_path / "v")["settings"]) == names


def test_the_tokenizer_must_be_the_one_that_made_the_shards(sources, tmp_path):
    root, _ = sources
    (tmp_path / "other").mkdir()
    save_tokenizer(train_bpe(["quite another text " * 20], 300), tmp_path / "other")
    with pytest.raises(InputError, match="was not encoded with the tokenizer"):
        train_vectors([root / "shards"], tmp_path / "v", SMALL, tokenizer=tmp_path / "other")
    assert not (tmp_path / "v").exists()


def test_what_cannot_be_learned_from_is_refused(sources, tmp_path):
    root, _ = sources
    (tmp_path / "few.txt").write_text("just a few words here", encoding="utf-8")
    with pytest.raises(InputError, match="Lower --min-count"):
        train_vectors([tmp_path / "few.txt"], tmp_path / "v", SMALL)
    with pytest.raises(InputError, match="not both"):
        train_vectors([root / "shards", root / "text.txt"], tmp_path / "v", SMALL)
    with pytest.raises(ConfigError, match="phrases = 1: they are made of words"):
        train_vectors([root / "shards"], tmp_path / "v", VectorsConfig(phrases=1))
    with pytest.raises(InputError, match="no input given"):
        train_vectors([], tmp_path / "v", SMALL)
    with pytest.raises(InputError, match="no such file"):
        train_vectors([tmp_path / "missing"], tmp_path / "v", SMALL)
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("flags", [{}, {"sample": 0}, {"sg": False}, {"hs": True, "negative": 0}, {"method": "glove"}])
def test_words_without_neighbours_teach_nothing(tmp_path, flags):
    """Vectors of them would be the numbers that chance began with."""
    (tmp_path / "a.jsonl").write_text('{"text": "oak"}\n{"text": "elm"}\n' * 9)
    with pytest.raises(
        (InputError, VectorsError), match=r"within a window of each other: nothing to learn vectors from"
    ):
        train_vectors([tmp_path / "a.jsonl"], tmp_path / "v", VectorsConfig(**{**vars(SMALL), **flags}))
    assert not (tmp_path / "v").exists()


def test_a_run_that_leaves_the_range_of_numbers_names_the_tokens(sources, tmp_path):
    root, _ = sources
    config = VectorsConfig(**{**vars(SMALL), "method": "glove", "eta": 1e9})
    with pytest.raises(TrainingError, match=r"at the pair '\w+' and '\w+'"):
        train_vectors([root / "text.txt"], tmp_path / "v", config)


@pytest.mark.parametrize(
    "wrong",
    [
        {"vector_size": 0},
        {"negative": 0},
        {"workers": -1},
        {"eta": 0.0},
        {"sample": -1.0},
        {"sample": float("nan")},
        {"seed": -1},
        {"ns_exponent": float("inf")},
        {"max_n": 2, "min_n": 3},
    ],
)
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        VectorsConfig(**wrong)


def test_the_view_and_the_map(sources, tmp_path, capsys):
    root, _ = sources
    encode([root / "text.txt"], root / "tokenizer", tmp_path / "shards", EncodeConfig(validation_fraction=0))
    train_vectors([tmp_path / "shards"], tmp_path / "v", SMALL)  # with the tokenizer that `encode` put there
    show_vectors(tmp_path / "v", near=["spruce"], analogy=["spruce", "cedar", "lute"])
    shown = capsys.readouterr().out
    assert "vectors of 12 numbers" in shown
    assert "spruce − cedar + lute" in shown
    show_losses(tmp_path / "v" / "metrics.jsonl")
    assert "loss of 3 steps, of a pair" in capsys.readouterr().out
    with pytest.raises(InputError, match="'bassoon' has no vector"):
        show_vectors(tmp_path / "v", near=["bassoon"])
    with pytest.raises(InputError, match="three words, found 2"):
        show_vectors(tmp_path / "v", analogy=["a", "b"])
    vectors = load_vectors(tmp_path / "v")
    xy, labels = map_2d(vectors, 10)
    assert xy.shape == (len(labels), 2)
    assert {"the", "spruce"} <= set(map_2d(vectors, 100)[1])
    assert all(label.isalpha() and len(label) >= 3 for label in labels)
    assert np.var(xy[:, 0]) >= np.var(xy[:, 1])  # the first component holds most


def test_names_on_the_map_do_not_cover_each_other(tmp_path):
    """Two words at the same place: the commoner is named."""
    from luthier.core.evaluation.report import draw_map
    from luthier.models.vectors import Vectors

    words = ["spruce", "cedar", "lute", "guitar"]
    table = np.array([[1, 0, 0], [1, 0, 0.001], [0, 1, 0], [0, 0, 1]], np.float32)
    svg = draw_map(Vectors(table, words, np.arange(4), np.arange(4, 0, -1)))
    assert svg is not None
    assert [word for word in words if word in svg] == ["spruce", "lute", "guitar"]


def test_glove_gives_the_same_bits_on_any_number_of_threads_if_deterministic(sources, tmp_path):
    root, _ = sources
    for workers in (1, 2, 4):
        config = VectorsConfig(**{**vars(SMALL), "method": "glove", "deterministic": True, "workers": workers})
        train_vectors([root / "text.txt"], tmp_path / str(workers), config)
    one, two, four = ((tmp_path / n / "vectors.safetensors").read_bytes() for n in "124")
    assert one == two == four


def test_the_verb(sources, tmp_path):
    root, _ = sources
    command = [sys.executable, "-m", "luthier.scripts.train_vectors", str(root / "text.txt"), "--out", "v"]
    done = subprocess.run([*command, "--vector-size", "8"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("word2vec: ")
    rows = [json.loads(line) for line in (tmp_path / "v" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
