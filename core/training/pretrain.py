"""Pretraining: a model learns a language by guessing the next token of running text.

    shards ──windows──▶ batch [B, T] ──Transformer──▶ Σ −log p(next token) / count ──▶ one step of fit (loop.py)

Two kinds of text are mixed. The company's own documents are few; a model that sees nothing else learns them by heart
and no language. General text beside them (document number −1 in the shards) teaches the rest. `general_share` says
what part of all windows is general text, however much of it there is: a share of 0.5 with 40,000 tokens of one's own
and 500,000 others runs five times over one's own while it sees 200,000 of the others. Up to about four passes, text
repeated is worth nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264).

How long: `steps`, or `tokens`, or by default `epochs`, the passes over one's own text. None of them asks the clock,
so the same settings give the same model on a fast machine and on a slow one.

From a base model the run goes on with that model's weights and shape. If the shards were made with a tokenizer that
extends the base's (`luthier train-tokenizer --extend`), its embedding grows first (models/resize.py).

Legend: B rows of a batch, T tokens a row (`context`), V vocabulary, C hidden size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.artifacts import Artifact, hash_file, read_json
from luthier.core.console import duration, say
from luthier.core.errors import ConfigError, InputError, TrainingError, did_you_mean

if TYPE_CHECKING:
    from luthier.core.data.shards import Shards
    from luthier.core.training.batches import Batch, Windows
    from luthier.core.training.loop import Fitted
    from luthier.models.config import ModelConfig
    from luthier.models.transformer import Transformer

__all__ = ["PretrainConfig", "PretrainSummary", "pretrain"]


@dataclass(frozen=True)
class PretrainConfig:
    """What model is made, of what, and for how long. 0 in a size means: as in the preset."""

    model: str = "demo"
    """Preset of the model's shape: `luthier.models.config.presets`, from demo (2.4 million parameters) upwards."""
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
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices of the layers and AdamW for the rest, or AdamW for all."""
    learning_rate: float = 0.0
    """Highest learning rate, the same for Muon and AdamW; 0: from the model's width, 1e-2 · 192 / hidden_size."""
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
    validation_tokens: int = 16_384
    """Most tokens of held-out text for these measurements."""
    save_every: float = 30.0
    """Seconds between checkpoints, from which an interrupted run goes on; no effect on the result."""
    threads: int = 0
    """CPU threads; 0: OMP_NUM_THREADS, or all cores. Another number gives another rounding."""
    seed: int = 0
    """Seed of weights and data order."""

    def __post_init__(self) -> None:
        positive = ("context", "batch_size")
        zero_or_more = ("micro_batch", "steps", "tokens", "learning_rate", "weight_decay", "max_grad_norm")
        _check(self, positive, (*zero_or_more, "evaluate_every", "threads"))
        if not 0 <= self.general_share < 1:
            raise ConfigError(f"general_share = {self.general_share}: expected 0 to below 1")
        if not self.steps and not self.tokens and self.epochs <= 0:
            raise ConfigError(f"epochs = {self.epochs}: expected more than 0, or give steps or tokens")
        from luthier.models.config import ModelConfigError

        try:
            model_config(self, vocab_size=1)  # a shape that cannot be is refused before anything is made for it
        except ModelConfigError as error:
            raise ConfigError(str(error)) from error


def _check(config: Any, positive: tuple[str, ...], zero_or_more: tuple[str, ...]) -> None:
    for name in positive:
        if getattr(config, name) <= 0:
            raise ConfigError(f"{name} = {getattr(config, name)}: expected more than 0")
    for name in zero_or_more:
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} = {getattr(config, name)}: expected 0 or more")


@dataclass
class PretrainSummary:
    """What a run made; `loss` is the mean of its last tenth, in nats a token."""

    out: Path
    parameters: int = 0
    steps: int = 0
    tokens: int = 0
    loss: float = 0.0
    validation_loss: float | None = None
    seconds: float = 0.0
    changed: bool = True

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.out} is up to date"
        speed = f", {self.tokens / self.seconds:,.0f} tokens/s" if self.seconds > 0 else ""
        held_out = f", {self.validation_loss:.3f} on held-out text" if self.validation_loss is not None else ""
        return (
            f"{self.parameters:,} parameters, {self.steps:,} steps in {duration(self.seconds)}{speed}\n"
            f"loss {self.loss:.3f} nats a token{held_out}"
        )


def pretrain(
    shards: Path,
    out: Path,
    config: PretrainConfig | None = None,
    *,
    base: Path | None = None,
    vectors: Path | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> PretrainSummary:
    """Train a new model on a folder of shards; `out` becomes a Hugging Face model folder.

    `base`, a model's folder, is gone on from; its shape then replaces the preset's. `vectors` start a new model's
    embedding; `tokenizer`, the one that made the shards, is saved beside the weights (left out: the base's). Raises
    ArtifactError or InputError if the inputs do not fit together, TrainingError if there is nothing to train on.
    """
    from luthier.core.data.shards import open_shards

    config = config or PretrainConfig()
    train, held_out = open_shards(shards, "train"), open_shards(shards, "validation")
    if not len(train.tokens):
        raise TrainingError(f"{shards} holds no text to train on\nEncode a corpus with at least one stable document.")
    if base is not None and vectors is not None:
        raise InputError(f"{base} has an embedding already: give a base model or vectors, not both")
    tokenizer = tokenizer or base
    if tokenizer is not None:
        _same_tokenizer(train, Path(tokenizer))
    inputs = {"shards": Path(shards), "base": _path(base), "vectors": _path(vectors), "tokenizer": _path(tokenizer)}
    work = Artifact(out, "pretrain", settings(config), inputs, overwrite=overwrite)
    if work.done:
        return PretrainSummary(Path(out), changed=False)
    with work:
        return _run(work, config, train, held_out, base, vectors, tokenizer)


def _run(
    work: Artifact,
    config: PretrainConfig,
    train: Shards,
    held_out: Shards,
    base: Path | None,
    vectors: Path | None,
    tokenizer: Path | None,
) -> PretrainSummary:
    import torch

    from luthier.core.training.batches import mixed, pack
    from luthier.core.training.loop import fit
    from luthier.core.training.optimizers import make_optimizers
    from luthier.core.training.schedules import learning_rate_factor
    from luthier.models.transformer import Transformer

    use_machine(config.threads)
    if base is not None:
        model = open_base(Path(base), tokenizer and Path(tokenizer))
        config = replace(config, context=min(config.context, model.config.max_position_embeddings))
    else:
        shape = model_config(config, train.vocab_size)
        model = Transformer(shape, torch.Generator().manual_seed(config.seed))
    shape = model.config
    if vectors is not None:
        _start_from(model, vectors)
    own, general = sources(train, context=config.context, seed=config.seed)
    share = config.general_share if general is not None else 0.0
    steps = _steps(config, own, share)

    def batch_at(step: int) -> Batch:
        places = range(step * config.batch_size, (step + 1) * config.batch_size)
        return pack([mixed(own, general, share, place) for place in places], config.context, 0)

    _say_plan(config, shape, own, general, steps, share)
    done = fit(
        model,
        make_optimizers(model, name=config.optimizer, lr=rate_of(config, shape), weight_decay=config.weight_decay),
        batch_at,
        steps=steps,
        factor=lambda s: learning_rate_factor(s, steps, schedule=config.schedule, warmup=config.warmup),
        folder=work.folder,
        validation=_validation(held_out, config),
        evaluate_every=config.evaluate_every or max(1, -(-steps // 8)),
        save_every=config.save_every,
        micro_batch=config.micro_batch,
        max_grad_norm=config.max_grad_norm,
        title="Pretraining",
    )
    save(model, work.folder, tokenizer, base)
    return summary_of(work.out, model, done)


# ---------------------------------------------------------------- the pieces


def model_config(config: PretrainConfig, vocab_size: int) -> ModelConfig:
    """The preset with what the settings change in it."""
    from luthier.models.config import preset, presets

    if config.model not in presets:
        raise ConfigError(
            f"model = '{config.model}': no such preset{did_you_mean(config.model, presets)}\n"
            f"Known: {', '.join(presets)}"
        )
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    changed = {name: getattr(config, name) for name in sizes if getattr(config, name)}
    longest = max(config.context, presets[config.model].max_position_embeddings)
    return preset(config.model, vocab_size=vocab_size, max_position_embeddings=longest, **changed)


def open_base(folder: Path, tokenizer: Path | None) -> Transformer:
    """The model to go on from, with a row for every id of `tokenizer`, which must be the model's own or extend it."""
    from luthier.models.checkpoints import load_model
    from luthier.models.resize import extends, resize_vocabulary
    from luthier.tokenizers.formats import load_tokenizer

    model, old = load_model(folder), load_tokenizer(folder)
    if old.vocab_size > model.config.vocab_size:
        raise InputError(
            f"{folder}: its tokenizer has {old.vocab_size:,} tokens, its model only {model.config.vocab_size:,}"
        )
    new = old if tokenizer is None or tokenizer == folder else load_tokenizer(tokenizer)
    if new.tokens == old.tokens:
        return model
    if not extends(new, old):
        raise InputError(
            f"{tokenizer} gives ids another meaning than the tokenizer of {folder}\n"
            f"Make one that only adds to it: luthier train-tokenizer CORPUS --extend {folder} --out tokenizer"
        )
    count = resize_vocabulary(model, old, new)
    say(f"  vocabulary   {old.vocab_size:,} ids and {count:,} new ones, each from the mean of the pieces it replaces")
    return model


def rate_of(config: PretrainConfig, shape: ModelConfig) -> float:
    """The learning rate that is set, or the one that fits the width: measured at 128, and falling as 1 / width, as it
    must where every layer's output is to change as much in a wide model as in a narrow one (Yang et al. 2022,
    arXiv:2203.03466)."""
    return config.learning_rate or 1e-2 * 192 / shape.hidden_size


def _same_tokenizer(shards: Shards, folder: Path) -> None:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise InputError(f"{folder} is not a tokenizer folder: it has no tokenizer.json")
    if shards.tokenizer and hash_file(file) != shards.tokenizer:
        raise InputError(
            f"{shards.folder} was encoded with another tokenizer than {folder}\n"
            f"Encode again: luthier encode … --tokenizer {folder} --overwrite"
        )


def _path(path: Path | None) -> Path | None:
    return None if path is None else Path(path)


def use_machine(threads: int) -> None:
    """Threads as asked for (0: OMP_NUM_THREADS, or the cores this process may use), and freed memory kept."""
    import os

    import torch

    from luthier.core.training.allocator import keep_freed_memory

    keep_freed_memory()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads or (int(asked) if asked.isdigit() and asked != "0" else cores) or 1)


def settings(config: Any) -> dict[str, Any]:
    """What identifies the work: all settings but those that change nothing in the result."""
    return {name: value for name, value in asdict(config).items() if name != "save_every"}


def _start_from(model: Any, folder: Path) -> None:
    from luthier.core.training.embedding import start_embedding
    from luthier.models.vectors import load_vectors

    vectors = load_vectors(Path(folder))
    count = start_embedding(model.embed_tokens.weight, vectors) if vectors.spelling == "byte-level" else 0
    if not count:
        raise InputError(
            f"{folder} holds no vector of a token of these shards\n"
            "Train vectors on the shards: luthier train-vectors SHARDS --tokenizer TOKENIZER"
        )
    say(f"  embedding    {count:,} of {len(model.embed_tokens.weight):,} tokens start from {folder}")


def sources(shards: Shards, *, context: int, seed: int, number: int = 0) -> tuple[Windows, Windows | None]:
    """Windows over one's own text and over general text; where there is only one kind, that is the first."""
    import numpy as np

    from luthier.core.training.batches import Windows

    def over(chosen: np.ndarray, kind: int) -> Windows:
        return Windows(
            shards.tokens,
            shards.offsets,
            shards.names,
            chosen,
            context=context,
            seed=seed,
            number=number + kind,
        )

    own, general = np.flatnonzero(shards.documents >= 0), np.flatnonzero(shards.documents < 0)
    if not len(own):
        return over(general, 0), None
    return over(own, 0), over(general, 1) if len(general) else None


def _steps(config: PretrainConfig, own: Windows, share: float) -> int:
    if config.steps:
        return config.steps
    if config.tokens:
        return max(1, -(-config.tokens // (config.batch_size * config.context)))
    return max(1, round(config.epochs * len(own) / (1 - share) / config.batch_size))


def _validation(held_out: Shards, config: PretrainConfig) -> list[Batch]:
    """Held-out windows, the same at every measurement."""
    from luthier.core.training.batches import pack

    if not len(held_out.tokens):
        say("  held out     no validation text: only the training loss is measured")
        return []
    own, _ = sources(held_out, context=config.context, seed=config.seed)
    windows = [own[i] for i in range(min(len(own), max(1, config.validation_tokens // config.context)))]
    return [pack(windows[i : i + 16], config.context, 0) for i in range(0, len(windows), 16)]


def _say_plan(
    config: PretrainConfig, shape: ModelConfig, own: Windows, general: Windows | None, steps: int, share: float
) -> None:
    from luthier.models.config import flops_per_token, parameter_count

    tokens = config.batch_size * config.context
    passes = steps * config.batch_size * (1 - share) / len(own)
    others = (
        f", {general.total:,} of general text ({share:.0%} of the windows)" if general is not None and share else ""
    )
    work = 3 * flops_per_token(shape, config.context) * tokens * steps
    say(
        f"  model        {parameter_count(shape):,} parameters: {shape.num_hidden_layers} layers of width "
        f"{shape.hidden_size}, vocabulary {shape.vocab_size:,}"
    )
    say(f"  text         {own.total:,} tokens in {len(own.chosen):,} documents{others}")
    say(f"  steps        {steps:,} of {config.batch_size} × {config.context} tokens: {passes:.1f} passes over the text")
    say(f"  work         {steps * tokens:,} tokens, {work / 1e12:,.1f} TFLOP, {threads_said()}")
    say(f"  optimizer    {config.optimizer}, learning rate {rate_of(config, shape):.1e}, {config.schedule}")


def threads_said() -> str:
    """How many threads train, in words."""
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def save(model: Any, folder: Path, tokenizer: Path | None, base: Path | None = None) -> None:
    """The model in Hugging Face's layout, with its tokenizer; what config.json says of single tokens as in `base`."""
    from luthier.core.data.conversations import chat_template, stop_ids
    from luthier.models.checkpoints import save_model
    from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

    if tokenizer is None:
        save_model(model, folder)
        say("  tokenizer    none given: the model's folder has none, and text cannot be put to it")
        return
    known = load_tokenizer(Path(tokenizer))
    known.chat_template = known.chat_template or chat_template(known)
    save_tokenizer(known, folder)
    save_model(model, folder, eos_token_id=stop_ids(known), **_tokens_of(Path(base or tokenizer)))


def _tokens_of(base: Path) -> dict[str, Any]:
    """The tokens that a base model's config.json names beside its end: how a text begins, what fills a row."""
    config = read_json(base / "config.json") if (base / "config.json").is_file() else {}
    return {name: config.get(name) for name in ("bos_token_id", "pad_token_id")}


def summary_of(out: Path, model: Any, done: Fitted) -> PretrainSummary:
    parameters = sum(p.numel() for p in model.parameters())
    return PretrainSummary(Path(out), parameters, done.steps, done.read, done.loss, done.validation_loss, done.seconds)
