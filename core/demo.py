"""The demo: a sample company's documents become an assistant, every stage echoed as the command it stands for.

It copies the sample company (an instrument workshop, `examples/workshop`) into a project folder, runs the project, asks
the assistant a few questions, writes two notices in the house format and prints what was measured. Everything shown is
computed in this run. A second run finds everything up to date; change a document in between to see what depends on it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import read_json, run_facts
from luthier.core.compiling import compiling_ahead
from luthier.core.console import duration, say
from luthier.core.project import Project, Run, load_project, run_project

if TYPE_CHECKING:
    from luthier.core.assistant.assistant import Answer

__all__ = ["Demo", "demo"]

COPIED = ("documents", "luthier.toml", "pairs.jsonl", "evaluation.jsonl", "notice.txt", "notice.csv")
# One question of each kind, by set and language, the first of that kind in evaluation.jsonl.
KINDS = (("paraphrase", "en"), ("paraphrase", "de"), ("volatile", "en"), ("unanswerable", "en"))


@dataclass
class Demo:
    """What a demo did: the project folder, seconds by stage, the answers shown, the evaluation's results."""

    folder: Path
    run: Run
    answers: list[tuple[str, Answer]] = field(default_factory=list)
    notices: list[Path] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    machine: str = ""


def demo(out: Path = Path("luthier-demo"), sample: Path | None = None) -> Demo:
    """Run the whole process on the sample company in `out`; `sample` is another folder of the same shape."""
    started = time.perf_counter()
    copy_sample(out, sample)
    with compiling_ahead():
        done = Demo(out, run_project(out))
    project = load_project(out)
    done.answers = ask_a_few(project)
    done.notices = write_notices(project)
    done.results = read_json(project.built("evaluation") / "results.json")
    done.seconds = time.perf_counter() - started
    done.machine = run_facts(0)["machine"]
    return done


def copy_sample(out: Path, sample: Path | None = None) -> None:
    """Copy the sample company unless `out` is a project already: what a user changed there stays."""
    if (out / "luthier.toml").exists():
        say(f"{out} exists: its documents and settings are used as they are")
        return
    if sample is None:
        from luthier.examples import sample_company

        sample = sample_company()
    out.mkdir(parents=True, exist_ok=True)
    for name in sorted(COPIED, key=lambda n: n == "luthier.toml"):  # the settings last: they mark a whole copy
        source = sample / name
        if source.is_dir():
            shutil.copytree(source, out / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, out / name)
    say(f"copied the sample company into {out}: {sum(1 for p in (out / 'documents').rglob('*') if p.is_file())} files")


def ask_a_few(project: Project) -> list[tuple[str, Answer]]:
    """One trained question and one of each kind of held-out one, asked of the assistant."""
    from luthier.core.assistant.assistant import Assistant
    from luthier.core.data.questions import read_questions
    from luthier.core.evaluation.evaluate import read_evaluation

    own = [q for path in project.config.pairs for q in read_questions(project.path(path))]
    tests = [q for path in project.config.evaluation for q in read_evaluation(project.path(path))]
    questions = [q.question for q in own[:1]]
    for kind, language in KINDS:
        questions += [q.question for q in tests if (q.set, q.language) == (kind, language)][:1]
    assistant = Assistant(project.built("tuned"), project.built("index"), project.settings["assistant"])
    return list(zip(questions, assistant.answers(questions, mode="both"), strict=True))


def write_notices(project: Project) -> list[Path]:
    """Two notices in the house format, one a row of notice.csv."""
    from luthier.core.assistant.write import write

    out = project.folder / "notices"
    say(
        f"\n$ luthier write notice.txt --data notice.csv --model {project.built('tuned').relative_to(project.folder)} …"
    )
    write(
        project.path("notice.txt"),
        project.path("notice.csv"),
        out,
        model=project.built("tuned"),
        index=project.built("index"),
        config=project.settings["assistant"],
        overwrite=True,
    )
    return sorted(p for p in out.iterdir() if p.suffix in (".txt", ".md"))


def closing(done: Demo) -> Sequence[str]:
    """The last lines of the demo: time, machine, where things are, what to try next."""
    out = done.folder
    return (
        f"Done in {duration(done.seconds)} on {done.machine}: "
        + ", ".join(f"{verb} {duration(s)}" for verb, s in done.run.seconds.items()),
        "",
        f"Everything is in {out}/: documents/, luthier.toml, build/ (corpus, tokenizer, vectors, models, index).",
        f"The report with plots: {out / 'build' / 'evaluation' / 'report.html'}",
        "",
        "Try next:",
        f"  luthier chat {out}",
        f"  luthier show {out / 'build' / 'tokenizer'} --text 'The soundboard is spruce.'",
        f"  change a file in {out / 'documents'}, then: luthier run {out}",
    )
