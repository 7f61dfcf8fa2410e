"""What the demo makes belongs to whoever has the folder: `transformers`, gensim and a JSON reader open it, alike."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.data.conversations import Message, encode_prompt
from luthier.models.checkpoints import load_model
from luthier.models.vector_files import write_word2vec
from luthier.models.vectors import load_vectors
from luthier.tokenizers.formats import load_tokenizer

TEXT = (
    "The soundboard's grain IS straight; it's 1,250 °C — naïve café, 東京 🎻\r\n\tif x:  y = 1 # ok\n\n  End.  \n "
    "Wie lange dauert es?  <|im_start|>user\nHi<|im_end|>\n<|endoftext|>"
)


@pytest.fixture(scope="module")
def build(small_demo: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    return small_demo[0] / "build"


@pytest.mark.parametrize("name", ["tokenizer", "model", "tuned"])
def test_transformers_gives_the_same_ids(build: Path, name: str) -> None:
    import transformers

    theirs: Any = transformers.AutoTokenizer.from_pretrained(build / name)
    ours = load_tokenizer(build / name)
    ids = ours.encode(TEXT, "all").tolist()
    assert theirs(TEXT)["input_ids"] == ids
    assert theirs.decode(ids) == ours.decode(ids) == TEXT
    assert (len(theirs), theirs.eos_token_id, theirs.pad_token_id) == (ours.vocab_size, ours.eos_id, ours.pad_id)


@pytest.mark.parametrize("name", ["model", "tuned"])
def test_transformers_gives_the_same_logits(build: Path, name: str) -> None:
    import transformers

    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(build / name).eval()
    ours, tokenizer = load_model(build / name), load_tokenizer(build / name)
    ids_BT = torch.tensor([tokenizer.encode(TEXT, "all").tolist()])
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids_BT), theirs(ids_BT).logits, rtol=1e-4, atol=1e-4)


def test_transformers_asks_and_stops_as_we_do(build: Path) -> None:
    import transformers

    theirs: Any = transformers.AutoTokenizer.from_pretrained(build / "tuned")
    ours = load_tokenizer(build / "tuned")
    asked = [{"role": "user", "content": "What is a bridge?"}]
    prompt = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert prompt == encode_prompt(ours, [Message("user", "What is a bridge?")]).tolist()
    stops = transformers.GenerationConfig.from_pretrained(build / "tuned").eos_token_id
    assert stops == [ours.special_tokens["<|im_end|>"], ours.special_tokens["<|endoftext|>"]]


@pytest.mark.parametrize("method", ["word2vec", "glove"])
def test_gensim_holds_the_same_vectors(build: Path, method: str, tmp_path: Path) -> None:
    from gensim.models import KeyedVectors
    from safetensors.numpy import load_file

    folder = build / f"vectors-{method}"
    table = load_file(folder / "vectors.safetensors")["vectors"]
    rows = [json.loads(line) for line in (folder / "vocabulary.jsonl").read_text(encoding="utf-8").splitlines()]
    ours = load_vectors(folder)
    keyed = ours.to_gensim()
    assert keyed.index_to_key == [row["token"] for row in rows]
    assert [keyed.get_vecattr(t, "count") for t in keyed.index_to_key] == [row["count"] for row in rows]
    np.testing.assert_array_equal(keyed.vectors, table)
    write_word2vec(ours, tmp_path / "vectors.bin", binary=True)
    read = KeyedVectors.load_word2vec_format(str(tmp_path / "vectors.bin"), binary=True)
    assert read.index_to_key == keyed.index_to_key
    np.testing.assert_array_equal(read.vectors, table)
    probe = rows[len(rows) // 2]["token"]
    assert [t for t, _ in keyed.most_similar(probe, topn=5)] == [n[0] for n in ours.most_similar(probe, topn=5)]


@pytest.mark.parametrize("name", ["tuned/model", "vectors-word2vec/vectors"])
def test_others_may_read_the_numbers_as_they_may_the_rest(build: Path, name: str) -> None:
    weights = build / f"{name}.safetensors"
    assert weights.stat().st_mode == (weights.parent / "manifest.json").stat().st_mode


def test_documents_are_lines_of_json(build: Path) -> None:
    with (build / "corpus" / "documents.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    documents = build.parent / "documents"
    assert len(rows) > 10
    assert {row["kind"] for row in rows} == {"stable", "volatile"}
    for row in rows:
        assert row["text"].strip()
        file_in = documents / row["source"]["path"]
        if file_in.is_file():  # an attachment stands inside its mail
            assert hashlib.sha256(file_in.read_bytes()).hexdigest() == row["source"]["sha256"], row["source"]["path"]
