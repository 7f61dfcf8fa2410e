"""The settings of pretraining, what they may be, and the model's shape and learning rate that follow from them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import ConfigError, did_you_mean
from luthier.core.training.loop_config import LoopConfig, check_numbers, check_rate

if TYPE_CHECKING:
    from luthier.models.config import ModelConfig

__all__ = ["VALIDATION_TOKENS", "PretrainConfig", "model_config", "rate_of", "shape_file"]

VALIDATION_TOKENS = 16_384  # most that are measured, where nothing else is said


@dataclass(frozen=True)
class PretrainConfig(LoopConfig):
    """What model is made, of what, and for how long. 0 in a size means: as in the preset."""

    model: str = "demo"
    """Preset of the model's shape: `luthier.models.config.presets`, from demo (2.4 million parameters) upwards. Or a
    config.json in Hugging Face's layout (or its folder): that shape, of any family read here, with new weights."""
    hidden_size: int = 0
    """Width C of the model."""
    intermediate_size: int = 0
    """Width of the feed-forward layer."""
    num_hidden_layers: int = 0
    """Number of layers."""
    num_attention_heads: int = 0
    """Query heads of a layer; divides hidden_size."""
    num_key_value_heads: int = 0
    """Key and value heads of a layer; divides num_attention_heads."""
    context: int = 256
    """Tokens a window. The model's max_position_embeddings is the preset's, or this where it is longer."""
    scale_positions: Literal["", "linear", "dynamic", "yarn", "llama3"] = ""
    """With --base: how its rotary positions are scaled where `context` is longer than it can read (models/config.py);
    left out, that is an error."""
    batch_size: int = 8
    """Windows a step."""
    micro_batch: int = 0
    """Most windows at once, to fit memory; 0: all. The result is the same up to rounding."""
    steps: int = 0
    """Length of the run in steps; 0: by `tokens`."""
    tokens: int = 0
    """Length of the run in tokens read; 0: by `epochs`."""
    epochs: float = 4.0
    """Length of the run in passes over the corpus' own text."""
    general_share: float = 0.5
    """Share of the windows that is general text, where the shards hold any (0 to below 1)."""
    optimizer: Literal["muon", "adamw", "adamw-8bit"] = "muon"
    """Muon for the matrices of the layers and AdamW for the rest; AdamW for all; or AdamW with means of one byte (2
    bytes a weight instead of 8) for the matrices."""
    learning_rate: float | None = None
    """Highest learning rate, the same for Muon and AdamW; none: from the model's width (with µP: from the base's),
    1e-2 · 192 / hidden_size."""
    mup_base_width: int = 0
    """µP (Yang et al. 2022, arXiv:2203.03466): the hidden_size at which the learning rate was tuned; new weights and
    each matrix's rate follow from it, so that the rate holds for wider models with as many layers and heads as large
    (docs/transformer.md). 0: the usual initializer, one rate for all."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """How the learning rate falls (core/training/schedules.py)."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.1
    """Decay of the layers' matrices, times the learning rate a step."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this norm; 0: never."""
    evaluate_every: int = 0
    """Steps between measurements on held-out text; 0: eight in the run."""
    validation_tokens: int | None = None
    """Most tokens of held-out text for these measurements, an error if there is no such text; 0: do not measure; none:
    16,384 if there is such text."""
    weights: tuple[float, ...] = ()
    """Share of each folder of shards in the windows, in their order; left out: by their tokens."""
    seed: int = 0
    """Seed of weights and data order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        zero_or_more = ("micro_batch", "steps", "tokens", "weight_decay", "max_grad_norm", "mup_base_width")
        zero_or_more += ("evaluate_every", "validation_tokens")
        length = () if self.steps or self.tokens else ("epochs",)
        positive = ("context", "batch_size", *length)
        check_numbers(self, positive=positive, zero_or_more=zero_or_more, shares=("general_share",))
        if self.keep == "best" and self.validation_tokens == 0:
            raise ConfigError(
                "keep = 'best' goes by the loss on held-out text: give validation_tokens too, or leave it out"
            )
        check_rate(self.learning_rate)
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ConfigError(f"weights = {self.weights}: expected a number above 0 for each folder of shards")
        if self.precision == "bf16-pure" and self.optimizer != "adamw":
            raise ConfigError("precision = 'bf16-pure' rounds by chance, which AdamW does: add --optimizer adamw")
        from luthier.models.config import ModelConfigError

        try:
            model_config(self, vocab_size=1)  # a shape that cannot be is refused before anything is made for it
        except ModelConfigError as error:
            raise ConfigError(str(error)) from error


def model_config(config: PretrainConfig, vocab_size: int) -> ModelConfig:
    """The preset's shape, or that of a config.json, with what the settings change in it."""
    from luthier.models.config import presets

    if file := shape_file(config.model):
        from luthier.models.checkpoints import load_config

        shape = load_config(file.parent)
    elif config.model in presets:
        shape = presets[config.model]
    else:
        raise ConfigError(
            f"model = '{config.model}': no such preset, and no folder with a config.json"
            f"{did_you_mean(config.model, presets)}\nKnown: {', '.join(presets)}"
        )
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    changed = {name: getattr(config, name) for name in sizes if getattr(config, name)}
    longest = max(config.context, shape.max_position_embeddings)
    return replace(shape, vocab_size=vocab_size, max_position_embeddings=longest, **changed)


def shape_file(model: str) -> Path | None:
    """The config.json that a shape is taken from, where `model` names no preset."""
    from luthier.models.config import presets

    place = Path(model) if Path(model).name == "config.json" else Path(model, "config.json")
    return place if model not in presets and place.is_file() else None


def rate_of(config: PretrainConfig, shape: ModelConfig) -> float:
    """The learning rate that is set, or the one that fits the width: measured at 128, and falling as 1 / width, as it
    must where every layer's output is to change as much in a wide model as in a narrow one (Yang et al. 2022,
    arXiv:2203.03466). With µP it is that of the base width, and single matrices' follow from it (models/mup.py)."""
    return config.learning_rate or 1e-2 * 192 / (config.mup_base_width or shape.hidden_size)
