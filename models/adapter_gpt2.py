"""GPT-2's adapters as PEFT spells them: queries, keys and values are one product there, three here.

    attn.c_attn     A [R, C], B [3C, R]       q_proj, k_proj, v_proj        A [r, C], B [C, r] each
    attn.c_proj, mlp.c_fc, mlp.c_proj         o_proj, up_proj, down_proj

One adapter of their product is three of ours with the same A, and B cut into three. Three of ours are one of theirs
with R = 3r: the A's below each other, the B's down the diagonal of a matrix that is zero beside it,

    B A x = [ B_q A_q x ; B_k A_k x ; B_v A_v x ]

and α raised so that the scale stays (`rank_pattern`, `alpha_pattern` in adapter_config.json). Nothing is rounded.

Legend: C width, r our rank, R theirs.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

__all__ = ["gpt2_config", "gpt2_to_ours", "gpt2_to_theirs", "is_gpt2"]

THREE = ("q_proj", "k_proj", "v_proj")
NAMES = {"self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
OURS = {theirs: ours for ours, theirs in NAMES.items()}
PREFIX, THEIRS = "base_model.model.model.layers.", "base_model.model.transformer.h."
A, B, LENGTH = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"


def is_gpt2(keys: Any) -> bool:
    """Whether an adapter's tensors have GPT-2's names."""
    return any(key.startswith(THEIRS) for key in keys)


def gpt2_config(raw: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """adapter_config.json of these tensors of theirs: its targets, and rank and α of the one product for three."""
    found = {key.removeprefix(THEIRS).split(".", 1)[1].rsplit(".lora_", 1)[0] for key in tensors}
    targets = ["c_attn" if name == "attn.c_attn" else "c_fc" if name == "mlp.c_fc" else name for name in sorted(found)]
    raised = math.sqrt(3) if raw["use_rslora"] else 3
    patterns = {"rank_pattern": {"c_attn": 3 * raw["r"]}, "alpha_pattern": {"c_attn": raised * raw["lora_alpha"]}}
    return {**raw, "target_modules": targets, "fan_in_fan_out": True, **(patterns if "c_attn" in targets else {})}


def gpt2_to_theirs(tensors: dict[str, Tensor], lengths: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names. `lengths` are the row norms of every q_proj, k_proj, v_proj by our place, for DoRA
    where only some of the three have an adapter."""
    made: dict[str, Tensor] = {}
    for place in dict.fromkeys(key.rsplit(".lora_", 1)[0] for key in tensors):
        layer, name = place.removeprefix(PREFIX).split(".", 1)
        if name in NAMES:
            for end in (A, B, LENGTH):
                if f"{place}.{end}" in tensors:
                    made[f"{THEIRS}{layer}.{NAMES[name]}.{end}"] = tensors[f"{place}.{end}"]
        elif f"{THEIRS}{layer}.attn.c_attn.{A}" not in made:
            made |= _joined(tensors, layer, lengths)
    return made


def _joined(tensors: dict[str, Tensor], layer: str, lengths: dict[str, Tensor]) -> dict[str, Tensor]:
    """The three adapters of a layer's attention as one; one that is not there is zero."""
    places = [f"{PREFIX}{layer}.self_attn.{name}" for name in THREE]
    there = next(place for place in places if f"{place}.{A}" in tensors)
    a = [tensors.get(f"{place}.{A}", torch.zeros_like(tensors[f"{there}.{A}"])) for place in places]
    b = [tensors.get(f"{place}.{B}", torch.zeros_like(tensors[f"{there}.{B}"])) for place in places]
    whole = f"{THEIRS}{layer}.attn.c_attn"
    joined = {f"{whole}.{A}": torch.cat(a), f"{whole}.{B}": torch.block_diag(*b)}
    if f"{there}.{LENGTH}" in tensors:
        own = [tensors.get(f"{place}.{LENGTH}", lengths.get(place)) for place in places]
        joined[f"{whole}.{LENGTH}"] = torch.cat([length for length in own if length is not None])
    return joined


def gpt2_to_ours(tensors: dict[str, Tensor], raw: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Their tensors and settings as ours; what our names have not stays, and is refused where it is looked for.

    A rank of c_attn's own is understood where it is what `gpt2_to_theirs` makes.
    """
    raw, made = {**raw, "fan_in_fan_out": False}, {}
    own = gpt2_config({**raw, "use_rslora": raw.get("use_rslora", False)}, tensors)
    tripled = bool(raw.get("rank_pattern")) and _same(raw, own) and _diagonal(tensors)
    if tripled:
        raw |= {"rank_pattern": {}, "alpha_pattern": {}}
    for key, tensor in tensors.items():
        known = re.fullmatch(rf"{re.escape(THEIRS)}(\d+)\.(\w+\.\w+)\.({A}|{B}|{LENGTH})", key)
        if known is None:
            made[key] = tensor
        elif known[2] == "attn.c_attn":
            for place, part in zip(THREE, _cut(tensor, known[3], tripled), strict=True):
                made[f"{PREFIX}{known[1]}.self_attn.{place}.{known[3]}"] = part
        else:
            made[f"{PREFIX}{known[1]}.{OURS.get(known[2], known[2])}.{known[3]}"] = tensor
    return made, raw


def _same(raw: dict[str, Any], own: dict[str, Any]) -> bool:
    given, made = ({**(settings.get("alpha_pattern") or {})} for settings in (raw, own))
    if raw["rank_pattern"] != own.get("rank_pattern") or given.keys() != made.keys():
        return False
    return math.isclose(given["c_attn"], made["c_attn"], rel_tol=1e-6)


def _diagonal(tensors: dict[str, Tensor]) -> bool:
    """Whether every B of c_attn is zero beside its diagonal of three blocks, as three adapters of ours leave it."""
    wide = [tensor for key, tensor in tensors.items() if key.endswith(f"attn.c_attn.{B}")]
    beside = [
        block
        for tensor in wide
        for i, rows in enumerate(tensor.chunk(3))
        for j, block in enumerate(rows.chunk(3, dim=1))
        if i != j
    ]
    return not any(bool(block.any()) for block in beside)


def _cut(tensor: Tensor, end: str, tripled: bool) -> list[Tensor]:
    """The parts of q, k and v of one of c_attn's tensors."""
    if end == A:
        return list(tensor.chunk(3)) if tripled else [tensor] * 3
    rows = list(tensor.chunk(3))
    if end == B and tripled:
        return [part.chunk(3, dim=1)[i] for i, part in enumerate(rows)]
    return rows
