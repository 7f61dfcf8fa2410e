"""A project: one folder with documents and a luthier.toml, and `build/` with everything made from them.

`run` calls the stages in order. Each stage compares its settings and the hashes of its inputs with the manifest of what
is already there (core/artifacts.py) and does nothing where they agree, so a second run redoes only what changed, and an
interrupted run goes on where it stopped.

    documents ─▶ build/corpus ─▶ build/tokenizer ─▶ build/shards ─▶ build/vectors ─▶ build/model ─▶ build/tuned
                      └────────▶ build/index                                              build/evaluation ◀─┘

luthier.toml holds one table a stage; its keys are the fields of that stage's config, the same as the flags of its verb.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

from luthier.core.artifacts import atomic_open
from luthier.core.console import duration, say
from luthier.core.errors import ConfigError, InputError, LuthierError, did_you_mean

__all__ = ["Project", "ProjectConfig", "Step", "load_project", "new_project", "run_project", "steps", "watch_project"]

SETTINGS = "luthier.toml"

# Table in luthier.toml → where its config stands. Imported only when a project is read.
SECTIONS = {
    "project": "luthier.core.project:ProjectConfig",
    "collect": "luthier.core.data.collect:CollectConfig",
    "questions": "luthier.core.data.questions:QuestionsConfig",
    "tokenizer": "luthier.core.training.tokenizer:TokenizerConfig",
    "encode": "luthier.core.data.encode:EncodeConfig",
    "vectors": "luthier.core.training.vectors:VectorsConfig",
    "pretrain": "luthier.core.training.pretrain_config:PretrainConfig",
    "index": "luthier.core.assistant.index:IndexConfig",
    "finetune": "luthier.core.training.finetune:FinetuneConfig",
    "evaluate": "luthier.core.evaluation.evaluate:EvaluateConfig",
    "assistant": "luthier.core.assistant.assistant:AssistantConfig",
}

Verb = Literal[
    "collect", "questions", "train-tokenizer", "encode", "train-vectors", "pretrain", "finetune", "index", "evaluate"
]


@dataclass(frozen=True)
class ProjectConfig:
    """The table [project] of luthier.toml. Paths are relative to the project folder."""

    name: str = ""
    """What the project is called; shown in the chat page."""
    documents: tuple[str, ...] = ("documents",)
    """Files and folders to collect."""
    general: Literal["none", "python"] = "none"
    """General text beside the corpus for tokenizer and pretraining: `python` is the documentation inside Python's own
    standard library, there on every machine."""
    stages: tuple[Verb, ...] = ()
    """Stages that are run, in their usual order; none named: all. What a stage that is not named would make is not
    used, even where an earlier run made it: the others are then different work and are done anew."""
    base: str = ""
    """A Hugging Face model folder to fine-tune instead of pretraining a model; empty: pretrain."""
    extend: bool = False
    """With `base`: continue its tokenizer on the documents, grow the model and pretrain it on them before tuning."""
    vectors: tuple[Literal["word2vec", "glove"], ...] = ("word2vec",)
    """Methods to train vectors with; the first one starts the model's embedding and serves the index."""
    pairs: tuple[str, ...] = ()
    """Your own question-and-answer pairs, JSON lines with at least question and answer."""
    conversations: tuple[str, ...] = ()
    """What is tuned on instead of the corpus' questions: conversations, or preferences where [finetune] has
    objective = "dpo"."""
    evaluation: tuple[str, ...] = ()
    """Your own evaluation questions, JSON lines with question, set, answer and facts."""

    def __post_init__(self) -> None:
        if self.extend and not self.base:
            raise ConfigError('extend = true continues the tokenizer of a base: name its folder, base = "…"')

    def runs(self, *verbs: Verb) -> bool:
        """Whether all these stages are run."""
        return not self.stages or set(verbs) <= set(self.stages)


@dataclass(frozen=True)
class Project:
    """A project folder with its settings read: `settings[table]` is the config of that stage."""

    folder: Path
    settings: Mapping[str, Any]

    @property
    def config(self) -> ProjectConfig:
        return self.settings["project"]

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def base(self) -> Path | None:
        """The folder of the base model, if there is one."""
        return self.path(self.config.base) if self.config.base else None

    def built(self, name: str) -> Path:
        """`build/NAME`, or the base model's folder where it stands for `model` and `tokenizer`."""
        if self.base and not self.config.extend and name in ("model", "tokenizer"):
            return self.base
        return self.folder / "build" / name


# ---------------------------------------------------------------- settings


def load_project(folder: Path) -> Project:
    """Read luthier.toml. Raises ConfigError naming the file, the table, the key and the nearest right one."""
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise InputError(f"{path} does not exist\nStart a project with `luthier new NAME`, or name its folder.")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    for name, table in tables.items():
        if name not in SECTIONS:
            raise ConfigError(f"{path}: no table [{name}]{did_you_mean(name, SECTIONS)}\nKnown: {', '.join(SECTIONS)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: '{name}' must be a table: write [{name}] and its keys below")
    settings = {}
    for name, address in SECTIONS.items():
        module, _, attribute = address.partition(":")
        cls = getattr(import_module(module), attribute)
        table = _from_here(path.parent, tables.get(name, {})) if name == "pretrain" else tables.get(name, {})
        settings[name] = from_table(cls, table, f"{path}: [{name}]")
    return Project(Path(folder), settings)


def _from_here(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """[pretrain] with its `model` found from the project's folder, where that is the folder of a config.json."""
    from luthier.core.training.pretrain_config import shape_file
    from luthier.models.config import presets

    model = table.get("model")
    if not isinstance(model, str) or model in presets or shape_file(str(folder / model)) is None:
        return table
    return {**table, "model": str(folder / model)}


def from_table(cls: type, table: Mapping[str, Any], where: str) -> Any:
    """Build the dataclass `cls` from a TOML table, refusing unknown keys and values of a wrong type."""
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"{where} has no key '{key}'{did_you_mean(name, known)}\nKnown keys: {', '.join(known)}")
        fitting = tuple(value) if isinstance(value, list) else value
        if not _fits(fitting, hints[name]):
            raise ConfigError(f"{where} {key} = {value!r}: expected {_wanted(hints[name])}{_near(value, hints[name])}")
        values[name] = float(str(value)) if hints[name] is float else fitting
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from error


def _wanted(hint: Any) -> str:
    """An annotated type as a person would say it of a value in a TOML file."""
    arguments = [a for a in typing.get_args(hint) if a not in (Ellipsis, types.NoneType)]
    if typing.get_origin(hint) is Literal:
        return ("one of " if len(arguments) > 1 else "") + ", ".join(map(repr, arguments))
    if typing.get_origin(hint) is tuple:
        return f"a list in [ ], each item {_wanted(arguments[0])}"
    names = {int: "a whole number", float: "a number", str: "a text in quotes", Path: "a path in quotes"}
    names |= {bool: "true or false"}
    return " or ".join(names.get(h, str(h)) for h in arguments or [hint])


def _near(value: Any, hint: Any) -> str:
    """The nearest of the words that a setting takes, for the first one given that is none of them."""
    known = typing.get_args(hint)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return next((near for item in value if (near := _near(item, known[0]))), "")
    wrong = typing.get_origin(hint) is Literal and isinstance(value, str) and value not in known
    return did_you_mean(value, known) if wrong else ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value is of the annotated type (int counts as float; bool is no int)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is tuple:
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        items = [arguments[0]] * len(value) if repeated and isinstance(value, tuple) else arguments
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_fits, value, items))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is Path:
        return isinstance(value, str)
    return isinstance(value, hint) if isinstance(hint, type) else True


TEMPLATE = """\
# Settings of the project; `luthier run` reads them. One table a stage; the keys are the flags that
# `luthier VERB --help` explains. What is left out has its default.

[project]
name = {name}
documents = [{documents}]   # files and folders to collect
general = "{general}"            # "python" adds real English to pretraining: the documentation inside Python
{base}# pairs = ["pairs.jsonl"]            # your own pairs: {{"question": …, "answer": …}} a line
# evaluation = ["evaluation.jsonl"]  # your own tests: {{"question": …, "set": "paraphrase", "facts": […]}} a line

[collect]
volatile = []                # path patterns of what changes: "news/*", "prices/*"; looked up, never trained
validation_fraction = 0.1    # share of the text held out of training to measure on

[pretrain]

[finetune]
"""


def new_project(folder: Path, *, documents: tuple[Path, ...] = (), base: Path | None = None) -> Path:
    """Make a project folder: luthier.toml, documents/ (unless `documents` point elsewhere), .gitignore.

    Returns the folder. Raises InputError if it holds a project already, and what `check_base` raises.
    """
    folder = Path(folder)
    if (folder / SETTINGS).exists():
        raise InputError(f"{folder / SETTINGS} exists already; change it, or choose another name")
    if base is not None:
        check_base(base)
    missing = [d for d in documents if not d.exists()]
    if missing:
        raise InputError(f"{missing[0]}: no such file or folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not documents:
        (folder / "documents").mkdir(exist_ok=True)
    quoted = ", ".join(_toml(str(d.resolve())) for d in documents) or '"documents"'
    base_line = f"base = {_toml(str(base.resolve()))}   # fine-tuned instead of pretraining a model\n" if base else ""
    general = "none" if base else "python"
    text = TEMPLATE.format(name=_toml(folder.name), documents=quoted, base=base_line, general=general)
    with atomic_open(folder / SETTINGS) as file:
        file.write(text)
    with atomic_open(folder / ".gitignore") as file:
        file.write("/build/\n")
    return folder


def check_base(folder: Path) -> None:
    """Refuse a base model that could not be tuned, before an hour goes into reading documents.

    Raises InputError for no model folder, CheckpointError for another architecture, TokenizerFileError for a tokenizer
    that is missing or not byte-level BPE.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a model folder: it has no config.json")
    from luthier.models.checkpoints import load_config
    from luthier.tokenizers.formats import load_tokenizer

    load_config(folder)
    load_tokenizer(folder)


def _toml(text: str) -> str:
    """A TOML basic string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---------------------------------------------------------------- the stages in order


@dataclass(frozen=True)
class Step:
    """One stage of a run: the verb, the command a user would type, and the call that does it."""

    verb: str
    command: str
    call: Callable[[], Any]


def flags(config: Any) -> str:
    """The flags that differ from their defaults, as a user would type them."""
    parts = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value == default:
            continue
        flag = "--" + f.name.replace("_", "-")
        if isinstance(value, bool):
            parts.append(flag if value else "--no-" + f.name.replace("_", "-"))
        elif isinstance(value, tuple):
            parts += [flag, *(shlex.quote(str(v)) for v in value)]
        else:
            parts += [flag, shlex.quote(str(value))]
    return " ".join(parts)


def steps(project: Project) -> Iterator[Step]:
    """The stages of a project in order, those that are run."""
    return (step for step in _all_steps(project) if project.config.runs(cast(Verb, step.verb)))


def _all_steps(project: Project) -> Iterator[Step]:
    """All stages in order. Modules are imported when their step is reached."""
    config, settings, built = project.config, project.settings, project.built
    shards = built("shards") if config.runs("encode") else None
    corpus = built("corpus") if config.runs("collect") else None
    index = built("index") if config.runs("index") else None
    own_pairs = [project.path(p) for p in config.pairs]
    evaluation = [project.path(p) for p in config.evaluation]
    sources = [project.path(d) for d in config.documents]

    def step(
        verb: str, arguments: list[Any], stage_config: Any, call: Callable[[], Any], out: Path | None = None
    ) -> Step:
        words = ["luthier", verb, *(_shown(a, project.folder) for a in arguments)]
        words += ["--out", _shown(out, project.folder)] if out else []
        return Step(verb, " ".join([*words, flags(stage_config)]).strip(), call)

    def with_general(stage_config: Any) -> Any:
        return dataclasses.replace(stage_config, general=config.general)

    from luthier.core.data.collect import collect

    yield step(
        "collect",
        sources,
        settings["collect"],
        lambda: collect(sources, built("corpus"), settings["collect"]),
        built("corpus"),
    )
    from luthier.core.data.questions import make_questions

    own = ["--own", *own_pairs] if own_pairs else []
    yield step(
        "questions",
        [built("corpus"), *own],
        settings["questions"],
        lambda: make_questions(built("corpus"), settings["questions"], own=own_pairs),
    )
    from luthier.core.training.tokenizer import train_tokenizer

    if not config.base or config.extend:
        tokenizer_config = with_general(settings["tokenizer"])
        if config.extend:  # on one's own words: what is general, the base's tokenizer spells already
            tokenizer_config = settings["tokenizer"]
        yield step(
            "train-tokenizer",
            [built("corpus"), *(["--extend", project.base] if config.extend else [])],
            tokenizer_config,
            lambda: train_tokenizer(
                [built("corpus")], built("tokenizer"), tokenizer_config, extend=project.base, overwrite=True
            ),
            built("tokenizer"),
        )
    from luthier.core.data.encode import encode

    encode_config = with_general(settings["encode"])
    yield step(
        "encode",
        [built("corpus"), "--tokenizer", built("tokenizer")],
        encode_config,
        lambda: encode([built("corpus")], built("tokenizer"), built("shards"), encode_config, overwrite=True),
        built("shards"),
    )
    from luthier.core.training.vectors import train_vectors

    for method in config.vectors:
        vectors_config = dataclasses.replace(settings["vectors"], method=method)
        yield step(
            "train-vectors",
            [built("shards"), "--tokenizer", built("tokenizer")],
            vectors_config,
            lambda c=vectors_config: train_vectors(
                [built("shards")], built(f"vectors-{c.method}"), c, tokenizer=built("tokenizer"), overwrite=True
            ),
            built(f"vectors-{method}"),
        )
    vectors = built(f"vectors-{config.vectors[0]}") if config.vectors and config.runs("train-vectors") else None
    if not config.base or config.extend:
        from luthier.core.training.pretrain import pretrain

        yield step(
            "pretrain",
            [
                *[built("shards"), "--tokenizer", built("tokenizer")],
                *(["--base", project.base] if project.base else []),
                *(["--embedding", vectors] if vectors else []),
            ],
            settings["pretrain"],
            lambda: pretrain(
                built("shards"),
                built("model"),
                settings["pretrain"],
                base=project.base,
                vectors=vectors,
                tokenizer=built("tokenizer"),
                overwrite=True,
            ),
            built("model"),
        )
    from luthier.core.training.finetune import finetune

    data = [project.path(c) for c in config.conversations] or [built("corpus") / "questions.jsonl"]
    yield step(
        "finetune",
        [built("model"), *data, *(["--replay", shards] if shards else [])],
        settings["finetune"],
        lambda: finetune(
            built("model"),
            data,
            built("tuned"),
            settings["finetune"],
            replay=shards,
            overwrite=True,
        ),
        built("tuned"),
    )
    from luthier.core.assistant.index import build_index

    with_vectors = ["--vectors", vectors, "--tokenizer", built("tokenizer")] if vectors else []
    yield step(
        "index",
        [built("corpus"), *with_vectors],
        settings["index"],
        lambda: build_index(
            built("corpus"),
            built("index"),
            settings["index"],
            vectors=vectors,
            tokenizer=built("tokenizer"),
            overwrite=True,
        ),
        built("index"),
    )
    from luthier.core.evaluation.evaluate import evaluate

    given = {"--corpus": [corpus] if corpus else [], "--index": [index] if index else [], "--questions": evaluation}
    models = [built("tuned")] if config.runs("finetune") else []
    models = (
        [project.base, built("model")] if project.base and config.extend and not models else [built("model"), *models]
    )
    maps = [built(f"vectors-{m}") for m in config.vectors] if config.runs("train-vectors") else []
    yield step(
        "evaluate",
        [*models, *(word for flag, paths in given.items() if paths for word in (flag, *paths))],
        settings["evaluate"],
        lambda: evaluate(
            models,
            built("evaluation"),
            settings["evaluate"],
            corpus=corpus,
            index=index,
            questions=evaluation,
            vectors=maps,
            assistant=settings["assistant"],
            overwrite=True,
        ),
        built("evaluation"),
    )


def _shown(value: Any, folder: Path) -> str:
    """An argument as a user in the project folder would type it."""
    if isinstance(value, Path) and value.is_relative_to(folder):
        value = value.relative_to(folder)
    return shlex.quote(str(value))


@dataclass
class Run:
    """What a run did: seconds by step, in order, and what its evaluation measured, if it measured anew."""

    seconds: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)


def run_project(folder: Path) -> Run:
    """Bring every stage of the project up to date, echoing each as the command a user would type.

    Raises the error of the stage that failed; what earlier stages made stays, and the next run goes on from there.
    """
    project, done = load_project(folder), Run()
    if project.base:
        check_base(project.base)
    for step in steps(project):
        say(f"\n$ {step.command}")
        start = time.perf_counter()
        result = step.call()
        if step.verb == "evaluate" and result.changed:
            done.measured = result.results
        done.seconds[step.verb] = done.seconds.get(step.verb, 0.0) + time.perf_counter() - start
        if result is not None and not isinstance(result, Path) and type(result).__str__ is not object.__str__:
            say(str(result))
        say(f"  {duration(time.perf_counter() - start)}")
    return done


def watch_project(
    folder: Path, *, after: Callable[[Run], None] | None = None, every: float = 2.0, rounds: int | None = None
) -> None:
    """Run, then run again whenever a document, the settings or the pairs change; an error is shown and waited out.

    `after` is told each run that came to its end. `every` seconds between looks; a change must have rested for one
    look, so that half-copied files are not read. `rounds` ends after that many runs (for tests); None goes on until
    Ctrl-C.
    """
    seen: dict[str, tuple[int, int]] | None = None
    while rounds is None or rounds > 0:
        now = _state(folder)
        if now == seen:
            time.sleep(every)
            continue
        if seen is not None:
            time.sleep(every)
            if _state(folder) != now:
                continue
        try:
            done = run_project(folder)
            if after is not None:
                after(done)
        except Exception as error:
            if not isinstance(error, LuthierError) and not type(error).__module__.startswith("luthier."):
                raise
            say(f"luthier: {error}")
        seen, rounds = now, None if rounds is None else rounds - 1
        say("watching for changes; Ctrl-C ends")


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file that a run reads."""
    settings = folder / SETTINGS
    try:
        project = load_project(folder)
    except ConfigError:  # shown by the run itself; here only the file that must change matters
        return {str(settings): (settings.stat().st_size, settings.stat().st_mtime_ns)}
    roots = [settings, project.built("corpus") / "questions.jsonl"]
    config = project.config
    named = (*config.documents, *config.pairs, *config.conversations, *config.evaluation)
    roots += [project.path(p) for p in named]
    state = {}
    for file in (f for root in roots for f in ([root] if root.is_file() else root.rglob("*"))):
        with contextlib.suppress(OSError):  # gone between listing and looking
            if file.is_file():
                state[str(file)] = (file.stat().st_size, file.stat().st_mtime_ns)
    return state
