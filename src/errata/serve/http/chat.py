"""`POST /v1/chat/completions`, as one answer or as a stream of pieces."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from errata.serve.catalogue import ChosenModel
from errata.serve.decoding.jobs import AskJob, Begun, Event, Finished, Spoken, Words
from errata.serve.decoding.sampling import Sampling
from errata.serve.failures import Refused
from errata.serve.http.common import FAILURES, in_thread, service_of
from errata.serve.http.schemas import ChatBody, ChatMessage, ImagePart, TextPart
from errata.serve.http.waiting import ClientGone, Mailbox
from errata.serve.service import Said, Service

router = APIRouter(prefix="/v1/chat", responses=FAILURES)


@dataclass
class ChatReply:
    """The parts of an answer that do not change while it grows."""

    model: str
    fingerprint: str
    logprobs: bool
    id: str
    created: int
    prompt_tokens: int = 0

    def base(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def usage(self, completion_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }

    def whole(self, spoken: Sequence[Spoken], end: Finished) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": end.text, "refusal": None},
            "logprobs": logprobs(spoken) if self.logprobs else None,
            "finish_reason": end.reason,
        }
        base = self.base("chat.completion")
        return {**base, "choices": [choice], "usage": self.usage(end.tokens)}

    def piece(
        self, delta: dict[str, Any], *, reason: str | None = None, spoken: Sequence[Spoken] = ()
    ) -> dict[str, Any]:
        probabilities = logprobs(spoken) if self.logprobs and spoken else None
        choice = {
            "index": 0, "delta": delta, "logprobs": probabilities, "finish_reason": reason,
        }  # fmt: skip
        return {**self.base("chat.completion.chunk"), "choices": [choice]}


@router.post("/completions")
async def complete(body: ChatBody, request: Request) -> Response:
    """Answers the last message. Its model name says which patches it is answered with."""
    service = service_of(request)
    chosen = service.catalogue.resolve(body.model)
    *earlier, asked = _turns(body.messages)
    prompt = await in_thread(service.readers, lambda: service.prompt(asked.parts, earlier))
    job = AskJob(
        patch=chosen.patch,
        prompt=prompt,
        sampling=Sampling(body.temperature, body.top_p, body.seed),
        tokens=_most(body, service),
        stops=body.stops,
        top=(body.top_logprobs or 0) if body.logprobs else None,
    )
    reply = _reply(body, service, chosen)
    mailbox: Mailbox = request.app.state.mailbox
    events = mailbox.answered(service.engine, job, request)
    note = {"model": body.model, "stream": body.stream}
    request.state.facts, request.state.texts = note, {"prompt": prompt.text}
    if earlier:
        note["turns"] = len(body.messages)
        request.state.texts["earlier"] = [turn.text for turn in prompt.history]
    first = await anext(events)  # a question that cannot be answered has its 4xx here
    assert isinstance(first, Begun)
    reply.prompt_tokens = note["prompt_tokens"] = first.tokens
    service.metrics.tokens.labels("prompt").inc(first.tokens)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        pieces = _stream(reply, events, request, usage=usage)
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
    spoken, end = await _all(events)
    _note(request, end)
    return JSONResponse(reply.whole(spoken, end))


async def _all(events: AsyncIterator[Event]) -> tuple[list[Spoken], Finished]:
    spoken: list[Spoken] = []
    async for event in events:
        if isinstance(event, Spoken):
            spoken.append(event)
        elif isinstance(event, Finished):
            return spoken, event
    raise AssertionError("an answer ends with `Finished` or raises")


def _note(request: Request, end: Finished) -> None:
    request.state.facts["completion_tokens"] = end.tokens
    request.state.texts["answer"] = end.text
    service_of(request).metrics.tokens.labels("completion").inc(end.tokens)


async def _stream(
    reply: ChatReply, events: AsyncIterator[Event], request: Request, *, usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events. An answer that fails half-way ends with an `error` and no `[DONE]`."""
    yield _event(reply.piece({"role": "assistant", "content": ""}))
    try:
        async for event in events:
            if isinstance(event, Spoken) and (event.piece or reply.logprobs):
                yield _event(reply.piece({"content": event.piece}, spoken=[event]))
            elif isinstance(event, Finished):
                if event.rest:
                    yield _event(reply.piece({"content": event.rest}))
                _note(request, event)
                yield _event(reply.piece({}, reason=event.reason))
                if usage:
                    base = reply.base("chat.completion.chunk")
                    yield _event({**base, "choices": [], "usage": reply.usage(event.tokens)})
        yield b"data: [DONE]\n\n"
    except Refused as e:
        yield _event(e.body)
    except ClientGone:
        return
    finally:
        await events.aclose()  # type: ignore[attr-defined]


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def _turns(messages: Sequence[ChatMessage]) -> list[Said]:
    """The texts and image URLs of each message; the last one is the question."""
    if messages[-1].role != "user":
        raise Refused(
            400,
            f"the last message is of the role {messages[-1].role}. It is the question to answer: "
            "give one of the role user.",
            param="messages",
            code="no_question",
        )
    return [
        Said("system" if m.role == "developer" else m.role, _parts(m.content)) for m in messages
    ]


def _parts(content: str | Sequence[TextPart | ImagePart]) -> list[tuple[str, str]]:
    if isinstance(content, str):
        return [("text", content)]
    return [
        ("text", part.text) if isinstance(part, TextPart) else ("image", part.image_url.url)
        for part in content
    ]


def _most(body: ChatBody, service: Service) -> int:
    """Tokens of the answer."""
    asked = body.max_tokens if body.max_tokens is not None else body.max_completion_tokens
    most = service.limits.tokens
    if asked is not None and asked > most:
        raise Refused(
            400, f"max_tokens is {asked}, this server gives at most {most}.",
            param="max_tokens", code="too_many_tokens",
        )  # fmt: skip
    return most if asked is None else asked


def _reply(body: ChatBody, service: Service, chosen: ChosenModel) -> ChatReply:
    return ChatReply(
        model=body.model,
        fingerprint=service.system_fingerprint(chosen),
        logprobs=body.logprobs,
        id=f"chatcmpl-{secrets.token_hex(12)}",
        created=int(time.time()),
    )


def logprobs(spoken: Sequence[Spoken]) -> dict[str, Any]:
    content = [
        {**_token(s.words), "top_logprobs": [_token(w) for w in s.top]}
        for s in spoken
        if s.words is not None
    ]
    return {"content": content, "refusal": None}


def _token(words: Words) -> dict[str, Any]:
    data = words.text.encode("utf-8", "replace")
    return {"token": words.text, "logprob": words.logprob, "bytes": list(data)}
