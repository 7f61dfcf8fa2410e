"""The settings of fine-tuning, and what they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.core.errors import ConfigError
from luthier.core.training.loop_config import LoopConfig, check_numbers, check_rate

__all__ = ["FinetuneConfig"]


@dataclass(frozen=True)
class FinetuneConfig(LoopConfig):
    """How a model is tuned on pairs and conversations."""

    epochs: float = 6.0
    """Passes over all examples; each wording of a pair is one."""
    batch_size: int = 24
    """Examples a step."""
    context: int = 256
    """Longest row in tokens; a longer example is left out and reported. At most the model's longest text."""
    micro_batch: int = 0
    """Most rows at once, to fit memory; 0: all. The result is the same up to rounding."""
    vary_share: float = 0.0
    """Share of the questions shown in a variation: lower case, no question mark, a word left out. With 60 pairs in four
    wordings each it did not help: 0.75 of the held-out wordings right with a half varied, 0.82 without (one run)."""
    vary_drop: float = 0.1
    """Chance that a word is left out of a varied question."""
    replay_share: float = 0.4
    """Share of the trained tokens that are plain text from --replay."""
    general_share: float = 0.0
    """Share of the replayed windows that is general text, where the shards hold any."""
    objective: Literal["sft", "dpo"] = "sft"
    """What is learned: sft, the assistant's words; dpo, to prefer one answer to another (core/training/dpo.py), from
    rows of prompt, chosen and rejected."""
    beta: float = 0.1
    """DPO's β: how dear it is to leave the model that is started from."""
    template: Literal["auto", "chatml", "qwen", "llama3", "alpaca"] = "auto"
    """How a conversation is written down; auto: as the tokenizer says, and ChatML where it says nothing."""
    too_long: Literal["drop", "split", "error"] = "drop"
    """What becomes of an example longer than context: left out and reported, split into stretches, or an error."""
    lora_rank: int = 0
    """Train adapters of this rank instead of all weights (Hu et al. 2021, arXiv:2106.09685); 0: all weights."""
    lora_alpha: float = 16.0
    """Strength of the adapters: what they add is multiplied by alpha / rank."""
    lora_kind: Literal["lora", "rslora", "dora"] = "lora"
    """lora; rslora, multiplied by alpha / √rank; dora, direction and length of each row learned apart."""
    lora_targets: tuple[str, ...] = ()
    """Products that get adapters, such as q_proj v_proj; none named: all seven of a layer."""
    train_embedding: bool = False
    """With adapters: train the embedding whole, and the head. A small base needs it: what it has never said (a name,
    the tokens that end a turn) has no good row there, and no adapter inside the layers makes one. Needs merge."""
    quantize: Literal["none", "nf4"] = "none"
    """Keep the base in four bits while adapters are trained (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""
    merge: bool = False
    """Add the adapters into the weights at the end: the result is a whole model, not an adapter that names its base."""
    optimizer: Literal["auto", "muon", "adamw", "adamw-8bit"] = "auto"
    """Muon for the matrices of the layers and AdamW for the rest; AdamW for all; AdamW with means of one byte (2 bytes
    a weight instead of 8) for the matrices; auto: AdamW for adapters, DPO and bf16-pure, Muon otherwise."""
    learning_rate: float | None = None
    """Highest learning rate; none: from the model's width and from what is trained."""
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    """How the learning rate falls (core/training/schedules.py)."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Decay of the layers' matrices, times the learning rate a step."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this norm; 0: never."""
    seed: int = 0
    """Seed of the order of the examples and of their variations."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective == "dpo" and self.keep == "best":
            raise ConfigError("keep = 'best' needs held-out text, which preferences have not: take 'last'")
        check_numbers(
            self,
            positive=("epochs", "batch_size", "context", "beta", "lora_alpha"),
            zero_or_more=("micro_batch", "weight_decay", "max_grad_norm", "lora_rank"),
            shares=("vary_share", "vary_drop", "replay_share", "general_share"),
        )
        check_rate(self.learning_rate)
        if self.precision == "bf16-pure" and self.optimizer not in ("auto", "adamw"):
            raise ConfigError("precision = 'bf16-pure' rounds by chance, which AdamW does: add --optimizer adamw")
