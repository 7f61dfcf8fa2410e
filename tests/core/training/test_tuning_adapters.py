"""Tuning with adapters: the folder opens wherever a model does, merging gives the same answers, what cannot be opened
later is refused, over-long examples get what was asked, and a killed run ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.assistant.assistant import AssistantConfig
from luthier.core.assistant.opening import open_assistant
from luthier.core.errors import ConfigError, InputError, TrainingError
from luthier.core.show.show import show
from luthier.core.training.finetune import FinetuneConfig, finetune
from luthier.models.adapter_files import open_model
from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import preset
from luthier.models.lora import LoraError, is_quantised
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

WORDS = ["spruce", "maple", "bone", "ebony", "steel", "glue"]
ROWS = [{"prompt": f"What is part {i}?", "completion": f"Part {i} is {WORDS[i]}."} for i in range(6)]
TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
FAST: dict[str, Any] = {"batch_size": 6, "context": 64, "learning_rate": 1e-2, "threads": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_bpe([" ".join(f"{r['prompt']} {r['completion']}" for r in ROWS)] * 3, 300)
    save_tokenizer(tokenizer, folder / "model")
    save_model(Transformer(preset("demo", vocab_size=300, initializer_range=0.2, **TINY), seed=1), folder / "model")
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "No."} for r in ROWS]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder


def answers(folder: Path) -> list[str]:
    assistant = open_assistant(folder, None, AssistantConfig(min_confidence=0.0, max_new_tokens=20)).assistant
    return [a.text for a in assistant.answers([r["prompt"] for r in ROWS])]


@pytest.mark.parametrize(("kind", "quantize"), [("lora", "none"), ("rslora", "nf4")])
def test_an_adapter_answers_and_so_does_the_merged_model(
    base: Path, tmp_path: Path, kind: Any, quantize: Any, capsys: Any
) -> None:
    config = FinetuneConfig(epochs=60, lora_rank=8, lora_kind=kind, quantize=quantize, **FAST)
    done = finetune(base / "model", [base / "c.jsonl"], tmp_path / "a", config)
    told = capsys.readouterr().err
    assert "of them in adapters are trained" in told and ("four bits" in told) == (quantize == "nf4")
    assert done.loss < 0.1
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "manifest.json"} <= names
    assert "model.safetensors" not in names and "config.json" not in names
    assert answers(tmp_path / "a") == [r["completion"] for r in ROWS]
    show(tmp_path / "a")
    assert f"{kind}, rank 8, α 16" in capsys.readouterr().out
    for words in ("TFLOP", "GFLOP/s of a matrix product here", "GB of the", "precision    fp32; kernels ", "linear"):
        assert words in told, words
    merged = FinetuneConfig(epochs=60, lora_rank=8, lora_kind=kind, quantize=quantize, merge=True, **FAST)
    finetune(base / "model", [base / "c.jsonl"], tmp_path / "m", merged)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        a, b = open_model(tmp_path / "a")(ids), load_model(tmp_path / "m")(ids)
    assert (a - b).norm() <= 1e-5 * b.norm() and is_quantised(open_model(tmp_path / "a")) == (quantize == "nf4")
    # What an adapter made can be gone on from, into a whole model.
    with pytest.raises(InputError, match=r"is an adapter, and an adapter needs a whole model(.|\n)*--merge"):
        finetune(tmp_path / "a", [base / "c.jsonl"], tmp_path / "b", config)
    finetune(
        tmp_path / "a", [base / "c.jsonl"], tmp_path / "b", FinetuneConfig(epochs=1, **{**FAST, "learning_rate": 1e-6})
    )
    assert answers(tmp_path / "b") == [r["completion"] for r in ROWS]


def test_the_embedding_is_trained_too_where_that_is_asked_for(base: Path, tmp_path: Path) -> None:
    ends = ("embed_tokens.weight", "norm.weight")
    for asked in (False, True):
        out, settings = tmp_path / str(asked), {"lora_rank": 2, "merge": True, "epochs": 2, **FAST}
        finetune(base / "model", [base / "c.jsonl"], out, FinetuneConfig(train_embedding=asked, **settings))
        before, after = (dict(load_model(folder).named_parameters()) for folder in (base / "model", out))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed & set(ends) == ({ends[0]} if asked else set())
        assert "layers.1.mlp.up_proj.weight" in changed


def test_what_cannot_be_is_refused_before_anything_is_made(base: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], match: str, **settings: Any) -> None:
        with pytest.raises(error, match=match):
            finetune(base / "model", [base / "c.jsonl"], tmp_path / "x", FinetuneConfig(**settings))
        assert not any(tmp_path.iterdir())

    refused(ConfigError, "quantize is for adapters: give lora_rank too", quantize="nf4")
    refused(ConfigError, "merge is for adapters", merge=True)
    refused(ConfigError, "train_embedding is for adapters", train_embedding=True)
    refused(ConfigError, "an adapter does not hold: add --merge", train_embedding=True, lora_rank=4)
    refused(ConfigError, "lora_rank = -1", lora_rank=-1)
    refused(LoraError, "targets = query: choose from q_proj", lora_rank=4, lora_targets=("query",))
    with pytest.raises(ConfigError, match="larger vocabulary has new rows"):
        finetune(
            base / "model", [base / "c.jsonl"], tmp_path / "x", FinetuneConfig(lora_rank=4), tokenizer=base / "model"
        )


def test_examples_that_are_too_long(base: Path, tmp_path: Path, capsys: Any) -> None:
    long = {"prompt": "Tell me.", "completion": "Part 1 is maple. " * 30}
    file = tmp_path / "c.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, long]))

    def run(policy: Any) -> Any:
        return finetune(base / "model", [file], tmp_path / policy, FinetuneConfig(epochs=1, too_long=policy, **FAST))

    with pytest.raises(TrainingError, match=r"1 example longer than 64 tokens: (.|\n)*c.jsonl:7\n(.|\n)*--too-long"):
        run("error")
    dropped = run("drop")
    assert (dropped.examples, dropped.pairs) == (6, 6) and "6: 6 pairs and conv" in (told := capsys.readouterr().err)
    assert "1 examples longer than 64 tokens" in told
    split = run("split")
    assert split.examples > 8 and split.pairs == 7 and "  split        1 example longer than" in capsys.readouterr().err
    tokenizer = load_tokenizer(base / "model")
    rows = [json.loads(line) for line in (tmp_path / "split" / "metrics.jsonl").read_text().splitlines()]
    answers_ = [r["completion"].strip() + "<|im_end|>" for r in [*ROWS, long]]
    marks = sum(len(tokenizer.encode_ordinary(a[:-10])) + 1 for a in answers_)
    assert rows[-1]["tokens"] == marks  # every label once


def test_the_template_that_is_asked_for_is_trained_and_saved(base: Path, tmp_path: Path, capsys: Any) -> None:
    done = finetune(
        base / "model",
        [base / "c.jsonl"],
        tmp_path / "t",
        FinetuneConfig(epochs=60, template="alpaca", **{**FAST, "context": 192}),
    )
    assert "### Response:" in capsys.readouterr().err and done.loss < 0.1
    assert answers(tmp_path / "t") == [r["completion"] for r in ROWS]
    stops = json.loads((tmp_path / "t" / "generation_config.json").read_text())["eos_token_id"]
    assert stops in (load_tokenizer(tmp_path / "t").eos_id, [load_tokenizer(tmp_path / "t").eos_id])
    with pytest.raises(ConfigError, match="template = 'llama3': the tokenizer has no"):
        finetune(base / "model", [base / "c.jsonl"], tmp_path / "l", FinetuneConfig(template="llama3"))


CALL = """
from pathlib import Path
from luthier.core.training.finetune import FinetuneConfig, finetune
finetune(Path(BASE) / "model", [Path(BASE) / DATA], Path(OUT), FinetuneConfig(**MORE))
"""


@pytest.mark.parametrize(
    ("data", "more"),
    [("c.jsonl", {"quantize": "nf4", "lora_kind": "dora"}), ("p.jsonl", {"objective": "dpo", "learning_rate": 1e-3})],
)
def test_killed_runs_end_bit_equal(base: Path, tmp_path: Path, data: str, more: dict[str, Any]) -> None:
    """`kill -9` at a random moment, then the same command again."""
    more = {"epochs": 24, "batch_size": 6, "context": 64, "save_every": 0, "lora_rank": 4, "threads": 1, **more}

    def call(out: str) -> str:
        names = {"BASE": str(base), "DATA": data, "OUT": str(tmp_path / out), "MORE": more}
        return "".join(f"{name} = {value!r}\n" for name, value in names.items()) + CALL

    exec(call("whole"), {})
    log, lines = tmp_path / ".cut.building" / "metrics.jsonl", random.randint(3, 18)
    print(f"killed after line {lines}")
    process = subprocess.Popen([sys.executable, "-c", call("cut")], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and log.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    exec(call("cut"), {})
    for file in ("adapter_model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "cut" / file).read_bytes(), file
