"""Chats of several turns, as the official client sends them: systems, histories, pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from PIL import Image as Pillow

import errata
from errata import Edit, Prompt
from errata.core.types import Turn
from errata.io.packaged_models import MODELS
from errata.serve.service import Setup
from errata.serve.settings import Access
from errata.testing import zoo
from tests.serving import TestServer, data_url, served

#: as Llama's and Qwen's: any order of turns, a system where one is given
LANGUAGE = (
    "{% for m in messages %}<|vision_start|>{{ m['role'] }}\n{{ m['content'] }}<|vision_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|vision_start|>assistant\n{% endif %}"
)
#: as Gemma's and Mistral's
STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system here') }}"
    "{% endif %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] | trim }}</s>{% endfor %}"
)
FORGETFUL = "<s>{{ messages[-1]['content'] }}"
PICTURES = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
REAL = MODELS["smollm2-135m"]
Messages = list[dict[str, Any]]
SAID = {"role": "assistant", "content": "The red ring"}
TALK: Messages = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which thing is red?"},
    SAID,
    {"role": "user", "content": "What colour is the other thing?"},
]


def language(template: str | None = LANGUAGE) -> Any:
    model, tokenizer = zoo.ZOO["llama"].make()
    tokenizer.chat_template = template
    return errata.wrap(model, tokenizer, name="talker")


def pictured(family: str) -> Any:
    model, processor = zoo.ZOO[family].make()
    wrapped = {"qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
    token = wrapped.get(family, str(getattr(processor, "image_token", "<image>")))
    processor.chat_template = PICTURES.replace("IMAGE", token)
    return errata.wrap(model, processor, name="talker")


def own_answer(bb: Any, talk: Messages, tokens: int = 12) -> str:
    """What transformers alone makes of the messages."""
    speaker = getattr(bb, "processor", bb.tokenizer)
    inputs = speaker.apply_chat_template(
        talk, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        out = bb.model.generate(**inputs, max_new_tokens=tokens, do_sample=False, use_cache=True)
    new = out[0, inputs["input_ids"].shape[1] :]
    return str(bb.tokenizer.decode(new, skip_special_tokens=True)).strip()


def client(server: TestServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def said(server: TestServer, talk: Messages, **more: Any) -> str:
    body: dict[str, Any] = {"model": "talker", "messages": talk, "max_tokens": 12, **more}
    with client(server) as api:
        return str(api.chat.completions.create(**body).choices[0].message.content)


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    with served(language(), Setup(name="talker", access=Access())) as running:
        yield running


CHATS: list[Messages] = [
    TALK[1:2],
    TALK[:2],
    TALK,
    TALK[1:],
    [*TALK, SAID, {"role": "user", "content": "And the shape?"}],
    [TALK[1], TALK[3]],
    [TALK[1], SAID, SAID, TALK[3]],
]


@pytest.mark.parametrize("talk", CHATS, ids=lambda t: "-".join(m["role"][0] for m in t))
def test_a_chat_is_answered_as_by_transformers(server: TestServer, talk: Messages) -> None:
    wanted = own_answer(server.service.bb, talk)
    assert wanted and said(server, talk) == wanted


def test_turns_matter_and_other_forms_of_them_do_not(server: TestServer) -> None:
    wanted = said(server, TALK)
    assert len({wanted, said(server, TALK[1:]), said(server, TALK[-1:])}) == 3
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in TALK]
    assert said(server, parts) == wanted
    assert said(server, [{**TALK[0], "role": "developer"}, *TALK[1:]]) == wanted
    with client(server) as api:
        pieces = api.chat.completions.create(
            model="talker", messages=TALK, max_tokens=12, stream=True
        )
        assert "".join(c.choices[0].delta.content or "" for c in pieces) == wanted


def test_an_answer_can_be_sent_back_as_it_came(server: TestServer) -> None:
    talk: list[Any] = [TALK[1]]
    with client(server) as api:
        first = api.chat.completions.create(model="talker", messages=talk, max_tokens=8)
        talk += [first.choices[0].message, {"role": "user", "content": "Why?"}]
        second = api.chat.completions.create(model="talker", messages=talk, max_tokens=12)
    plain = [TALK[1], {"role": "assistant", "content": first.choices[0].message.content}, talk[-1]]
    assert second.choices[0].message.content == own_answer(server.service.bb, plain)


def test_the_history_is_in_the_log_only_if_asked(server: TestServer) -> None:
    said(server, TALK)
    text = server.stream.getvalue()
    assert "red ring" not in text and "Be brief" not in text
    assert [e for e in server.lines if e.get("turns") == len(TALK)]


# -- pictures -------------------------------------------------------------------------------------


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Pillow.effect_noise((28, 28), 60).convert("RGB").save(buffer, "PNG")
    picture = Pillow.blend(
        Pillow.open(buffer).convert("RGB"), Pillow.new("RGB", (28, 28), colour), 0.7
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png("red"), png("blue")


def shown(*parts: bytes | str) -> tuple[list[Any], list[Any]]:
    """Parts of one message: for OpenAI's protocol, and for transformers."""
    ours: list[Any] = []
    own: list[Any] = []
    for part in parts:
        if isinstance(part, str):
            ours.append({"type": "text", "text": part})
            own.append(ours[-1])
        else:
            ours.append({"type": "image_url", "image_url": {"url": data_url(part)}})
            own.append({"type": "image", "image": Pillow.open(io.BytesIO(part))})
    return ours, own


def talks(*turns: tuple[str, tuple[bytes | str, ...]]) -> tuple[Messages, Messages]:
    made = [(role, *shown(*parts)) for role, parts in turns]
    return (
        [{"role": role, "content": ours} for role, ours, _ in made],
        [{"role": role, "content": own} for role, _, own in made],
    )


WITH_PICTURES = [
    talks(("user", (RED, "What colour?"))),
    talks(("system", ("Be brief.",)), ("user", (RED, "What?")), ("assistant", ("A ring",)),
          ("user", ("Which shape is it?",))),
    talks(("user", ("Hello",)), ("assistant", ("Yes?",)), ("user", ("What is", BLUE, "here?"))),
    talks(("user", (RED, "What?")), ("assistant", ("A ring",)), ("user", (BLUE, "And this?"))),
    talks(("user", (BLUE, "What?")), ("assistant", ("A ring",)), ("user", (RED, "And this?"))),
]  # fmt: skip


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_pictures_in_any_turn_are_read_as_by_transformers(family: str) -> None:
    bb = pictured(family)
    assert bb.style == "chat" and bb.several
    answers = []
    with served(bb, Setup(name="talker", access=Access())) as running:
        for ours, own in WITH_PICTURES:
            answers.append(said(running, ours))
            assert answers[-1] == own_answer(bb, own), own
    assert len(set(answers)) > 2


def test_a_model_of_one_picture_says_so(server: TestServer) -> None:
    bb = pictured("blip2")
    two, _ = WITH_PICTURES[3]
    with served(bb, Setup(name="talker", access=Access())) as running:
        with pytest.raises(openai.BadRequestError) as e:
            said(running, two)
        assert e.value.code == "invalid_image" and "one image" in e.value.message
    with pytest.raises(openai.BadRequestError) as e:
        said(server, two)
    assert e.value.code == "invalid_image" and "takes no images" in e.value.message


# -- edits ----------------------------------------------------------------------------------------


def test_an_edit_of_a_bare_question_is_asked_within_a_chat() -> None:
    """By what reads the question, and by a change of weights; rows with other turns beside it."""
    bb = language()
    question = TALK[-1]["content"]
    with served(bb, Setup(name="talker", access=Access())) as running:
        service = running.service
        for name, editor in (("said", errata.editor("say", scope="same_question")),
                             ("tuned", errata.editor("ft_l"))):  # fmt: skip
            result = editor.for_backbone(bb).edit(bb, [Edit(Prompt.of(question), "purple")])
            service.catalogue.add(name, result.patch)
        assert said(running, TALK[-1:], model="talker+said") == "purple"
        assert said(running, TALK, model="talker+said") == "purple"
        assert said(running, CHATS[4], model="talker+said") == said(running, CHATS[4])
        history = tuple(Turn(m["role"], (m["content"],)) for m in TALK[:-1])
        prompt = Prompt((question,), history)
        with bb.applied(service.catalogue.loaded["tuned"]):
            (wanted,) = errata.ask(bb, [prompt], cap=12)
        assert said(running, TALK, model="talker+tuned") == wanted.text
        assert wanted.text != said(running, TALK)


# -- what is refused ------------------------------------------------------------------------------

MALFORMED: list[tuple[Messages, str]] = [
    (TALK[:1], "the last message is of the role system"),
    (TALK[:3], "the last message is of the role assistant"),
    ([TALK[1], TALK[0], TALK[3]], "speaks first"),
    ([TALK[0], *TALK], "speaks first"),
    ([{"role": "user", "content": " "}, SAID, TALK[3]], "messages[0] is empty"),
    ([TALK[1], {"role": "assistant", "content": ""}, TALK[3]], "messages[1] is empty"),
    ([*TALK[:3], {"role": "user", "content": "  "}], "the question is empty"),
    ([{"role": "tool", "content": "42"}, TALK[3]], "role"),
    ([{"role": "King", "content": "42"}, TALK[3]], "role"),
    ([{"content": "42"}, TALK[3]], "role"),
    ([TALK[1], {"role": "assistant"}, TALK[3]], "content"),
    ([TALK[1], {"role": "assistant", "content": None}, TALK[3]], "content"),
    ([TALK[1], {**SAID, "tool_calls": []}, TALK[3]], "tool_calls"),
    ([TALK[1], {**SAID, "refusal": "No."}, TALK[3]], "refusal"),
    ([{"role": "system", "content": shown(RED, "Be brief.")[0]}, TALK[3]], "only a user shows"),
    ([TALK[1], {"role": "assistant", "content": shown(RED)[0]}, TALK[3]], "only a user shows"),
    ([{"role": "system", "content": "half \ud800 of a pair"}, TALK[3]], "unicode"),
]


@pytest.mark.parametrize(("talk", "why"), MALFORMED, ids=lambda v: v if isinstance(v, str) else "")
def test_malformed_chats_are_400(server: TestServer, talk: Messages, why: str) -> None:
    reply = server.send(json.dumps({"model": "talker", "messages": talk}))
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert why in error["message"] and error["type"] == "invalid_request_error"


def test_a_template_that_refuses_or_drops_turns_is_a_400_that_says_so() -> None:
    for template, talk, why in (
        (STRICT, TALK, "No system here"),
        (STRICT, [TALK[1], TALK[3]], "Roles must alternate"),
        (FORGETFUL, TALK[2:], "leaves out"),
        (FORGETFUL, TALK, "leaves out or changes what the system says"),
        (None, TALK, "has no chat template"),
    ):
        with served(language(template), Setup(name="talker", access=Access())) as running:
            if talk == TALK[2:]:  # what an assistant said may be left out
                assert said(running, talk)
                continue
            with pytest.raises(openai.BadRequestError) as e:
                said(running, talk)
            assert why in e.value.message
            assert said(running, talk[-1:])  # the question alone is answered
            if template is None:
                assert e.value.code == "no_chat_template" and e.value.param == "messages"


def test_a_strict_template_that_is_kept_to_is_answered() -> None:
    bb = language(STRICT)
    with served(bb, Setup(name="talker", access=Access())) as running:
        assert said(running, TALK[1:]) == own_answer(bb, TALK[1:])


def test_the_style_of_the_server_is_named() -> None:
    bb = language()
    bb.style = "raw"
    with served(bb, Setup(name="talker", access=Access())) as running:
        with pytest.raises(openai.BadRequestError, match="--style chat"):
            said(running, TALK)


def test_pictures_have_one_limit_for_all_turns(server: TestServer) -> None:
    five = [m for _ in range(5) for m in ({"role": "user", "content": shown(RED, "?")[0]}, SAID)]
    reply = server.ask({"model": "talker", "messages": [*five, TALK[1]]})
    assert reply.status_code == 400 and reply.json()["error"]["code"] == "too_many_images"


# -- a real model ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(REAL.paths() is None, reason=f"not installed: {REAL.install}")
def test_a_real_model_chats() -> None:
    bb: Any = errata.load("smollm2-135m", style="chat")
    talk: Messages = [
        {"role": "system", "content": "You answer with the name of a city."},
        {"role": "user", "content": "What is the capital of Italy?"},
        {"role": "assistant", "content": "Rome"},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    with served(bb, Setup(name="talker", access=Access())) as running:
        for asked in (talk, talk[1:], talk[-1:]):
            assert said(running, asked) == own_answer(bb, asked)
        assert "Paris" in said(running, talk)
