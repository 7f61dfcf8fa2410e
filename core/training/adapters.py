"""Adapters in a tuning run: hung on the model before it, written beside the base's name or merged after it.

lora_rank = 0           every weight is trained; the result is a model folder
lora_rank = 8           adapters are trained (models/lora.py); the result is an adapter folder that names its base
  quantize = "nf4"      the base's weights are kept in four bits meanwhile: QLoRA
  merge = true          the adapter is added into the weights; the result is a model folder
  train_embedding       embedding and head are trained whole beside the adapters
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from luthier.core.training.finetune_config import FinetuneConfig
    from luthier.models.lora import LoraConfig
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["adapt", "check_adapters", "lora_of", "save_tuned"]


def lora_of(config: FinetuneConfig) -> LoraConfig | None:
    """The adapter that the settings ask for, if any."""
    if not config.lora_rank:
        return None
    from luthier.models.lora import TARGETS, LoraConfig

    return LoraConfig(config.lora_rank, config.lora_alpha, config.lora_kind, config.lora_targets or TARGETS)


def check_adapters(config: FinetuneConfig, base: Path, tokenizer: Path | None) -> None:
    """Refuse what could not be opened afterwards, before anything is made."""
    from luthier.models.adapter_files import is_adapter

    lora_of(config)
    if not config.lora_rank and (config.quantize != "none" or config.merge or config.train_embedding):
        which = "merge" if config.merge else "train_embedding" if config.train_embedding else "quantize"
        raise ConfigError(f"{which} is for adapters: give lora_rank too, for instance --lora-rank 8")
    if config.lora_rank and not config.merge and is_adapter(base):
        raise InputError(
            f"{base} is an adapter, and an adapter needs a whole model to stand on\n"
            "Add --merge, which writes a whole model with both, or start from the base model."
        )
    if config.train_embedding and not config.merge:
        raise ConfigError("train_embedding changes weights of the base, which an adapter does not hold: add --merge")
    if config.lora_rank and not config.merge and tokenizer is not None:
        raise ConfigError("a larger vocabulary has new rows, which an adapter does not hold: add --merge")


def adapt(model: Transformer, config: FinetuneConfig) -> None:
    """Hang the adapter on `model`; from here on only it is trained, and the embedding where that is asked for."""
    import torch

    from luthier.models.lora import add_adapter, quantize_base

    lora = lora_of(config)
    if lora is None:
        return
    if config.quantize == "nf4":
        quantize_base(model)
    add_adapter(model, lora, generator=torch.Generator().manual_seed(config.seed))
    if config.train_embedding:
        model.embed_tokens.requires_grad_()
        model.head_weight.requires_grad_()


def save_tuned(model: Any, folder: Path, base: Path, tokenizer: Tokenizer, config: FinetuneConfig) -> None:
    """What the run made: a model folder, or an adapter folder with the tokenizer."""
    from luthier.core.training.runs import save
    from luthier.models.adapter_files import save_adapter
    from luthier.models.lora import merge_adapters
    from luthier.tokenizers.formats import save_tokenizer

    lora = lora_of(config)
    if lora is None or config.merge:
        save(merge_adapters(model), folder, tokenizer, base)
        return
    save_tokenizer(tokenizer, folder)
    save_adapter(model.to("cpu"), folder, base, lora)
