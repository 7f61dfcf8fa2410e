"""`luthier pretrain`: a new model from shards. The work is in `core/training/pretrain.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Train a decoder model on a corpus, from nothing or from a base model.

    Goes in: folders of shards from `luthier encode`, one or several (--weights: their shares); the tokenizer that made
    them; vectors to start the embedding from, or a base model's folder, whose vocabulary grows if the tokenizer extends
    its own.

    Comes out: a Hugging Face model folder (config.json, model.safetensors, tokenizer.json …) with metrics.jsonl, the
    loss of every step. --plan: only what would be done, how long it takes and whether it fits.

    Example: luthier pretrain build/shards --tokenizer build/tokenizer --embedding build/vectors-word2vec --out
    build/model

    Several processes, here 2 machines of 8 cards: on each, torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d
    --rdzv-endpoint FIRST_MACHINE:29500 scripts/pretrain.py SHARDS --tokenizer TOKENIZER --parallel fsdp --optimizer
    adamw

    Takes about 45 s for 400,000 tokens with the preset demo (2.4 million parameters) on 2 cores. Interrupted, the
    same command goes on from its last checkpoint and ends with the same weights, bit by bit.
    """

    shards: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of shards."""
    tokenizer: Path | None = None
    """Folder of the tokenizer that made the shards; saved beside the weights. Without it: the base model's, or the copy
    that the shards hold."""
    base: Path | None = None
    """Folder of a model to go on from, with its shape, or hub:owner/name, which is then downloaded; without it, a new
    model is made."""
    embedding: Path | None = None
    """Folder of vectors of the same tokens, to start the embedding (and a tied head) from; without it, it starts at
    random. With a base model whose vocabulary grows: for its new rows; without it, each starts as the mean of the
    pieces it replaces."""
    out: Path = Path("model")
    """Folder for the model."""
    overwrite: bool = False
    """Replace a different model in --out."""
    plan: bool = False
    """Only say what would be done: sizes, steps, work, expected time and memory, the first batch."""
    config: PretrainConfig = field(default_factory=PretrainConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "pretrain", argv)
    done = pretrain(
        command.shards,
        command.out,
        command.config,
        base=command.base,
        vectors=command.embedding,
        tokenizer=command.tokenizer,
        overwrite=command.overwrite,
        plan=command.plan,
    )
    if not command.plan and int(os.environ.get("RANK", "0")) == 0:
        print(done)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
