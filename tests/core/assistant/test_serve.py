"""The server against OpenAI's own client and plain HTTP, over a real socket on this machine."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from luthier.core.assistant.assistant import Assistant, AssistantConfig
from luthier.core.assistant.index import build_index
from luthier.core.assistant.opening import Opened
from luthier.core.assistant.serve import PAGE, application, cut, serve
from luthier.core.errors import InputError

from .conftest import TAUGHT, make_corpus

TRAINED, LEARNT = next(iter(TAUGHT.items()))
HUMIDITY: list[Any] = [{"role": "user", "content": "What humidity is right?"}]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    build_index(make_corpus(folder / "corpus", []), folder / "index")
    opened = Opened(Assistant(model, folder / "index", AssistantConfig(max_new_tokens=20)), "Firm <&> Co")
    server = uvicorn.Server(uvicorn.Config(application(opened), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def name(client: openai.OpenAI, mode: str = "") -> str:
    return "firm-co" + (f":{mode}" if mode else "")


def facts_of(made: Any) -> dict[str, Any]:
    """The field beyond OpenAI's."""
    return made.luthier


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == [name(client, mode) for mode in ("", "tuned", "retrieved", "both")]
    assert client.models.retrieve(name(client)).owned_by == "luthier"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_a_completion_with_its_source(client: openai.OpenAI) -> None:
    made = client.chat.completions.create(model=name(client), messages=HUMIDITY)
    assert made.choices[0].message.content == "Keep the humidity between 45 and 55 percent."
    assert made.choices[0].message.role == "assistant" and made.choices[0].finish_reason == "stop"
    assert made.object == "chat.completion" and abs(made.created - time.time()) < 60
    assert made.usage and made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens > 0
    facts = facts_of(made)
    assert facts["path"] == "retrieval" and facts["sources"][0]["path"] == "care.md"


def test_the_models_own_answer_and_its_length(client: openai.OpenAI) -> None:
    asked: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": TRAINED}]},
    ]
    made = client.chat.completions.create(model=name(client, "tuned"), messages=asked)
    assert made.choices[0].message.content == LEARNT
    assert facts_of(made)["path"] == "model"
    made = client.chat.completions.create(model=name(client, "tuned"), messages=asked, max_tokens=2)
    assert made.choices[0].finish_reason == "length"


@pytest.mark.parametrize("mode", ["", "tuned", "retrieved"])
def test_a_stream_says_what_a_completion_says(client: openai.OpenAI, mode: str) -> None:
    model = name(client, mode)
    whole = client.chat.completions.create(model=model, messages=HUMIDITY)
    chunks = list(
        client.chat.completions.create(
            model=model,
            messages=HUMIDITY,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *texts, last, usage = chunks
    assert texts[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in texts) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in texts] == [None] * len(texts)
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert facts_of(last) == facts_of(whole)
    assert usage.choices == [] and usage.usage == whole.usage
    assert len({c.id for c in chunks}) == 1
    if mode != "tuned":
        assert len(texts) > 3


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts_cut_and_are_never_sent(client: openai.OpenAI, stream: bool) -> None:
    made: Any = client.chat.completions.create(
        model=name(client),
        messages=HUMIDITY,
        stop=["idity be", "zzz"],
        stream=stream,
    )
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in made)
    else:
        text = made.choices[0].message.content
    assert text == "Keep the hum"


def test_the_events_on_the_wire(address: str) -> None:
    body = {"model": "firm-co", "messages": HUMIDITY, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = "".join(response.iter_text()).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(e.startswith("data: ") for e in events[:-1])
    assert "usage" not in json.loads(events[0][6:])


GOOD = {"model": "firm-co", "messages": HUMIDITY}


@pytest.mark.parametrize(
    ("body", "status", "param", "part"),
    [
        ("{not json", 400, None, "not valid JSON"),
        ("[]", 400, None, "must be a JSON object"),
        (b"\xff\xfe", 400, None, "not valid JSON"),
        ({"messages": HUMIDITY}, 400, "model", "field 'model' is missing"),
        ({**GOOD, "model": "firm"}, 404, "model", "no model 'firm'; did you mean 'firm-co'? Known: firm-co, "),
        ({**GOOD, "model": "zzz"}, 404, "model", "no model 'zzz'. Known: firm-co, "),
        ({"model": "firm-co"}, 400, "messages", "field 'messages' is missing"),
        ({**GOOD, "messages": []}, 400, "messages", "empty"),
        ({**GOOD, "messages": "hi"}, 400, "messages", "expected a list"),
        ({**GOOD, "messages": [{"role": "assistant", "content": "x"}]}, 400, "messages", "role 'user'"),
        ({**GOOD, "messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role", "'king'"),
        ({**GOOD, "messages": [{"role": "user"}]}, 400, "messages[0].content", "expected text"),
        ({**GOOD, "messages": ["x"]}, 400, "messages[0]", "expected an object"),
        ({**GOOD, "n": 2}, 400, "n", "only 1"),
        ({**GOOD, "max_tokens": 0}, 400, "max_tokens", "from 1"),
        ({**GOOD, "temperature": 3}, 400, "temperature", "from 0 to 2"),
        ({**GOOD, "top_p": "x"}, 400, "top_p", "number"),
        ({**GOOD, "stream": "yes"}, 400, "stream", "true or false"),
        ({**GOOD, "stop": [1]}, 400, "stop", "list of texts"),
        ({**GOOD, "seed": True}, 400, "seed", "whole number"),
    ],
)
def test_a_bad_request_is_refused_in_openais_form(
    address: str, body: object, status: int, param: str, part: str
) -> None:
    content = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
    response = httpx.post(f"{address}/v1/chat/completions", content=content)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert part in error["message"]


def test_the_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=HUMIDITY)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=name(client), messages=[])


def test_other_addresses_and_methods(address: str) -> None:
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    assert httpx.get(f"{address}/v1/nothing").status_code == 404
    assert "error" in httpx.get(f"{address}/v1/nothing").json()
    assert httpx.get(f"{address}/v1/chat/completions").status_code == 405
    huge = httpx.post(f"{address}/v1/chat/completions", content=b" " * (5 * 1024 * 1024))
    assert huge.status_code == 413


def test_the_page_is_whole_and_asks_nobody_else(address: str) -> None:
    page = httpx.get(address)
    assert page.headers["content-type"].startswith("text/html")
    assert "<h1>Firm &lt;&amp;&gt; Co</h1>" in page.text
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|url\(", page.text)
    assert "{{" not in page.text
    assert 'lang="en"' in page.text and "prefers-color-scheme: dark" in page.text
    ids = set(re.findall(r'id="(\w+)"', PAGE.read_text()))
    assert set(re.findall(r'for="(\w+)"', PAGE.read_text())) <= ids


def test_questions_at_the_same_time_do_not_mix(client: openai.OpenAI) -> None:
    got: dict[int, str | None] = {}

    def ask(n: int) -> None:
        question = list(TAUGHT)[n % len(TAUGHT)]
        asked: list[Any] = [{"role": "user", "content": question}]
        stream = client.chat.completions.create(model=name(client, "tuned"), messages=asked, stream=True)
        got[n] = "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[n] for n in range(9)] == [list(TAUGHT.values())[n % len(TAUGHT)] for n in range(9)]


def test_a_client_that_leaves_does_not_hold_the_model(client: openai.OpenAI) -> None:
    for _ in range(3):
        asked: list[Any] = [{"role": "user", "content": TRAINED}]
        stream = client.chat.completions.create(model=name(client, "tuned"), messages=asked, stream=True)
        next(iter(stream))
        stream.close()
    made = client.chat.completions.create(model=name(client), messages=HUMIDITY)
    assert made.choices[0].message.content


def test_an_address_that_is_taken(address: str, index: Path) -> None:
    port = int(address.rsplit(":", 1)[1])
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}"):
        serve(Opened(Assistant(None, index), "x"), port=port)


def test_cut() -> None:
    assert cut("abcdef", ["ef", "cd"]) == "ab"
    assert cut("abc", []) == "abc" == cut("abc", ["x"])
