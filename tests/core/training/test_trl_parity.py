"""Step by step against TRL and PEFT: the same model, data and settings give the same losses and, after ten steps, the
same weights. Skipped where they are not installed (pip install trl)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.data.conversations import Message, encode_prompt
from luthier.core.data.preferences import Preference
from luthier.core.training.batches import IGNORED, Example, pack
from luthier.core.training.dpo import dpo_loss, encode_preference, pairs_in, with_reference
from luthier.core.training.examples import encode_wording
from luthier.core.training.loop import fit
from luthier.core.training.optimizers import make_optimizers
from luthier.models.adapter_files import save_adapter
from luthier.models.checkpoints import load_model, save_model
from luthier.models.config import preset
from luthier.models.lora import LoraConfig, add_adapter
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

trl = pytest.importorskip("trl")
STEPS, BATCH, RATE = 10, 4, 3e-3
PARTS = ["neck", "top", "back", "bridge", "nut", "saddle", "fret", "peg", "post", "bar"]
PAIRS = [
    Preference(
        (Message("user", f"What is the {p}{' made' * (i % 3)} of?"),),
        (Message("assistant", f"The {p} is of {w}, {w} and nothing else." if i % 2 else f"Of {w}."),),
        (Message("assistant", f"No idea about {p}s." + " Ask again." * (i % 4)),),
        f"pair {i}",
    )
    for i, (p, w) in enumerate((p, w) for p in PARTS for w in ("spruce", "maple", "bone", "ebony"))
]
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS, "learning_rate": RATE,
    "lr_scheduler_type": "constant", "adam_beta2": 0.95, "weight_decay": 0.0, "max_grad_norm": 1.0, "use_cpu": True,
    "report_to": [], "save_strategy": "no", "bf16": False, "gradient_checkpointing": False, "optim": "adamw_torch",
    "disable_tqdm": True, "logging_steps": 1000,
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny model folder and its tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
    folder = tmp_path_factory.mktemp("parity")
    text = " ".join(f"{p.prompt[0].content} {p.chosen[0].content} {p.rejected[0].content}" for p in PAIRS)
    tokenizer = train_bpe([text], 320)
    save_tokenizer(tokenizer, folder)
    shape = preset(
        "demo", vocab_size=320, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.1,
    )  # fmt: skip
    save_model(Transformer(shape, seed=1), folder, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    return folder, tokenizer


def ours(model: Transformer, examples: list[Example], folder: Path, pad: int, **objective: Any) -> list[float]:
    """Ten steps of our loop; a step's losses in order."""
    import json

    fit(
        model,
        make_optimizers(model, name="adamw", lr=RATE, weight_decay=0.0),
        lambda step: pack([examples[(step * BATCH + i) % len(examples)] for i in range(BATCH)], 96, pad),
        steps=STEPS,
        factor=lambda step: 1.0,
        folder=folder,
        micro_batch=1,
        **objective,
    )
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def theirs(trainer: Any) -> list[float]:
    """Ten steps of theirs, in the order of the rows; a step's loss is the sum of its pieces'."""
    losses: list[float] = []
    step: Callable[..., torch.Tensor] = trainer.training_step

    def spied(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = step(*args, **kwargs)
        losses.append(float(loss))
        return loss

    trainer.training_step = spied
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.train()
    return [a + b for a, b in zip(losses[::2], losses[1::2], strict=True)]


def opened(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|im_end|>"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer


def same_weights(model: Transformer, other: Any) -> None:
    known = dict(other.named_parameters())
    for name, p in model.named_parameters():
        q = known[name if name.startswith("lm_head") else f"model.{name}"]
        assert (p - q).norm() <= 1e-5 * q.norm(), name


def sft_rows(tokenizer: Tokenizer) -> tuple[list[Example], Any]:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    examples = [encode_wording(tokenizer, p.conversation(True), p.where) for p in PAIRS]
    rows = []
    for e in examples:
        last = int(e.labels[-1])
        rows.append({"input_ids": [*e.ids.tolist(), last], "labels": [IGNORED, *e.labels.tolist()]})
    return examples, Dataset.from_list(rows)


def test_supervised(place: Any, tmp_path: Path) -> None:
    folder, tokenizer = place
    examples, rows = sft_rows(tokenizer)
    (tmp_path / "ours").mkdir()
    model = load_model(folder)
    mine = ours(model, examples, tmp_path / "ours", tokenizer.pad_id)
    other, words = opened(folder)
    settings = trl.SFTConfig(output_dir=str(tmp_path / "trl"), max_length=None, **SETTINGS)
    trainer = trl.SFTTrainer(other, args=settings, train_dataset=rows, processing_class=words)
    assert mine == pytest.approx(theirs(trainer), rel=1e-5)
    same_weights(model, trainer.model)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_supervised_with_adapters(place: Any, tmp_path: Path, kind: Any) -> None:
    peft = pytest.importorskip("peft")
    folder, tokenizer = place
    examples, rows = sft_rows(tokenizer)
    (tmp_path / "ours").mkdir()
    model, config = load_model(folder), LoraConfig(4, 8.0, kind)
    add_adapter(model, config)
    save_adapter(model, tmp_path / "start", folder, config)
    mine = ours(model, examples, tmp_path / "ours", tokenizer.pad_id)
    other, words = opened(folder)
    other = peft.PeftModel.from_pretrained(other, tmp_path / "start", is_trainable=True)
    settings = trl.SFTConfig(output_dir=str(tmp_path / "trl"), max_length=None, **SETTINGS)
    trainer = trl.SFTTrainer(other, args=settings, train_dataset=rows, processing_class=words)
    assert mine == pytest.approx(theirs(trainer), rel=1e-5)
    assert mine[-1] < mine[0] - 0.1
    ids = torch.arange(20)[None]
    with torch.no_grad():
        a, b = model.eval()(ids), trainer.model.eval()(ids).logits
    assert (a - b).norm() <= 1e-5 * b.norm()


def test_dpo(place: Any, tmp_path: Path) -> None:
    from datasets import Dataset  # pyright: ignore[reportMissingImports]

    folder, tokenizer = place
    (tmp_path / "ours").mkdir()
    model = load_model(folder)
    examples = with_reference(model, [encode_preference(tokenizer, p) for p in PAIRS])
    objective: dict[str, Any] = {"loss_of": dpo_loss(0.3), "count_of": pairs_in}
    mine = ours(model, examples, tmp_path / "ours", tokenizer.pad_id, **objective)
    rows = [
        {
            "prompt": tokenizer.decode(encode_prompt(tokenizer, p.prompt)),
            "chosen": f"{p.chosen[0].content}<|im_end|>",
            "rejected": f"{p.rejected[0].content}<|im_end|>",
        }
        for p in PAIRS
    ]
    other, words = opened(folder)
    settings = trl.DPOConfig(output_dir=str(tmp_path / "trl"), beta=0.3, max_length=None, **SETTINGS)
    trainer = trl.DPOTrainer(other, args=settings, train_dataset=Dataset.from_list(rows), processing_class=words)
    assert mine == pytest.approx(theirs(trainer), rel=1e-5)
    assert mine[0] == pytest.approx(0.6931472, abs=1e-6) and mine[-1] < 0.6
    same_weights(model, trainer.model)
