"""Does it help a model to start its embedding from vectors? The same training with and without, three seeds each.

A tokenizer and word2vec vectors are trained on a text, then a small model for a number of steps: from noise, from the
vectors, and (so that it is not the spread of numbers alone that helps) from the same vectors with their rows shuffled.
Held-out loss after equal steps is printed and drawn. Every part is an artefact of its own: stopped, it goes on.

    python examples/embedding_start.py english.txt --out experiment/ --svg docs/embedding_start.svg

Takes about 3 minutes on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from luthier.core.artifacts import read_jsonl
from luthier.core.data.encode import EncodeConfig, encode
from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.core.training.tokenizer import TokenizerConfig, train_tokenizer
from luthier.core.training.vectors import VectorsConfig, train_vectors
from luthier.models.vectors import Vectors, load_vectors

SEEDS = (0, 1, 2)
SMALL = PretrainConfig(
    hidden_size=64,
    intermediate_size=176,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    context=64,
    batch_size=8,
    threads=1,
    general_share=0,
)
STARTS = {"noise": "#b9b1a4", "shuffled vectors": "#3f6c8f", "vectors": "#9a4b1f"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, default=Path("experiment"))
    parser.add_argument("--svg", type=Path, default=Path("embedding_start.svg"))
    parser.add_argument("--megabytes", type=float, default=3.0, help="of the text that are used")
    parser.add_argument("--steps", type=int, default=120)
    given = parser.parse_args()
    curves = run(given.text, given.out, given.megabytes, given.steps)
    report(curves)
    draw(curves, given.svg)


def run(text: Path, out: Path, megabytes: float, steps: int) -> dict[str, np.ndarray]:
    """Start → held-out loss [seeds, measurements, 2]: the step and the loss in nats a token."""
    out.mkdir(parents=True, exist_ok=True)
    part = out / "text.txt"
    if not part.exists():
        part.write_bytes(text.read_bytes()[: int(megabytes * 1e6)].decode(errors="ignore").encode())
    train_tokenizer([part], out / "tokenizer", TokenizerConfig(vocab_size=1024))
    encode([part], out / "tokenizer", out / "shards", EncodeConfig())
    train_vectors([out / "shards"], out / "vectors", VectorsConfig(epochs=3, min_count=5), tokenizer=out / "tokenizer")
    shuffle(out / "vectors", out / "vectors-shuffled")
    folders = {"noise": None, "shuffled vectors": out / "vectors-shuffled", "vectors": out / "vectors"}
    curves = {}
    for start, folder in folders.items():
        runs = []
        for seed in SEEDS:
            model = out / f"model {start} {seed}"
            config = replace(SMALL, steps=steps, seed=seed, evaluate_every=max(1, steps // 8))
            pretrain(out / "shards", model, config, vectors=folder, tokenizer=out / "tokenizer")
            rows = [r for r in read_jsonl(model / "metrics.jsonl") if "validation_loss" in r]
            runs.append([(r["step"], r["validation_loss"]) for r in rows])
        curves[start] = np.array(runs)
    return curves


def shuffle(folder: Path, out: Path) -> None:
    """The same vectors, given to other tokens."""
    v = load_vectors(folder)
    out.mkdir(exist_ok=True)
    order = np.random.default_rng(0).permutation(len(v))
    Vectors(np.asarray(v.vectors)[order], v.tokens, v.ids, v.counts, None, v.spelling).save(out)


def report(curves: dict[str, np.ndarray]) -> None:
    """Mean held-out loss by step, and the mean difference to noise over paired seeds with its standard error."""
    steps = curves["noise"][0, :, 0].astype(int)
    print("step " + "".join(f"{start:>20}" for start in curves) + "   vectors − noise")
    for n, step in enumerate(steps):
        means = "".join(f"{runs[:, n, 1].mean():20.3f}" for runs in curves.values())
        gap = curves["vectors"][:, n, 1] - curves["noise"][:, n, 1]
        print(f"{step:4} {means}   {gap.mean():+.3f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.3f}")


def draw(curves: dict[str, np.ndarray], svg: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    for start, runs in curves.items():
        for one in runs:
            axes.plot(*one.T, color=STARTS[start], linewidth=0.6, alpha=0.5)
        axes.plot(runs[0, :, 0], runs[:, :, 1].mean(axis=0), color=STARTS[start], linewidth=2, label=start)
    axes.set_xlabel("step")
    axes.set_ylabel("held-out loss, nats a token")
    axes.legend(frameon=False, title="embedding starts from")
    with mpl.rc_context({"svg.hashsalt": "luthier", "svg.fonttype": "none"}):
        figure.savefig(svg, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    main()
