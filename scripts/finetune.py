"""`luthier finetune`: a model learns to answer. The work is in `core/training/finetune.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.training.finetune import FinetuneConfig, finetune
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Tune a model on question-and-answer pairs, conversations or preferences; only the assistant's words are trained.

    Goes in: a model folder, our own or a Llama-like one of Hugging Face's; questions.jsonl of a corpus (stable pairs
    of the training split are used, in all their wordings), or JSON lines of conversations (OpenAI messages without
    tool calls, ShareGPT, Alpaca, prompt and completion); for --objective dpo, JSON lines of preferences (prompt,
    chosen, rejected).

    Comes out: a Hugging Face model folder with metrics.jsonl and trained_pairs.jsonl, every wording that was trained;
    with --lora-rank an adapter folder in PEFT's format, which opens like a model, or with --merge a model again.

    Example: luthier finetune build/model build/corpus/questions.jsonl --replay build/shards --out build/tuned
    Example: luthier finetune build/model talks.jsonl --lora-rank 8 --quantize nf4 --out build/adapter
    Example: luthier finetune build/tuned preferences.jsonl --objective dpo --beta 0.1 --out build/preferred

    Several processes: torchrun --nproc-per-node 8 scripts/finetune.py MODEL DATA --out TUNED; with --parallel fsdp each
    holds a share of the model.

    Takes about 45 s for 150 pairs in four wordings each with a model of 2.4 million parameters on 2 cores.
    Interrupted, the same command goes on from its last checkpoint and ends with the same weights, bit by bit.
    """

    model: tyro.conf.Positional[Path]
    """Folder of the model to start from; an adapter's folder, too; or hub:owner/name, which is then downloaded."""
    data: tyro.conf.Positional[tuple[Path, ...]]
    """Files of questions, conversations or preferences, or corpus folders that hold questions.jsonl."""
    replay: Path | None = None
    """Folder of shards to mix in, so that the language is not forgotten."""
    tokenizer: Path | None = None
    """Folder of a tokenizer that extends the model's own: the model's vocabulary grows. Without it, the model's own."""
    out: Path = Path("tuned")
    """Folder for the tuned model."""
    overwrite: bool = False
    """Replace a different model in --out."""
    config: FinetuneConfig = field(default_factory=FinetuneConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "finetune", argv)
    done = finetune(
        command.model,
        command.data,
        command.out,
        command.config,
        replay=command.replay,
        tokenizer=command.tokenizer,
        overwrite=command.overwrite,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        print(done)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
