"""The assistant over HTTP: OpenAI's chat completions, so that every client library works, and a plain chat page.

    GET  /                      the chat page (page.html, self-contained)
    GET  /v1/models             one model a mode: NAME (the richest), NAME:tuned, NAME:retrieved, NAME:both
    POST /v1/chat/completions   {"model", "messages", "stream", "stream_options", "max_tokens",
                                 "max_completion_tokens", "temperature", "top_p", "seed", "stop"}
    GET  /health                {"status": "ok"}

Beyond OpenAI's fields a completion carries `luthier`: {"path": model, retrieval or none, "score", "sources": [{path,
page, start, end, sentence, kind}]}; in a stream it comes with the last content chunk. Errors have OpenAI's form,
{"error": {"message", "type", "param", "code"}}, with status 400 (a request that does not fit), 404 (unknown model or
address), 405 or 500.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.assistant.assistant import MODES, Answer, Assistant, Sampling
from luthier.core.assistant.opening import Opened
from luthier.core.console import say
from luthier.core.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["ChatRequest", "application", "parse_request", "serve"]

LOG = logging.getLogger("luthier")
ROLES = ("system", "developer", "user", "assistant")
MAX_BODY = 4 * 1024 * 1024  # bytes of a request
PAGE = Path(__file__).with_name("page.html")


class RequestError(Exception):
    """A request that cannot be answered, as OpenAI's clients expect it."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


@dataclass(frozen=True)
class ChatRequest:
    """A checked request for a chat completion."""

    model: str
    mode: str
    messages: tuple[Mapping[str, str], ...]
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False


# ---------------------------------------------------------------- reading a request


def parse_request(body: bytes, models: Mapping[str, str]) -> ChatRequest:
    """Check a request's body. `models` maps a model's id to a mode. Raises RequestError naming the field."""
    try:
        row = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the request's body is not valid JSON: {error}", code="invalid_json") from error
    if not isinstance(row, dict):
        raise RequestError("the request's body must be a JSON object", code="invalid_json")
    model = _typed(row, "model", str, "a text", required=True)
    if model not in models:
        raise _no_model(model, models)
    if _typed(row, "n", int, "a whole number", 1) != 1:
        raise RequestError("field 'n': only 1 answer is given", param="n")
    most = _typed(row, "max_completion_tokens", int, "a whole number", row.get("max_tokens"))
    if most is not None and (not isinstance(most, int) or most < 1):
        raise RequestError("field 'max_tokens': expected a whole number from 1", param="max_tokens")
    options = _typed(row, "stream_options", dict, "an object", {})
    return ChatRequest(
        model,
        models[model],
        tuple(_messages(row)),
        Sampling(_between(row, "temperature", 0.0, 0.0, 2.0), _between(row, "top_p", 1.0, 0.0, 1.0), most, _seed(row)),
        _stop(row),
        _typed(row, "stream", bool, "true or false", False),
        bool(options.get("include_usage", False)),
    )


def _no_model(name: str, models: Mapping[str, str]) -> RequestError:
    message = f"no model '{name}'{did_you_mean(name, models) or '.'} Known: {', '.join(models)}"
    return RequestError(message, param="model", code="model_not_found", status=404)


def _typed(
    row: Mapping[str, Any], name: str, kind: type, wanted: str, default: Any = None, required: bool = False
) -> Any:
    value = row.get(name)
    if value is None:
        if required:
            raise RequestError(f"field '{name}' is missing", param=name, code="missing_required_parameter")
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RequestError(f"field '{name}': expected {wanted}", param=name, code="invalid_type")
    return value


def _between(row: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = row.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"field '{name}': expected a number from {low:g} to {high:g}", param=name)
    return float(value)


def _seed(row: Mapping[str, Any]) -> int:
    return _typed(row, "seed", int, "a whole number", 0) % 2**63


def _stop(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("stop") or ()
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v for v in value):
        raise RequestError("field 'stop': expected a text or a list of texts", param="stop")
    return tuple(value)


def _messages(row: Mapping[str, Any]) -> list[Mapping[str, str]]:
    messages = _typed(row, "messages", list, "a list of messages", required=True)
    if not messages:
        raise RequestError("field 'messages' is empty: expected at least one message", param="messages")
    checked = [_message(message, n) for n, message in enumerate(messages)]
    if not any(m["role"] == "user" for m in checked):
        raise RequestError("field 'messages': expected at least one of role 'user'", param="messages")
    return checked


def _message(message: Any, n: int) -> Mapping[str, str]:
    where = f"messages[{n}]"
    if not isinstance(message, dict):
        raise RequestError(f"field '{where}': expected an object with role and content", param=where)
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RequestError(f"field '{where}.role' is {role!r}: expected {', '.join(ROLES)}", param=f"{where}.role")
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise RequestError(f"field '{where}.content': expected text", param=f"{where}.content")
    return {"role": "system" if role == "developer" else role, "content": content}


# ---------------------------------------------------------------- answering


def cut(answer: str, stop: Sequence[str]) -> str:
    """The answer up to the first of the stop texts."""
    ends = [position for text in stop if (position := answer.find(text)) >= 0]
    return answer[: min(ends)] if ends else answer


def _usage(assistant: Assistant, request: ChatRequest, text: str) -> dict[str, int]:
    asked = sum(assistant.count_tokens(m["content"]) for m in request.messages)
    said = assistant.count_tokens(text)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _facts(answer: Answer) -> dict[str, Any]:
    sources = [asdict(answer.source)] if answer.source else []
    return {"path": answer.path, "score": round(answer.score, 4), "sources": sources}


def _completion(assistant: Assistant, request: ChatRequest) -> dict[str, Any]:
    answer = assistant.reply(request.messages, request.mode, request.sampling)
    text = cut(answer.text, request.stop)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": answer.finish,
    }
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time())}
    return {
        **head,
        "model": request.model,
        "choices": [choice],
        "usage": _usage(assistant, request, text),
        "luthier": _facts(answer),
    }


class Relay:
    """Runs an answer in a thread of its own and hands its pieces to the event loop; `close` stops it."""

    def __init__(self, assistant: Assistant, request: ChatRequest) -> None:
        self.pieces: asyncio.Queue[str | Answer | Exception] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._closed = threading.Event()
        threading.Thread(target=self._work, args=(assistant, request), daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _work(self, assistant: Assistant, request: ChatRequest) -> None:
        try:
            for piece in assistant.stream(request.messages, request.mode, request.sampling):
                if self._closed.is_set():
                    return
                self._hand(piece)
        except Exception as error:  # shown to the client by the reader of the queue
            LOG.exception("an answer failed")
            self._hand(error)

    def _hand(self, piece: str | Answer | Exception) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


async def _events(assistant: Assistant, request: ChatRequest) -> AsyncIterator[str]:
    """The server-sent events of a streamed completion: a role, pieces of text, the end, the usage, [DONE]."""
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time())}
    head |= {"model": request.model}
    if request.include_usage:
        head |= {"usage": None}

    def event(delta: Mapping[str, Any], finish: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'choices': [choice], **more}, ensure_ascii=False)}\n\n"

    relay = Relay(assistant, request)
    said, sent = "", 0
    longest = max((len(text) for text in request.stop), default=1)
    try:
        yield event({"role": "assistant", "content": ""})
        while not isinstance(piece := await relay.pieces.get(), Answer):
            if isinstance(piece, Exception):
                yield f"data: {json.dumps(_error(str(piece), 'server_error'))}\n\n"
                return
            said += piece
            # Held back: what may be the beginning of a stop text.
            safe = max(sent, min(len(cut(said, request.stop)), len(said) - longest + 1))
            if safe > sent:
                yield event({"content": said[sent:safe]})
                sent = safe
        text = cut(said, request.stop)
        if text[sent:]:
            yield event({"content": text[sent:]})
        yield event({}, piece.finish, luthier=_facts(piece))
        if request.include_usage:
            usage = await asyncio.to_thread(_usage, assistant, request, text)
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': usage})}\n\n"
        yield "data: [DONE]\n\n"
    finally:
        relay.close()


# ---------------------------------------------------------------- the application


def _error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def modes(opened: Opened) -> dict[str, str]:
    """Model id → mode: the name alone, in lower case and with hyphens for blanks, is the richest mode."""
    parts = opened.assistant
    able = [m for m in MODES if (m == "retrieved" or parts.model_folder) and (m == "tuned" or parts.index_folder)]
    name = re.sub(r"[^\w.-]+", "-", opened.name.lower()).strip("-") or "assistant"
    return {name: parts.default_mode, **{f"{name}:{mode}": mode for mode in able}}


def application(opened: Opened) -> Starlette:
    """The ASGI application, for any server."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
    from starlette.routing import Route

    known, started = modes(opened), int(time.time())

    async def page(_: Request) -> Response:
        return HTMLResponse(PAGE.read_text(encoding="utf-8").replace("{{name}}", _escaped(opened.name)))

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    def described(model: str) -> dict[str, Any]:
        return {"id": model, "object": "model", "created": started, "owned_by": "luthier", "mode": known[model]}

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(model) for model in known]})

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        if name not in known:
            raise _no_model(name, known)
        return JSONResponse(described(name))

    async def completions(request: Request) -> Response:
        asked = parse_request(await _body(request), known)
        if asked.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(_events(opened.assistant, asked), media_type="text/event-stream", headers=headers)
        return JSONResponse(await asyncio.to_thread(_completion, opened.assistant, asked))

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        body = _error(str(error), "invalid_request_error", error.param, error.code)
        return JSONResponse(body, error.status)

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(_error(message, "invalid_request_error"), error.status_code, headers=error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        return JSONResponse(_error(f"the server failed: {error}", "server_error"), 500)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/models/{model:path}", model),
            Route("/v1/chat/completions", completions, methods=["POST"]),
        ],
        exception_handlers={RequestError: refused, HTTPException: unknown, Exception: failed},
    )


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise RequestError(f"the request is longer than {MAX_BODY:,} bytes", code="too_large", status=413)
    return body


def _escaped(text: str) -> str:
    import html

    return html.escape(text, quote=True)


def serve(opened: Opened, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve until Ctrl-C. Raises InputError if the address is taken or not ours."""
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        raise InputError(f"cannot listen on {host}:{port}: {error}\nGive another --port or --host.") from error
    with listener:
        opened.assistant.warm_up()
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        say(f"{opened.name} answers on {address} (chat page) and {address}/v1 (OpenAI's API); Ctrl-C ends")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(application(opened), log_level="warning")).run(sockets=[listener])
