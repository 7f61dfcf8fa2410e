"""Tiny Shakespeare, letter by letter: the text becomes bytes, its last tenth is held out, and a small model reads it.

    python train.py input.txt        where input.txt is github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt

The split is nanoGPT's (the first 90% are trained), the text is ASCII, so that a byte is a character and the loss is
nats a character. The settings stand in luthier.toml.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import numpy as np

from luthier.core.artifacts import hash_file
from luthier.core.data.shards import write_shards
from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

HERE = Path(__file__).parent
SPECIAL = 4  # tokens that stand for no bytes: end of text, the two of ChatML, padding


def main(text: Path, out: Path = Path("build")) -> None:
    """Make tokenizer, shards and model in `out`."""
    data = text.read_bytes()
    tokenizer = train_bpe(["no merges: every token is a byte"], 256 + SPECIAL)
    save_tokenizer(tokenizer, out / "tokenizer")
    cut = int(0.9 * len(data))
    train, held_out = (tokenizer.encode_ordinary(part.decode()) for part in (data[:cut], data[cut:]))
    write_shards(
        out / "shards",
        [np.asarray(train)],
        [np.asarray(held_out)],
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        tokenizer=hash_file(out / "tokenizer" / "tokenizer.json"),
    )
    config = PretrainConfig(**tomllib.loads((HERE / "luthier.toml").read_text())["pretrain"])
    print(pretrain(out / "shards", out / "model", config, tokenizer=out / "tokenizer"))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
