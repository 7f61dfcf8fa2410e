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

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.artifacts import Artifact, hash_file, read_json, write_json
from luthier.core.console import duration, say
from luthier.core.errors import ConfigError, InputError, TrainingError, did_you_mean
from luthier.core.training.curves import check_curves
from luthier.core.training.loop_config import UNSEEN, LoopConfig
from luthier.core.training.plan import quiet_unless, say_plan

if TYPE_CHECKING:
    from luthier.core.data.shards import Shards
    from luthier.core.training.batches import Batch, Mixture, Windows
    from luthier.core.training.loop import Fitted
    from luthier.core.training.parallel import Workers
    from luthier.models.config import ModelConfig
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe import Tokenizer

__all__ = ["Prepared", "PretrainConfig", "PretrainSummary", "prepare", "pretrain"]

RUN = "run.json"
SAMPLE = 80  # tokens


@dataclass(frozen=True)
class PretrainConfig(LoopConfig):
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
    scale_positions: Literal["", "linear", "dynamic", "yarn", "llama3"] = ""
    """With --base: how its rotary positions are scaled where `context` is longer than it can read (models/config.py);
    left out, `context` is cut to what it reads."""
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
    weights: tuple[float, ...] = ()
    """Share of each folder of shards in the windows, in their order; left out: by their tokens."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: ddp, each process holds the whole model; fsdp, a share of it (AdamW only)."""
    seed: int = 0
    """Seed of weights and data order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("context", "batch_size")
        zero_or_more = ("micro_batch", "steps", "tokens", "learning_rate", "weight_decay", "max_grad_norm")
        _check(self, positive, (*zero_or_more, "evaluate_every"))
        if any(weight <= 0 for weight in self.weights):
            raise ConfigError(f"weights = {self.weights}: expected a number above 0 for each folder of shards")
        if self.precision == "bf16-pure" and self.optimizer != "adamw":
            raise ConfigError("precision = 'bf16-pure' rounds by chance, which AdamW does: add --optimizer adamw")
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
    shards: Path | Sequence[Path],
    out: Path,
    config: PretrainConfig | None = None,
    *,
    base: Path | None = None,
    vectors: Path | None = None,
    tokenizer: Path | None = None,
    overwrite: bool = False,
    plan: bool = False,
) -> PretrainSummary:
    """Train a new model on folders of shards, one or several; `out` becomes a Hugging Face model folder.

    `base`, a model's folder, is gone on from; its shape then replaces the preset's. `vectors` start a new model's
    embedding, or those rows of a base's that a grown vocabulary adds; `tokenizer`, the one that made the shards, is
    saved beside the weights (left out: the base's). `plan` only says what would be done and whether it fits. Raises
    ArtifactError or InputError if the inputs do not fit together, TrainingError if there is nothing to train on.
    """
    from luthier.core.training.parallel import start_workers

    config = config or PretrainConfig()
    check_curves(config)
    folders = [shards] if isinstance(shards, str | Path) else list(shards)
    given = Given(tuple(Path(f) for f in folders), _path(base), _path(vectors), _path(tokenizer or base))
    given.check(config)
    work = Artifact(out, "pretrain", settings(config), given.inputs(), overwrite=overwrite, caches=("tensorboard",))
    if work.done and not plan:
        return PretrainSummary(Path(out), changed=False)
    workers = start_workers(config.parallel)
    with quiet_unless(workers.main):
        if plan:
            say_plan(prepare(config, given), config)
            return PretrainSummary(Path(out))
        if not workers.main:  # its folder is made by the main process, which also writes it
            workers.wait()
            return _run(work, config, given, workers)
        with work:
            write_run(work.folder, "pretrain", config, asdict(given))
            workers.wait()
            return _run(work, config, given, workers)


def _run(work: Artifact, config: PretrainConfig, given: Given, workers: Workers) -> PretrainSummary:
    from luthier.core.training.loop import fit

    prepared = prepare(config, given, workers)
    say_plan(prepared, config)
    done = fit(folder=work.folder, config=config, workers=workers, save_every=config.save_every, **prepared.arguments)
    if workers.main or config.parallel == "fsdp":
        save(prepared.whole(), work.folder if workers.main else None, given.tokenizer, given.base)
    return summary_of(work.out, prepared.model, done)


@dataclass(frozen=True)
class Given:
    """The folders that a run is made of."""

    shards: tuple[Path, ...]
    base: Path | None = None
    vectors: Path | None = None
    tokenizer: Path | None = None

    def check(self, config: PretrainConfig) -> None:
        """Raises if they do not fit together, before anything is made."""
        from luthier.core.data.shards import open_shards

        if config.weights and len(config.weights) != len(self.shards):
            raise ConfigError(f"{len(config.weights)} weights for {len(self.shards)} folders of shards: one each")
        opened = [open_shards(folder, "train") for folder in self.shards]
        for one in opened:
            if not len(one.tokens):
                raise TrainingError(
                    f"{one.folder} holds no text to train on\nEncode a corpus with at least one stable document."
                )
            if one.tokenizer != opened[0].tokenizer:
                raise InputError(f"{one.folder} was encoded with another tokenizer than {opened[0].folder}")
            if self.tokenizer is not None:
                _same_tokenizer(one, self.tokenizer)

    def inputs(self) -> dict[str, Path | None]:
        """The same by name, for the manifest."""
        names = ["shards", *(f"shards {i}" for i in range(2, len(self.shards) + 1))]
        others = {"base": self.base, "vectors": self.vectors, "tokenizer": self.tokenizer}
        return {**dict(zip(names, self.shards, strict=True)), **others}


@dataclass
class Prepared:
    """A run ready to start: what `fit` is called with, and what is told of it."""

    model: Any
    arguments: dict[str, Any]
    """All that `fit` takes but the folder and how the run is carried out."""
    context: int
    shape: ModelConfig
    text: Mixture | None = None
    tokenizer: Any = None
    """The tokenizer, where there is one: to show what is trained."""

    def whole(self) -> Any:
        """The model with every weight in one piece."""
        from luthier.core.training.parallel import whole_weights
        from luthier.models.transformer import Transformer

        if not any(hasattr(p, "full_tensor") for p in self.model.parameters()):
            return self.model
        whole = Transformer(self.shape)
        whole.load_state_dict(whole_weights(self.model))
        return whole


def prepare(config: PretrainConfig, given: Given, workers: Workers | None = None) -> Prepared:
    """Model, optimizers, batches and schedule of a run, as functions of its settings and inputs alone."""
    import torch

    from luthier.core.data.shards import open_shards
    from luthier.core.training.batches import pack
    from luthier.core.training.optimizers import make_optimizers
    from luthier.core.training.parallel import Workers, shard
    from luthier.core.training.schedules import learning_rate_factor
    from luthier.models.config import flops_per_token
    from luthier.models.resize import extend_context
    from luthier.models.transformer import Transformer

    use_machine(config.threads)
    workers = workers or Workers()
    train = [open_shards(folder, "train") for folder in given.shards]
    if given.base is not None:
        model = open_base(given.base, given.tokenizer)
        if config.scale_positions and config.context > model.config.context:
            model.config = extend_context(model.config, config.context, config.scale_positions)
        config = replace(config, context=min(config.context, model.config.context))
    else:
        model = Transformer(model_config(config, train[0].vocab_size), torch.Generator().manual_seed(config.seed))
    shape = model.config
    if given.vectors is not None:
        _start_from(model, given.vectors, given.base)
    text = mixture(train, config)
    steps = _steps(config, text)

    def batch_at(step: int) -> Batch:
        places = range(step * config.batch_size, (step + 1) * config.batch_size)
        return pack([text[place] for place in places], config.context, 0)

    if torch.cuda.is_available():
        model.to("cuda")
    if config.precision == "bf16-pure":
        model.to(torch.bfloat16)
    shard(model, workers, config.optimizer)
    tokenizer = _opened(given.tokenizer)
    arguments = {
        "model": model,
        "optimizers": make_optimizers(
            model, name=config.optimizer, lr=rate_of(config, shape), weight_decay=config.weight_decay, seed=config.seed
        ),
        "batch_at": batch_at,
        "steps": steps,
        "factor": lambda s: learning_rate_factor(s, steps, schedule=config.schedule, warmup=config.warmup),
        "validation": _validation([open_shards(folder, "validation") for folder in given.shards], config),
        "evaluate_every": config.evaluate_every or max(1, -(-steps // 8)),
        "micro_batch": config.micro_batch,
        "max_grad_norm": config.max_grad_norm,
        "title": "Pretraining",
        "flops": 3 * flops_per_token(shape, config.context),
        "sample": sampler(model, tokenizer, config.sample),
    }
    return Prepared(model, arguments, config.context, shape, text, tokenizer)


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
    from luthier.models.adapter_files import open_model
    from luthier.models.lora import merge_adapters
    from luthier.models.resize import extends, resize_vocabulary
    from luthier.tokenizers.formats import load_tokenizer

    model, old = merge_adapters(open_model(folder)), load_tokenizer(folder)
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
    from luthier.core.training.execution import use_machine as use

    use(threads)


def settings(config: Any) -> dict[str, Any]:
    """What identifies the work: all settings but those that change nothing in the result."""
    best = {"keep"} if getattr(config, "keep", "") == "best" else set()
    return {name: value for name, value in asdict(config).items() if name not in UNSEEN - best}


def write_run(folder: Path, stage: str, config: Any, given: dict[str, Any]) -> None:
    """run.json: what `luthier replay` and `luthier verify` start from: settings, threads, where the inputs lie."""
    import torch

    use_machine(config.threads)
    threads = read_json(folder / RUN)["threads"] if (folder / RUN).is_file() else torch.get_num_threads()
    paths = {name: _absolute(value) for name, value in given.items()}
    write_json(folder / RUN, {"stage": stage, "config": asdict(config), "threads": threads, "given": paths})


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_absolute(one) for one in value]
    return str(value.resolve()) if isinstance(value, Path) else value


def sampler(model: Any, tokenizer: Any, beginning: str) -> Callable[[], str] | None:
    """A function that writes on from `beginning`; None where nothing is to be written or nothing can be."""
    if not beginning or tokenizer is None:
        return None

    def write() -> str:
        from luthier.models.generate import generate

        ids = tokenizer.encode(beginning)
        made = generate(model, [ids], max_new_tokens=SAMPLE, stop_ids=[tokenizer.eos_id])[0].ids
        return beginning + tokenizer.decode(made)

    return write


def _opened(tokenizer: Path | None) -> Any:
    from luthier.tokenizers.formats import load_tokenizer

    return None if tokenizer is None else load_tokenizer(tokenizer)


def _start_from(model: Any, folder: Path, base: Path | None) -> None:
    """Start the embedding from vectors; of a base model, which has one, the rows of the ids that are new."""
    from luthier.core.training.embedding import start_embedding, start_grown
    from luthier.models.vectors import load_vectors
    from luthier.tokenizers.formats import load_tokenizer

    vectors, own = load_vectors(folder), base is None
    known = 0 if base is None else load_tokenizer(base).vocab_size
    count = 0
    if vectors.spelling == "byte-level":
        count = start_embedding(model.embed_tokens.weight, vectors) if own else start_grown(model, vectors, known)
    if not count:
        what = "a token of these shards" if own else f"an id that {base} has not: its embedding is learned already"
        raise InputError(
            f"{folder} holds no vector of {what}\n"
            "Train vectors on the shards: luthier train-vectors SHARDS --tokenizer TOKENIZER"
        )
    say(f"  embedding    {count:,} of {len(model.embed_tokens.weight) - known:,} tokens start from {folder}")


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
            folder=shards.folder,
            lines=shards.documents,
        )

    own, general = np.flatnonzero(shards.documents >= 0), np.flatnonzero(shards.documents < 0)
    if not len(own):
        return over(general, 0), None
    return over(own, 0), over(general, 1) if len(general) else None


def mixture(shards: list[Shards], config: PretrainConfig) -> Mixture:
    """All kinds of text of a run with their shares: of each folder one's own, and general text."""
    from luthier.core.training.batches import Mixture

    opened = [sources(one, context=config.context, seed=config.seed, number=2 * i) for i, one in enumerate(shards)]
    totals = config.weights or [sum(w.total for w in both if w is not None) for both in opened]
    parts: list[tuple[Windows, float]] = []
    for (own, general), weight in zip(opened, totals, strict=True):
        share = config.general_share if general is not None else 0.0
        parts += [(own, weight * (1 - share))] + ([(general, weight * share)] if general is not None and share else [])
    return Mixture(parts)


def _steps(config: PretrainConfig, text: Mixture) -> int:
    if config.steps:
        return config.steps
    if config.tokens:
        return max(1, -(-config.tokens // (config.batch_size * config.context)))
    own, share = text.parts[0]
    return max(1, round(config.epochs * len(own) / share / config.batch_size))


def _validation(held_out: list[Shards], config: PretrainConfig) -> list[Batch]:
    """Held-out windows, the same at every measurement."""
    from luthier.core.training.batches import pack

    filled = [shards for shards in held_out if len(shards.tokens)]
    if not filled:
        say("  held out     no validation text: only the training loss is measured")
        return []
    windows = []
    for shards in filled:
        own, _ = sources(shards, context=config.context, seed=config.seed)
        most = max(1, config.validation_tokens // config.context // len(filled))
        windows += [own[i] for i in range(min(len(own), most))]
    return [pack(windows[i : i + 16], config.context, 0) for i in range(0, len(windows), 16)]


def threads_said() -> str:
    """How many threads train, in words."""
    import torch

    count = torch.get_num_threads()
    return f"{count} thread{'s' if count > 1 else ''}"


def save(model: Any, folder: Path | None, tokenizer: Path | Tokenizer | None, base: Path | None = None) -> None:
    """The model in Hugging Face's layout, with its tokenizer; what config.json says of single tokens as in `base`.
    No folder: another process writes."""
    if folder is None:
        return
    model = model.to("cpu")
    from luthier.core.data.conversations import chat_template, stop_ids
    from luthier.models.checkpoints import save_model
    from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

    if tokenizer is None:
        save_model(model, folder)
        say("  tokenizer    none given: the model's folder has none, and text cannot be put to it")
        return
    known = load_tokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
    known.chat_template = known.chat_template or chat_template(known)
    like = base or (tokenizer if isinstance(tokenizer, Path) else None)
    save_tokenizer(known, folder)
    save_model(model, folder, eos_token_id=stop_ids(known), **_tokens_of(like))


def _tokens_of(base: Path | None) -> dict[str, Any]:
    """The tokens that a base model's config.json names beside its end: how a text begins, what fills a row."""
    config = read_json(base / "config.json") if base and (base / "config.json").is_file() else {}
    return {name: config.get(name) for name in ("bos_token_id", "pad_token_id")}


def summary_of(out: Path, model: Any, done: Fitted) -> PretrainSummary:
    parameters = sum(p.numel() for p in model.parameters())
    return PretrainSummary(Path(out), parameters, done.steps, done.read, done.loss, done.validation_loss, done.seconds)
