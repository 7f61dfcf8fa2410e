"""Large vocabularies from the cache are those from the files; damaged and stale entries are made anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from luthier.tokenizers import load_cache
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import (
    TokenizerFileError,
    load_tiktoken,
    load_tokenizer,
    save_tiktoken,
    save_tokenizer,
    tokenizer_files,
)

TEXT = "a new word, an old word, and the words that no one knew: «neue Wörter»\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer's folder; vocabularies of any size are kept in the cache beside it."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    monkeypatch.setattr(load_cache, "WORTH_IT", 1)
    save_tokenizer(train_bpe([TEXT], 300, special_tokens=["<|endoftext|>", "<|pad|>"]), tmp_path / "t")
    return tmp_path / "t"


def test_from_the_cache_it_is_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_tokenizer(folder)
    monkeypatch.setattr("luthier.tokenizers.formats._from_json", None)  # no second look at the files' meaning
    again = load_tokenizer(folder)
    assert tokenizer_files(again) == tokenizer_files(first)
    assert again.encode_ordinary(TEXT).tolist() == first.encode_ordinary(TEXT).tolist()
    assert (again.eos_id, again.pad_id, again.ranks) == (first.eos_id, first.pad_id, first.ranks)


def test_the_rank_of_a_tiktoken_merge_is_the_id(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "ranks.tiktoken"
    save_tiktoken(load_tokenizer(folder), file)
    load = [load_tiktoken(file, pattern="llama3", special_tokens={"<|endoftext|>": 0, "<|pad|>": 1}) for _ in range(2)]
    assert load[0].ranks == load[1].ranks
    assert all(rank == new for rank, new in load[1].ranks.values())


def test_other_bytes_are_another_key(folder: Path) -> None:
    load_tokenizer(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": "{{ messages }}"}))
    assert load_tokenizer(folder).chat_template == "{{ messages }}"
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerFileError, match="no 'model' object"):
        load_tokenizer(folder)


@pytest.mark.parametrize("keep", [0, 10, 1000, -3])
def test_a_damaged_cache_is_made_anew(folder: Path, keep: int) -> None:
    wanted = tokenizer_files(load_tokenizer(folder))
    (file,) = load_cache.cache_folder().glob("*.npz")
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    assert tokenizer_files(load_tokenizer(folder)) == wanted
    assert file.stat().st_size == len(whole)


def test_only_the_latest_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_cache, "KEPT", 2)
    for name in "abc":
        save_tokenizer(train_bpe([TEXT], 270, special_tokens=[f"<{name}>"]), folder)
        load_tokenizer(folder)
    files = sorted(load_cache.cache_folder().iterdir())
    assert len(files) == 2
    assert all(np.load(f)["merges"].ndim == 2 for f in files)


def test_a_home_that_cannot_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LUTHIER_CACHE", os.fspath(tmp_path / "file"))
    assert load_tokenizer(folder).encode_ordinary(TEXT).size > 0
