"""Adapter folders in PEFT's layout, in and out.

    adapter_config.json           rank, α, kind, targets; the folder of the base model
    adapter_model.safetensors     A, B and m of every layer: base_model.model.model.layers.0.mlp.up_proj.lora_A.weight
    adapter_base.json             ours: where the base lay beside this folder, and whether it was kept in four bits

A folder written here opens in `peft` with the same logits, and the other way round (GPT-2's names: adapter_gpt2.py).
The base is found where the config says, or, if both folders were moved together, where it lay beside the adapter. Which
layers have an adapter, and of what rank, the tensors say; a setting of PEFT that changes the product and is not
supported is refused by name.

Legend: N outputs, C inputs of a layer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.models.adapter_gpt2 import gpt2_config, gpt2_to_ours, gpt2_to_theirs, is_gpt2
from luthier.models.checkpoints import load_model, open_weights, whole, write_json
from luthier.models.lora import (
    TARGETS,
    AdaptedLinear,
    Adapter,
    LoraConfig,
    LoraError,
    hang,
    is_quantised,
    layers_of,
    merge_adapters,
    quantize_base,
    targets_of,
    use_adapter,
)
from luthier.models.nf4 import Nf4Linear
from luthier.models.transformer import Transformer

__all__ = ["adapter_facts", "base_of", "is_adapter", "load_adapter", "open_model", "save_adapter"]

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "adapter_base.json"
PREFIX = "base_model.model.model."  # PEFT's model holds transformers' model, which holds the decoder
# Settings of PEFT that change the product and are not supported where they are set.
FOREIGN = ("fan_in_fan_out", "layer_replication", "alpha_pattern", "modules_to_save", "trainable_token_indices")
FOREIGN += ("lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config")


def save_adapter(model: Transformer, folder: Path, base: Path, config: LoraConfig, name: str = "default") -> None:
    """Write the adapter `name` as PEFT does; `base` is the folder of the model that it belongs on."""
    from safetensors.torch import save_file

    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    for place, layer in layers_of(model, AdaptedLinear):
        adapter = layer.adapters[name]
        tensors[f"{PREFIX}{place}.lora_A.weight"] = adapter.a
        tensors[f"{PREFIX}{place}.lora_B.weight"] = adapter.b
        if adapter.magnitude is not None:
            tensors[f"{PREFIX}{place}.lora_magnitude_vector"] = adapter.magnitude
    for tensor, value in tensors.items():
        if not torch.isfinite(value).all():
            raise LoraError(f"tensor {tensor} holds numbers that are NaN or infinite; {folder} was not written")
    settings = _to_json(config, Path(base))
    if model.config.model_type == "gpt2":
        tensors = gpt2_to_theirs(tensors, {f"{PREFIX}{p}": length for p, length in _lengths(model)})
        settings = gpt2_config(settings, tensors)
    ours = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    beside = os.path.relpath(Path(base).resolve(), folder.resolve())
    with whole(folder, CONFIG) as place:
        save_file(ours, place / WEIGHTS, metadata={"format": "pt"})
        write_json(place / BASE, {"base": beside, "quantize": "nf4" if is_quantised(model) else "none"})
        write_json(place / CONFIG, settings)


def _lengths(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Row norms of the products without an adapter: what DoRA's lengths start as."""
    for place, layer in layers_of(model, (torch.nn.Linear, Nf4Linear)):
        if not place.endswith(".base"):
            yield place, layer.weight.detach().norm(dim=1)


def _to_json(config: LoraConfig, base: Path) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.resolve()),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(config.targets),
        "use_rslora": config.kind == "rslora",
        "use_dora": config.kind == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter rather than a whole model."""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def base_of(folder: Path) -> Path:
    """The folder of the model that an adapter belongs on: as written, or as it lay beside the adapter."""
    folder = Path(folder)
    named = _read_config(folder).get("base_model_name_or_path") or ""
    beside = _facts(folder).get("base", "")
    found = [p for p in (Path(named), folder / beside) if str(p) != "." and (p / "config.json").is_file()]
    if not found:
        raise LoraError(
            f"{folder} is an adapter for the model in {named or 'no folder'}, which is not there\n"
            f"Put the folder of the base model into {CONFIG} as base_model_name_or_path."
        )
    return found[0]


def adapter_facts(folder: Path) -> tuple[LoraConfig, int, int]:
    """An adapter folder's settings, its number of weights, and in how many bits its base was kept (4 or 32)."""
    folder = Path(folder)
    tensors, raw = _read(folder)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    bits = 4 if _facts(folder).get("quantize") == "nf4" else 32
    return _from_json(raw, _targets_in(tensors), folder), numbers, bits


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An adapter's tensors under our names, and its settings."""
    raw = _read_config(folder)
    with open_weights(folder / WEIGHTS) as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    return gpt2_to_ours(tensors, raw) if is_gpt2(tensors) else (tensors, raw)


def _places(keys: Iterable[str]) -> set[str]:
    """The layers that a file's tensors belong to."""
    return {key.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for key in keys}


def _targets_in(keys: Iterable[str]) -> list[str]:
    found = {place.rsplit(".", 1)[-1] for place in _places(keys)}
    return [t for t in TARGETS if t in found] + sorted(found - set(TARGETS))


def load_adapter(model: Transformer, folder: Path, name: str = "default") -> LoraConfig:
    """Hang the adapter of a folder, ours or PEFT's, on `model` and make it the active one.

    Raises LoraError or CheckpointError for a file that does not fit the model, naming the tensor; nothing is hung then.
    """
    folder = Path(folder)
    tensors, raw = _read(folder)
    _same_bits(model, folder)
    if _facts(folder).get("quantize") == "nf4" and not is_quantised(model):
        quantize_base(model)  # it was trained on such weights
    places, config = _places(tensors), _from_json(raw, _targets_in(tensors), folder)
    adapters = {}
    for place, base in targets_of(model, config, name):
        if place in places:
            adapters[place] = _adapter(tensors, place, base, config, folder)
    if places - adapters.keys():
        raise LoraError(f"{folder / WEIGHTS}: {min(places - adapters.keys())} is not in the model")
    for place, adapter in adapters.items():
        hang(model, place, name, adapter)
    use_adapter(model, name)
    return config


def _same_bits(model: Transformer, folder: Path) -> None:
    """LoraError for an adapter beside one that was trained on other weights: the base's in four bits, or not."""
    kept = _facts(folder).get("quantize")  # an adapter of other makers does not say
    others = sorted({name for _, layer in layers_of(model, AdaptedLinear) for name in layer.adapters})
    if not others or kept is None or (kept == "nf4") == is_quantised(model):
        return
    its, here = ("four bits", "full") if kept == "nf4" else ("full", "four bits")
    raise LoraError(
        f"{folder} was trained on a base in {its}; here the base is in {here} and carries {', '.join(others)}, so the "
        "adapter would say something else\nLoad the base once more, and the adapter on that."
    )


def _adapter(tensors: dict[str, Tensor], place: str, base: Any, config: LoraConfig, folder: Path) -> Adapter:
    """One layer's adapter from a file's tensors, each compared with the shape it must have."""
    N, C = base.weight.shape
    names = {"lora_A.weight": (config.rank, C), "lora_B.weight": (N, config.rank)}
    if config.kind == "dora":
        names["lora_magnitude_vector"] = (N,)
    found = []
    for suffix, shape in names.items():
        key = f"{PREFIX}{place}.{suffix}"
        tensor = tensors.get(key)
        if tensor is None or tuple(tensor.shape) != shape:
            what = "is missing" if tensor is None else f"has shape {list(tensor.shape)}"
            raise LoraError(f"{folder / WEIGHTS}: tensor {key} {what}, the base model asks for {list(shape)}")
        if not torch.isfinite(tensor).all():
            raise LoraError(f"{folder / WEIGHTS}: tensor {key} holds numbers that are NaN or infinite")
        found.append(tensor.to(base.weight))
    return Adapter(found[0], found[1], config.scale, found[2] if config.kind == "dora" else None)


def _facts(folder: Path) -> dict[str, Any]:
    """What we know of the base beyond PEFT's file; nothing for an adapter of other makers."""
    path = folder / BASE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LoraError(f"{folder} is no adapter folder: it has no {CONFIG}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LoraError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("peft_type") != "LORA":
        kind = raw.get("peft_type") if isinstance(raw, dict) else None
        raise LoraError(f"{path}: peft_type {kind!r} is not supported, only 'LORA'")
    if missing := [key for key in ("r", "lora_alpha") if not isinstance(raw.get(key), int | float)]:
        raise LoraError(f"{path}: {missing[0]} is missing or no number")
    return raw


def _from_json(raw: dict[str, Any], targets: Sequence[str], folder: Path) -> LoraConfig:
    """PEFT's settings as ours, refusing those that would change the product; which layers, the tensors say."""
    foreign = [key for key in FOREIGN if raw.get(key)]
    foreign += [f"bias = {raw['bias']!r}"] if raw.get("bias", "none") != "none" else []
    foreign += ["rank_pattern"] if raw.get("rank_pattern") else []
    if raw.get("use_dora") and raw.get("use_rslora"):
        foreign.append("use_dora with use_rslora")
    if foreign or not set(targets) <= set(TARGETS):
        other = sorted(set(targets) - set(TARGETS))
        raise LoraError(f"{folder / CONFIG}: not supported: {', '.join([*foreign, *other])}")
    kind = "dora" if raw.get("use_dora") else "rslora" if raw.get("use_rslora") else "lora"
    return LoraConfig(raw["r"], raw["lora_alpha"], kind, tuple(targets))


def open_model(folder: Path, *, dtype: torch.dtype | None = None) -> Transformer:
    """The model of a folder in evaluation mode: a whole one, or a base with its adapter merged in.

    An adapter that was trained on a base in four bits keeps that base and stays beside it.
    """
    if not is_adapter(folder):
        return load_model(folder, dtype=dtype)
    model = load_model(base_of(folder), dtype=dtype)
    load_adapter(model, folder)
    return model.eval() if is_quantised(model) else merge_adapters(model).eval()
