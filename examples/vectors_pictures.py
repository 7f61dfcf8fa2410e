"""Two looks at GloVe on a text of one's own: the table of ice and steam, and the vectors at five moments of training.

    python examples/vectors_pictures.py english.txt --svg docs/vectors_moments.svg

Takes about half a minute for a text of 35 MB on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from luthier.core.training.rows import words
from luthier.models.cooccurrence import Cooccurrences, count_pairs
from luthier.models.glove import Progress, train_glove

MOMENTS = (0.02, 0.06, 0.15, 0.4, 1.0)  # of the pairs of all iterations
ITERATIONS = 4
GROUPS = {
    "#9a4b1f": "king queen prince duke emperor",
    "#3f6c8f": "river lake sea coast island",
    "#2f6b46": "he she they we you",
    "#7a4f8a": "february march june october december",
    "#6d655b": "two three four five six",
}
TABLE = ("sea", "age", "engine", "power", "water", "the", "of")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--svg", type=Path, default=Path("vectors_moments.svg"))
    parser.add_argument("--megabytes", type=float, default=40.0, help="of the text that are used")
    given = parser.parse_args()
    text = given.text.read_bytes()[: int(given.megabytes * 1e6)].decode(errors="ignore")
    documents = [words(document) for document in text.split("\n\n\n")]
    tokens, counts = np.unique([word for document in documents for word in document], return_counts=True)
    kept = np.argsort(-counts, kind="stable")[: int((counts >= 20).sum())]
    row = {str(tokens[n]): place for place, n in enumerate(kept)}
    rows = [[row[word] for word in document if word in row] for document in documents]
    flat, offsets = np.array([n for r in rows for n in r], np.int32), np.cumsum([0, *map(len, rows)])
    pairs = count_pairs(flat, offsets, len(row), window=10)
    ice_and_steam(pairs, row)
    moments(pairs, row, given.svg)


def ice_and_steam(pairs: Cooccurrences, row: dict[str, int]) -> None:
    """P(k | ice), P(k | steam) and their ratio, from the counts."""
    chance = {}
    for word in ("ice", "steam"):
        mine = pairs.i == row[word]
        near = np.zeros(len(row))
        near[pairs.j[mine]] = pairs.x[mine]
        chance[word] = near / near.sum()
    print(f"{'k':10}{'P(k|ice)':>12}{'P(k|steam)':>12}{'ratio':>10}")
    for word in TABLE:
        ice, steam = (chance[name][row[word]] for name in ("ice", "steam"))
        print(f"{word:10}{ice:12.5f}{steam:12.5f}{ice / steam if steam else np.inf:10.3g}")


def moments(pairs: Cooccurrences, row: dict[str, int], svg: Path) -> None:
    """The words of GROUPS at five moments, all on the last moment's principal components."""
    chosen = [row[word] for group in GROUPS.values() for word in group.split()]
    seen: list[tuple[float, np.ndarray]] = []

    def keep(progress: Progress) -> None:
        done = (len(progress.losses) + progress.visited / len(pairs.x)) / ITERATIONS
        P = progress.W.shape[1] // 2
        seen.append((done, progress.W[chosen, :P] + progress.C[chosen, :P]))

    train_glove(pairs, len(row), vector_size=50, x_max=10, iterations=ITERATIONS, keep=keep)
    last = seen[-1][1]
    axes_D2 = np.linalg.svd(last - last.mean(axis=0))[2][:2].T
    times = np.array([done for done, _ in seen])
    draw([seen[int(np.abs(times - moment).argmin())] for moment in MOMENTS], axes_D2, svg)


def draw(chosen: list[tuple[float, np.ndarray]], axes_D2: np.ndarray, svg: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = [(word, colour) for colour, group in GROUPS.items() for word in group.split()]
    figure = Figure(figsize=(15, 3.4))
    for axes, (done, table) in zip(figure.subplots(1, len(chosen)), chosen, strict=True):
        xy = (table - table.mean(axis=0)) @ axes_D2
        axes.set_title(f"{done:.0%} of the training", fontsize=9)
        axes.scatter(*xy.T, s=8, c=[colour for _, colour in names])
        for (x, y), (word, colour) in zip(xy, names, strict=True):
            axes.annotate(word, (x, y), fontsize=6, color=colour, xytext=(2, 2), textcoords="offset points")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right"]].set_visible(False)
    with mpl.rc_context({"svg.hashsalt": "luthier", "svg.fonttype": "none"}):
        figure.savefig(svg, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
