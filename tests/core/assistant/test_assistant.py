"""Which path answers, by thresholds; batches equal single questions; a stream equals its answer. The model is a real
one of random weights, taught a few answers by a handful of steps."""

from __future__ import annotations

import math
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from luthier.core.assistant.assistant import (
    Answer,
    Assistant,
    AssistantConfig,
    Sampling,
    confidence,
    last_question,
    not_found,
    recent,
)
from luthier.core.assistant.index import build_index
from luthier.core.assistant.opening import open_assistant
from luthier.core.data.questions import Question
from luthier.core.errors import ArtifactError, ConfigError, InputError

from .conftest import TAUGHT, make_corpus

TRAINED, LEARNT = next(iter(TAUGHT.items()))


def test_the_model_answers_what_it_learnt_and_is_sure(model: Path) -> None:
    [answer] = Assistant(model).answers([TRAINED])
    assert answer.text == LEARNT
    assert (answer.path, answer.source, answer.finish) == ("model", None, "stop")
    assert 0.5 < answer.score <= 1


def test_batches_equal_single_questions(model: Path) -> None:
    questions = [*TAUGHT, "A", "What about a much longer question that nobody was ever taught to answer at all?"]
    config = AssistantConfig(min_confidence=0, batch_size=2, max_new_tokens=12)
    together = Assistant(model, None, config).answers(questions)
    alone = [Assistant(model, None, config).answers([q])[0] for q in questions]
    assert [a.text for a in together] == [a.text for a in alone]
    assert np.allclose([a.score for a in together], [a.score for a in alone], atol=1e-4)


def test_both_quotes_first_then_asks_the_model_then_gives_up(model: Path, index: Path) -> None:
    unsure = AssistantConfig(min_confidence=0.9999)
    assistant = Assistant(model, index)
    quoted, remembered = assistant.answers(["What humidity is right?", TRAINED], mode="both")
    assert quoted.path == "retrieval" and quoted.source is not None
    assert quoted.text == quoted.source.sentence == "Keep the humidity between 45 and 55 percent."
    assert (quoted.source.path, quoted.source.page, str(quoted.source)) == ("care.md", 0, "care.md")
    assert (remembered.path, remembered.text) == ("model", LEARNT)
    german, english = Assistant(model, index, unsure).answers(["Wer hat die Harfe?", "Zzz qqq?"], mode="both")
    assert (german.path, german.text) == ("none", "In den Dokumenten nicht gefunden.")
    assert (english.path, english.text) == ("none", "Not found in the documents.")


def test_retrieved_needs_no_model_and_its_threshold_decides(index: Path) -> None:
    question = "Who founded the workshop?"
    assert Assistant(None, index).answers([question])[0].path == "retrieval"
    strict = Assistant(None, index, AssistantConfig(min_score=1.0)).answers(["What humidity is right for harps?"])
    assert strict[0] == Answer("Not found in the documents.", "none")


@pytest.mark.parametrize("live", [True, False])
def test_a_stream_is_the_answer_in_pieces(model: Path, index: Path, live: bool) -> None:
    assistant = Assistant(model, index, AssistantConfig(min_confidence=0.0 if live else 0.5, max_new_tokens=20))
    for question in (TRAINED, "What humidity is right?", "Straße ß ö?"):
        *pieces, answer = assistant.stream([{"role": "user", "content": question}])
        assert isinstance(answer, Answer)
        assert "".join(map(str, pieces)).strip() == answer.text
    [whole] = Assistant(model, None, AssistantConfig(min_confidence=0, max_new_tokens=20)).answers(["Straße ß ö?"])
    *_, streamed = assistant.stream([{"role": "user", "content": "Straße ß ö?"}], "tuned")
    if live:
        assert isinstance(streamed, Answer) and streamed.text == whole.text


def test_an_answer_that_is_cut_says_so_and_a_long_question_fits(model: Path) -> None:
    assistant = Assistant(model, None, AssistantConfig(min_confidence=0))
    cut = assistant.reply([{"role": "user", "content": TRAINED}], sampling=Sampling(max_new_tokens=2))
    assert cut.finish == "length" and LEARNT.startswith(cut.text)
    assert assistant.answers(["word " * 5000])[0].path in ("model", "none")


def test_sampling_is_reproducible(model: Path) -> None:
    assistant = Assistant(model, None, AssistantConfig(min_confidence=0, max_new_tokens=16))
    ask = [{"role": "user", "content": "Tell me something."}]
    texts = [assistant.reply(ask, sampling=Sampling(1.5, 0.95, None, seed)).text for seed in (1, 1, 2, 3)]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def test_threads_get_what_one_gets(model: Path, index: Path) -> None:
    assistant = Assistant(model, index)
    questions = [*TAUGHT, "What humidity is right?"] * 3
    got: dict[int, str] = {}

    def ask(n: int) -> None:
        got[n] = assistant.answers([questions[n]])[0].text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[n] for n in range(len(questions))] == [a.text for a in Assistant(model, index).answers(questions)]


def test_a_new_index_in_its_place_is_seen(tmp_path: Path, index: Path) -> None:
    assistant = Assistant(None, index)
    assert assistant.answers(["Where is the celesta?"])[0].path == "none"
    fresh = make_corpus(tmp_path / "fresh", [Question("1", "Where is the celesta?", "The celesta is in the attic.")])
    build_index(fresh, index, overwrite=True)
    assert assistant.answers(["Where is the celesta?"])[0].text == "The celesta is in the attic."


def test_confidence_is_the_geometric_mean() -> None:
    assert confidence([math.log(0.5), math.log(0.125)]) == pytest.approx(0.25)
    assert confidence([]) == 0.0


def test_what_the_model_sees_of_a_conversation() -> None:
    talk = [{"role": r, "content": str(n)} for n, r in enumerate(["system", "user", "assistant", "user"])]
    assert [m["content"] for m in recent(talk, 1)] == ["3"]
    assert [m["content"] for m in recent(talk, 2)] == ["1", "2", "3"]
    assert [m["content"] for m in recent(talk, 9)] == ["1", "2", "3"]
    assert recent(talk, 0) == talk
    assert last_question(talk) == "3"
    with pytest.raises(InputError, match="no message of role 'user'"):
        last_question(talk[:1])


@pytest.mark.parametrize(
    ("question", "german"),
    [
        ("Was kostet das?", True),
        ("Wo ist die Werkstatt?", True),
        ("What is the price?", False),
        ("Öffnungszeiten?", True),
        ("Who is in?", False),
        ("harps", False),
    ],
)
def test_not_found_in_the_language_of_the_question(question: str, german: bool) -> None:
    assert not_found(question).text.startswith("In den" if german else "Not found")


def test_a_missing_part_is_named(model: Path, index: Path) -> None:
    with pytest.raises(InputError, match="needs a model folder"):
        Assistant(None)
    with pytest.raises(InputError, match="needs an index"):
        Assistant(model).answers(["x"], mode="both")
    with pytest.raises(InputError, match="needs a model"):
        Assistant(None, index).answers(["x"], mode="tuned")
    with pytest.raises(InputError, match="expected one of"):
        Assistant(None, index).answers(["x"], mode="magic")
    with pytest.raises(ConfigError, match="min_score"):
        AssistantConfig(min_score=2)
    with pytest.raises(ConfigError, match="turns"):
        AssistantConfig(turns=-1)


def test_projects_models_and_indexes_are_opened(tmp_path: Path, model: Path, index: Path) -> None:
    assert open_assistant(index).assistant.default_mode == "retrieved"
    assert open_assistant(model).assistant.default_mode == "tuned"
    assert open_assistant(model, index).assistant.default_mode == "both"
    project = tmp_path / "firm"
    project.mkdir()
    (project / "luthier.toml").write_text('[project]\nname = "The Firm"\n[assistant]\nmin_score = 0.7\n')
    with pytest.raises(InputError, match="luthier run"):
        open_assistant(project)
    shutil.copytree(index, project / "build" / "index")
    assert open_assistant(project).assistant.default_mode == "retrieved"
    shutil.copytree(model, project / "build" / "tuned")
    opened = open_assistant(project)
    assert (opened.name, opened.assistant.default_mode) == ("The Firm", "both")
    assert opened.assistant.config.min_score == 0.7
    with pytest.raises(InputError, match="no project"):
        open_assistant(tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_assistant(model, tmp_path / "nowhere")
