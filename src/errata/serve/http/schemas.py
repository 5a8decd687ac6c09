"""The bodies of requests. A field that the server does not know is refused, never ignored."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from errata.serve.catalogue import NAME

Text = Annotated[str, Field(max_length=200_000)]
ModelName = Annotated[str, Field(min_length=1, max_length=1000)]
PatchName = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImageUrl(Body):
    url: str
    #: pictures are always read as the model's own processor reads them
    detail: Literal["auto"] = "auto"


class TextPart(Body):
    type: Literal["text"]
    text: Text


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


class ChatMessage(Body):
    """refusal: what an answer of this server has, so that it can be sent back as it came."""

    role: Literal["system", "developer", "user", "assistant"]
    refusal: None = None
    content: (
        Text
        | Annotated[
            list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
            Field(min_length=1, max_length=100),
        ]
    )


class StreamOptions(Body):
    include_usage: bool = False


class ChatBody(Body):
    """`POST /v1/chat/completions`. Fields with one allowed value are there for clients that send
    them always.
    """

    model: ModelName
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=100)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] = 1
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0

    @model_validator(mode="after")
    def _fits(self) -> ChatBody:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens and max_completion_tokens are one setting: give one")
        if self.top_p < 1 and self.temperature == 0:
            raise ValueError("top_p has no effect at temperature 0: give a temperature above 0")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs has no effect without logprobs=true")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options has no effect without stream=true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in given if s)


class DrawBody(Body):
    """`POST /v1/images/generations`. seed: of the first picture; the next has the next one."""

    model: ModelName
    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    n: Annotated[int, Field(ge=1, le=4)] = 1
    size: Literal["auto"] = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0


class PictureQuestion(Body):
    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    image: str | None = None


class EditBody(Body):
    """`POST /v1/edits`. model: what the edit is made on top of. image: a URL as in a chat."""

    model: ModelName | None = None
    prompt: Annotated[str, Field(min_length=1, max_length=20_000)]
    target: Annotated[str, Field(min_length=1, max_length=20_000)]
    image: str | None = None
    subject: Annotated[str, Field(max_length=20_000)] | None = None
    rephrase: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None
    unrelated: Annotated[list[PictureQuestion], Field(min_length=1, max_length=10)] | None = None
    editor: Annotated[str, Field(max_length=100)] | None = None
    scope: Annotated[str, Field(max_length=100)] | None = None
    name: PatchName | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0


class FailureBody(BaseModel):
    """How every failure is answered."""

    class Inner(BaseModel):
        message: str
        type: str
        param: str | None
        code: str | None

    error: Inner
