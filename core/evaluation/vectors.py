"""What word vectors are good for, measured against what people said about words.

    similarity    Spearman's rank correlation of the cosine of two words with the people's scores
    analogies     the share of questions "a is to b as c is to ?" whose answer is the token nearest to b − a + c, the
                  three left out (3CosAdd), or by 3CosMul (Levy & Goldberg 2014); in all and by section
    categories    purity: words are clustered by their directions (k-means, k the number of categories); each cluster
                  votes for its most frequent category, and purity is the share of words that voted with it. By chance
                  alone it is far from 0: compare only on the same words

A question with a word that has no vector is left out, and **coverage**, the share that was asked, stands beside every
number. Two tables with different coverage were asked different questions; a set with coverage under 70% is marked and
does not count. Upper and lower case are not told apart; of several spellings the commonest has the word. The scores
equal gensim's evaluate_word_pairs and evaluate_word_analogies (which look at the 300,000 commonest tokens, as here).

Legend: V tokens, D numbers a vector, Q questions, K categories, N words.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from luthier.core.artifacts import Artifact, atomic_open, write_json
from luthier.core.console import say
from luthier.core.errors import InputError
from luthier.core.evaluation.metrics import Z_95, wilson
from luthier.core.evaluation.word_sets import Analogies, Categories, Score, Similarities, WordSet, read_word_set

if TYPE_CHECKING:
    from luthier.models.vectors import Vectors

__all__ = ["Score", "Words", "evaluate_vectors", "open_any", "score_set", "spearman"]

RESTRICT = 300_000  # of the commonest tokens are looked at
TOKENS, QUESTIONS = 4096, 32  # of a block: what is combined stays in the cache
MAP = 150  # words on the map


class Words:
    """Vectors by word: unit rows of the commonest tokens, and the row of a word whatever its case."""

    def __init__(self, vectors: Vectors, restrict: int = RESTRICT) -> None:
        most = min(len(vectors), restrict)
        self.units_VD = np.asarray(vectors.vectors[:most], np.float32) / vectors.norms[:most, None]
        self.row: dict[str, int] = {}
        self.same = np.arange(most)  # the row that has the word of each row
        for row in range(most):
            if (word := _word(vectors, row)) is not None:
                self.same[row] = self.row.setdefault(word.upper(), row)

    def rows(self, *words: str) -> list[int] | None:
        """The rows of all these words; None if one has none."""
        found = [self.row.get(word.upper(), -1) for word in words]
        return None if -1 in found else found


def _word(vectors: Vectors, row: int) -> str | None:
    """The word a token is; of a tokenizer's tokens those are words that begin with their blank."""
    text = vectors.text(row)
    if vectors.spelling != "byte-level":
        return text
    return text[1:] if text.startswith(" ") else None


# ---------------------------------------------------------------- measures


def score_set(words: Words, given: WordSet) -> list[Score]:
    """The scores of a set; of analogies all together first, then by section."""
    match given:
        case Similarities():
            return [_similarity(words, given)]
        case Analogies():
            return _analogies(words, given)
        case Categories():
            return [_purity(words, given)]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of the ranks, equal values sharing the mean of their ranks."""
    if len(a) < 2:
        return 0.0
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _similarity(words: Words, given: Similarities) -> Score:
    asked = [(rows, score) for a, b, score in given.pairs if (rows := words.rows(a, b))]
    first, second = (words.units_VD[[rows[n] for rows, _ in asked]] for n in (0, 1))
    cosines = np.einsum("nd,nd->n", first, second)
    rho, n = spearman(cosines, np.array([score for _, score in asked])), len(asked)
    # Fisher's z with the variance for ranks of Bonett & Wright 2000
    half = Z_95 * np.sqrt((1 + rho**2 / 2) / (n - 3)) if n > 3 else np.inf
    low, high = np.tanh(np.arctanh(min(max(rho, -1 + 1e-9), 1 - 1e-9)) + np.array([-half, half]))
    return Score(given.name, "similarity", "", rho, float(low), float(high), n, len(given.pairs))


def _analogies(words: Words, given: Analogies) -> list[Score]:
    scores = []
    for method, name in ((cos_add, "analogies"), (cos_mul, "analogies ×")):
        right: dict[str, list[float]] = {}
        for section, questions in given.sections.items():
            asked = [rows for question in questions if (rows := words.rows(*question))]
            rows_Q4 = np.array(asked, np.int64).reshape(-1, 4)
            right[section] = (answer(words, rows_Q4[:, :3], method) == rows_Q4[:, 3]).tolist()
        total = sum(map(len, given.sections.values()))
        scores.append(_share(given.name, name, "", [r for found in right.values() for r in found], total))
        if method is cos_add and len(right) > 1:
            sections = given.sections.items()
            scores += [_share(given.name, name, s, right[s], len(questions)) for s, questions in sections]
    return scores


def _share(name: str, kind: str, section: str, right: Sequence[float], total: int) -> Score:
    e = wilson(right)
    return Score(name, kind, section, e.value, e.low, e.high, e.n, total)


def cos_add(a_QV: np.ndarray, b_QV: np.ndarray, c_QV: np.ndarray) -> np.ndarray:
    """3CosAdd (eq. 1): cosines with a, b, c → scores."""
    return b_QV - a_QV + c_QV


def cos_mul(a_QV: np.ndarray, b_QV: np.ndarray, c_QV: np.ndarray) -> np.ndarray:
    """3CosMul (eq. 4), cosines brought to 0 … 1."""
    return (1 + b_QV) * (1 + c_QV) / (1 + a_QV + 2e-6)


def answer(words: Words, rows_Q3: np.ndarray, method: Callable[..., np.ndarray] = cos_add) -> np.ndarray:
    """The row [Q] that answers each question of rows (a, b, c); the three, in any case, are no answer.

    A block of tokens at a time: its cosines with every word that is asked about (far fewer than questions), combined
    for some questions at a time, the best so far kept."""
    units, Q = words.units_VD, len(rows_Q3)
    asked, place_Q3 = np.unique(rows_Q3, return_inverse=True)
    place_Q3 = place_Q3.reshape(rows_Q3.shape)
    spelled = [np.flatnonzero(words.same == row) for row in asked]
    hidden = np.array([(q, row) for q, places in enumerate(place_Q3) for n in places for row in spelled[n]]).reshape(
        -1, 2
    )
    best, found = np.full(Q, -np.inf, np.float32), np.zeros(Q, np.int64)
    for start in range(0, len(units), TOKENS):
        cosines = units[asked] @ units[start : start + TOKENS].T
        here = hidden[(hidden[:, 1] >= start) & (hidden[:, 1] < start + TOKENS)]
        for first in range(0, Q, QUESTIONS):
            part = slice(first, first + QUESTIONS)
            scores = method(*(cosines[place_Q3[part, n]] for n in range(3)))
            q, row = here[slice(*np.searchsorted(here[:, 0], (first, first + QUESTIONS)))].T
            scores[q - first, row - start] = -np.inf
            top = scores.argmax(axis=1)
            score = scores[np.arange(len(scores)), top]
            better = score > best[part]
            best[part][better] = score[better]
            found[part][better] = words.same[start + top[better]]
    return found


def _purity(words: Words, given: Categories) -> Score:
    asked = [(rows[0], category) for word, category in given.words if (rows := words.rows(word))]
    names = sorted({category for _, category in asked})
    label = np.array([names.index(category) for _, category in asked], np.int64)
    if not asked:
        return Score(given.name, "categories", "", 0.0, 0.0, 0.0, 0, len(given.words))
    cluster = k_means(words.units_VD[[row for row, _ in asked]], len(names))
    voted = sum(max(Counter(label[cluster == k].tolist()).values(), default=0) for k in range(len(names)))
    e = wilson([1.0] * voted + [0.0] * (len(asked) - voted))
    return Score(given.name, "categories", "", e.value, e.low, e.high, e.n, len(given.words))


def k_means(units_ND: np.ndarray, k: int, tries: int = 10, seed: int = 0) -> np.ndarray:
    """Cluster [N] of each unit row by spherical k-means: the best of some tries, begun as k-means++ (Arthur &
    Vassilvitskii 2007) does it."""
    best, clusters = -np.inf, np.zeros(len(units_ND), np.int64)
    for rng in map(np.random.default_rng, range(seed, seed + tries)):
        centres = units_ND[rng.integers(len(units_ND))][None]
        while len(centres) < k:
            far = np.maximum(1 - (units_ND @ centres.T).max(axis=1), 0) + 1e-12
            centres = np.vstack([centres, units_ND[rng.choice(len(far), p=far / far.sum())]])
        for _ in range(50):
            near = units_ND @ centres.T
            cluster = near.argmax(axis=1)
            sums = np.zeros_like(centres)
            np.add.at(sums, cluster, units_ND)
            moved = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
            if np.allclose(moved, centres, atol=1e-6):
                break
            centres = moved
        if (score := float(near.max(axis=1).sum())) > best:
            best, clusters = score, cluster
    return clusters


# ---------------------------------------------------------------- the stage


def open_any(path: Path) -> Vectors:
    """Vectors of a folder of luthier's, or of a file of word2vec's or GloVe's. Raises InputError for neither."""
    from luthier.models.vector_files import read_any
    from luthier.models.vectors import load_vectors

    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return load_vectors(path) if path.is_dir() else read_any(path)


def evaluate_vectors(path: Path, sets: Sequence[Path], out: Path, *, overwrite: bool = False) -> list[Score]:
    """Score vectors on the sets; write results.json, map.svg and report.html into the folder `out`.

    Raises InputError for a set or vectors that cannot be read, ArtifactError for other work in `out`."""
    inputs: dict[str, Path | str | None] = {"vectors": Path(path)}
    inputs |= {f"set {Path(s).name}": Path(s) for s in sets}
    work = Artifact(out, "evaluate-vectors", {"restrict": RESTRICT}, inputs, overwrite=overwrite)
    if work.done:
        say(f"{out} is up to date")
        return read_scores(Path(out))
    given = [read_word_set(s) for s in sets]
    vectors = open_any(path)
    words = Words(vectors)
    with work:
        scores = [score for one in given for score in score_set(words, one)]
        write_json(work.folder / "results.json", {"vectors": str(path), "scores": [asdict(s) for s in scores]})
        from luthier.core.evaluation.vectors_page import vectors_page

        svg, page = vectors_page(str(path), vectors, scores, MAP)
        for name, text in (("map.svg", svg), ("report.html", page)):
            with atomic_open(work.folder / name) as file:
                file.write(text)
    return scores


def read_scores(folder: Path) -> list[Score]:
    """The scores that were stored in an evaluation of vectors."""
    return [Score(**row) for row in json.loads((folder / "results.json").read_text(encoding="utf-8"))["scores"]]
