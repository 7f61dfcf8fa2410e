"""Pretraining: a model learns a language by guessing the next token of running text.

    shards ──windows──▶ batch [B, T] ──Transformer──▶ Σ −log p(next token) / count ──▶ one step of fit (loop.py)

The settings are in pretrain_config.py, what is read at which step in pretrain_batches.py, what fine-tuning does alike
in runs.py.

How long: `steps`, or `tokens`, or by default `epochs`, the passes over one's own text. None of them asks the clock,
so the same settings give the same model on a fast machine and on a slow one.

From a base model the run goes on with that model's weights and shape. If the shards were made with a tokenizer that
extends the base's (`luthier train-tokenizer --extend`), its embedding grows first (models/resize.py).

Legend: B rows of a batch, T tokens a row (`context`), V vocabulary, C hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import Artifact
from luthier.core.console import counted, duration, say
from luthier.core.data.encode import tokenizer_file, tokenizer_hash
from luthier.core.errors import ConfigError, InputError, TrainingError
from luthier.core.training.curves import check_curves
from luthier.core.training.out_of_memory import memory_told
from luthier.core.training.plan import quiet_unless, say_plan
from luthier.core.training.pretrain_batches import held_out_batches, mixture, steps_of
from luthier.core.training.pretrain_config import VALIDATION_TOKENS, PretrainConfig, model_config, rate_of, shape_file
from luthier.core.training.runs import check_context, open_base, sampler, save, settings, write_run

if TYPE_CHECKING:
    from luthier.core.data.shards import Shards
    from luthier.core.training.batches import Batch, Mixture
    from luthier.core.training.loop import Fitted
    from luthier.core.training.parallel import Workers
    from luthier.models.config import ModelConfig
    from luthier.models.transformer import Transformer

__all__ = ["Prepared", "PretrainConfig", "PretrainSummary", "prepare", "pretrain"]


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
            f"{self.parameters:,} parameters, {counted(self.steps, 'step')} in {duration(self.seconds)}{speed}\n"
            f"loss {self.loss:.3f} nats a token, mean of the last tenth of the steps{held_out}"
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
    saved beside the weights (left out: the base's, or the copy in the shards). `plan` only says what would be done and
    whether it fits. Raises ArtifactError or InputError if the inputs do not fit together, TrainingError if there is
    nothing to train on.
    """
    from luthier.core.training.checkpoint import PATTERN
    from luthier.core.training.execution import use_machine
    from luthier.core.training.parallel import start_workers
    from luthier.models.checkpoints import hub_folder

    config = config or PretrainConfig()
    check_curves(config)
    folders = [shards] if isinstance(shards, str | Path) else list(shards)
    base = None if base is None else hub_folder(base)
    named_tokenizer = _path(tokenizer or base)
    given = Given(tuple(Path(f) for f in folders), base, _path(vectors), named_tokenizer or _own(folders))
    given.check(config)
    # Left out, it is the work that it was when the number was the default
    tokens = VALIDATION_TOKENS if config.validation_tokens is None else config.validation_tokens
    named = {**settings(config), "validation_tokens": tokens}
    if shape := shape_file(config.model):  # known by what it holds, found from wherever the run is replayed
        named["model"], config = shape.name, replace(config, model=str(shape.resolve()))
    if plan:  # whatever there is in `out`
        given.check_held_out(config)
        with quiet_unless(start_workers(config.parallel).main), memory_told(config):
            use_machine(config.threads)
            say_plan(prepare(config, given, plan=True), config)
        return PretrainSummary(Path(out))
    work = Artifact(
        out,
        "pretrain",
        named,
        # the shards' own tokenizer is known by them
        {**given.inputs(), "tokenizer": named_tokenizer, "shape": shape},
        overwrite=overwrite,
        caches=("tensorboard",),
        progress=PATTERN,
    )
    if work.done:
        return PretrainSummary(Path(out), changed=False)
    given.check_held_out(config)
    workers = start_workers(config.parallel)
    with quiet_unless(workers.main), memory_told(config):
        if not workers.main:  # its folder is made by the main process, which also writes it
            workers.wait()
            use_machine(config.threads)
            return _run(work, config, given, workers)
        with work:
            write_run(work.folder, "pretrain", config, {**asdict(given), "shape": shape})
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
        from luthier.tokenizers.formats import TokenizerFileError, load_tokenizer, tokenizer_files

        if config.weights and len(config.weights) != len(self.shards):
            raise ConfigError(f"{len(config.weights)} weights for {len(self.shards)} folders of shards: one each")
        if self.base is not None and config.mup_base_width:
            raise ConfigError("mup_base_width is for new weights: with --base, give a learning rate alone")
        if self.base is None and config.scale_positions:
            raise ConfigError("scale_positions is for a base model: without --base, a new one is trained at --context")
        if self.base is not None and not self.base.is_dir():
            raise InputError(f"{self.base}: no such folder\nGive a model's folder, or hub:owner/name.")
        opened = [open_shards(folder, "train") for folder in self.shards]
        for one in opened:
            if not len(one.tokens):
                raise TrainingError(
                    f"{one.folder} holds no text to train on\nEncode a corpus with at least one stable document."
                )
            if one.tokenizer != opened[0].tokenizer:
                raise InputError(
                    f"{one.folder} was encoded with another tokenizer than {opened[0].folder}\n"
                    "Encode both with one: luthier encode … --tokenizer TOKENIZER --overwrite"
                )
            if self.tokenizer is not None:
                _same_tokenizer(one, self.tokenizer)
        if self.tokenizer is not None:
            known = load_tokenizer(self.tokenizer)
            try:
                tokenizer_files(known)
            except TokenizerFileError as error:
                raise InputError(
                    f"{self.tokenizer} cannot be kept beside a model's weights: {str(error).splitlines()[0]}\n"
                    "Take a byte-level one (luthier train-tokenizer --model bpe), and encode with it."
                ) from error

    def check_held_out(self, config: PretrainConfig) -> None:
        """TrainingError if measuring was asked for and there is nothing to measure on."""
        from luthier.core.data.shards import open_shards

        asked = config.validation_tokens or config.keep == "best"
        if asked and not held_out_batches([open_shards(folder, "validation") for folder in self.shards], config):
            raise TrainingError(
                f"{', '.join(map(str, self.shards))}: no held-out text to measure on\n"
                "Hold some out (luthier collect or encode, --validation-fraction), or add a folder of shards that "
                "has some.\nOr train without measuring: leave out --keep best and --validation-tokens, or give "
                "--validation-tokens 0 (in a project: [pretrain] keep, validation_tokens)"
            )

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
        from luthier.core.training.parallel import whole_model
        from luthier.models.transformer import Transformer

        return whole_model(self.model, lambda: Transformer(self.shape))


def prepare(config: PretrainConfig, given: Given, workers: Workers | None = None, *, plan: bool = False) -> Prepared:
    """Model, optimizers, batches and schedule of a run, as functions of its settings and inputs alone.

    For a `plan` a new model has its shape only, on the device "meta": a machine too small for it can be told so."""
    import torch

    from luthier.core.data.shards import open_shards
    from luthier.core.training.batches import pack
    from luthier.core.training.optimizers import make_optimizers
    from luthier.core.training.parallel import Workers, shard
    from luthier.core.training.schedules import learning_rate_factor
    from luthier.models.config import flops_per_token
    from luthier.models.resize import extend_context
    from luthier.tokenizers.formats import load_tokenizer

    workers = workers or Workers()
    train = [open_shards(folder, "train") for folder in given.shards]
    if given.base is not None:
        model = open_base(given.base, given.tokenizer)
        if config.scale_positions and config.context > model.config.context:
            model.config = extend_context(model.config, config.context, config.scale_positions)
        check_context(config, model.config, given.base, "or stretch its positions: --scale-positions yarn")
    else:
        model = _new_model(config, train[0].vocab_size, plan)
    shape = model.config
    if given.vectors is not None:
        _start_from(model, given.vectors, given)
    held_out = held_out_batches([open_shards(folder, "validation") for folder in given.shards], config)
    text = mixture(train, config)
    steps = steps_of(config, text)

    def batch_at(step: int) -> Batch:
        places = range(step * config.batch_size, (step + 1) * config.batch_size)
        return pack([text[place] for place in places], config.context, 0)

    if torch.cuda.is_available() and not model.embed_tokens.weight.is_meta:
        model.to("cuda")
    if config.precision == "bf16-pure":
        model.to(torch.bfloat16)
    shard(model, workers, config.optimizer)
    tokenizer = None if given.tokenizer is None else load_tokenizer(given.tokenizer)
    arguments = {
        "model": model,
        "optimizers": make_optimizers(
            model,
            name=config.optimizer,
            lr=rate_of(config, shape),
            weight_decay=config.weight_decay,
            seed=config.seed,
            mup_base_width=config.mup_base_width,
        ),
        "batch_at": batch_at,
        "steps": steps,
        "factor": lambda s: learning_rate_factor(s, steps, schedule=config.schedule, warmup=config.warmup),
        "validation": held_out,
        "evaluate_every": config.evaluate_every or max(1, -(-steps // 8)),
        "micro_batch": config.micro_batch,
        "max_grad_norm": config.max_grad_norm,
        "title": "Pretraining",
        "flops": 3 * flops_per_token(shape, config.context),
        "sample": sampler(model, tokenizer, config.sample),
    }
    return Prepared(model, arguments, config.context, shape, text, tokenizer)


def _new_model(config: PretrainConfig, vocab_size: int, plan: bool) -> Transformer:
    """A model with new weights (for a `plan`, with none), by the usual initializer or by µP, and how they are drawn on
    stderr."""
    import torch

    from luthier.models.config import initializer_said
    from luthier.models.mup import init_by_width, mup_said
    from luthier.models.transformer import Transformer

    shape, base, generator = model_config(config, vocab_size), config.mup_base_width, torch.Generator()
    generator.manual_seed(config.seed)
    say(f"  new weights  {mup_said(shape, base) if base else initializer_said(shape)}")
    if not base and not plan:
        return Transformer(shape, generator)
    model = Transformer(shape, device="meta")
    if not plan:
        init_by_width(model.to_empty(device="cpu"), base, generator)
    return model


def _own(shards: list[Any]) -> Path | None:
    """The folder of shards that holds a copy of the tokenizer which made them, if it does."""
    return next((Path(folder) for folder in shards if tokenizer_file(Path(folder)).is_file()), None)


def _same_tokenizer(shards: Shards, folder: Path) -> None:
    if shards.tokenizer and tokenizer_hash(folder) != shards.tokenizer:
        raise InputError(
            f"{shards.folder} was encoded with another tokenizer than {folder}\n"
            f"Encode again: luthier encode … --tokenizer {folder} --overwrite"
        )


def _path(path: Path | None) -> Path | None:
    return None if path is None else Path(path)


def _start_from(model: Any, folder: Path, given: Given) -> None:
    """Start the embedding from vectors; of a base model, which has one, the rows of the ids that are new."""
    from luthier.core.training.embedding import start_embedding, start_grown
    from luthier.core.training.rows import check_tokens, spelled_tokens
    from luthier.models.vectors import load_vectors
    from luthier.tokenizers.formats import load_tokenizer

    vectors, base = load_vectors(folder), given.base
    own, tokenizer = base is None, given.tokenizer or given.shards[0]
    known = 0 if base is None else load_tokenizer(base).vocab_size
    count = 0
    if vectors.spelling == "byte-level":
        if tokenizer_file(tokenizer).is_file():
            check_tokens(vectors, folder / "vocabulary.jsonl", spelled_tokens(tokenizer))
        count = start_embedding(model.embed_tokens.weight, vectors) if own else start_grown(model, vectors, known)
    if not count:
        what = "a token of these shards" if own else f"an id that {base} has not: its embedding is learned already"
        raise InputError(
            f"{folder} holds no vector of {what}\n"
            "Train vectors on the shards: luthier train-vectors SHARDS --tokenizer TOKENIZER"
        )
    say(f"  embedding    {count:,} of {len(model.embed_tokens.weight) - known:,} tokens start from {folder}")


def summary_of(out: Path, model: Any, done: Fitted) -> PretrainSummary:
    parameters = sum(p.numel() for p in model.parameters())
    return PretrainSummary(Path(out), parameters, done.steps, done.read, done.loss, done.validation_loss, done.seconds)
