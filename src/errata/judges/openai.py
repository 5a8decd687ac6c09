"""A vision model behind any OpenAI-compatible endpoint, in the mode `criterion` or `blind`.

`criterion`, as the published judge: the model is given the criterion that the picture must meet,
and says whether it does. `blind`: the model answers the question only, and the answer is compared
with the target here; so the target cannot influence the answer. Use `blind` for small or fine-tuned
models. Model, prompts and parser differ from the published judge. A reply counts only if it is one
JSON object of the requested form, with a JSON boolean for `matches_target` ("false" in quotes is no
verdict). A picture without a verdict is judged again next time.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from errata.core.errors import BadEndpoint, BadImage, BadSpec
from errata.core.measure.judge import RETRY, Judge
from errata.core.text import mentions
from errata.core.types import Image, JudgeQuestion, Verdict
from errata.io.chat_client import Endpoint, NoReply, json_object
from errata.io.images import load_image

MODES = ("criterion", "blind")
#: Pixels of the longer side: larger pictures are scaled down (as published), small ones up.
LARGEST, SMALLEST = 512, 256
TOKENS = 512
WORKERS = 8

ASK = {
    "criterion": (
        "Look at the picture.\n"
        "Question: {question}\n"
        "Criterion: {criterion}\n"
        "First note what in the picture bears on the question. Then decide whether the criterion "
        "holds, strictly: if the picture shows something else than it demands, it does not hold.\n"
        "Reply with one JSON object and nothing else, with two keys: "
        '"observation", a text of at most two sentences, and "matches_target", true or false.'
    ),
    "blind": (
        "Look at the picture and answer the question from what it shows, in as few words as you "
        "can.\n"
        "Question: {question}\n"
        "Reply with one JSON object and nothing else, with two keys: "
        '"observation", a text of at most two sentences, and "answer", a text; or null, if the '
        "picture does not show it."
    ),
}


class Openai(Judge):
    """endpoint: URL up to the version. The key is read from the environment variable `key_env`.

    Model and mode are part of the identity: verdicts of different ones are never averaged.
    """

    name = "openai"
    version = "1"

    def __init__(
        self,
        *,
        endpoint: str = "",
        model: str = "",
        mode: str = "criterion",
        key_env: str = "OPENAI_API_KEY",
        **options: Any,
    ) -> None:
        if not endpoint or not model:
            raise BadSpec(
                "judge 'openai' needs a server and a model. Give --endpoint URL (for example "
                "http://localhost:8000/v1) and --model NAME."
            )
        if mode not in MODES:
            raise BadSpec(f"judge 'openai' has no mode '{mode}'. Choose {' or '.join(MODES)}.")
        self.mode = mode
        self.endpoint = Endpoint(endpoint, model, key_env=key_env, **options)

    @property
    def identity(self) -> str:
        return f"{super().identity}:{self.mode}:{self.endpoint.model}"

    def judge(self, pictures: Sequence[tuple[Path, JudgeQuestion]]) -> list[Verdict]:
        """Judges several pictures in parallel. Raises BadEndpoint if none could be judged."""
        server = _ServerState()
        with ThreadPoolExecutor(WORKERS) as pool:
            verdicts = list(
                pool.map(lambda p: self._verdict_or_reason(p[0], p[1], server), pictures)
            )
        if server.error is not None and all(v.meets is None for v in verdicts):
            raise server.error
        return verdicts

    def _verdict_or_reason(self, path: Path, view: JudgeQuestion, server: _ServerState) -> Verdict:
        if server.error is not None:
            return self._no_verdict(RETRY + str(server.error))
        try:
            return self._verdict(path, view)
        except BadImage as e:
            return self._no_verdict(str(e))
        except BadEndpoint as e:
            server.error = e
            return self._no_verdict(RETRY + str(e))
        except (NoReply, ValueError) as e:
            return self._no_verdict(RETRY + str(e))

    def _verdict(self, path: Path, view: JudgeQuestion) -> Verdict:
        text = ASK[self.mode].format(question=view.question, criterion=view.criterion)
        content = [
            {"type": "image_url", "image_url": {"url": data_url(path)}},
            {"type": "text", "text": text},
        ]
        reply = self.endpoint.chat([{"role": "user", "content": content}], max_tokens=TOKENS)
        read: Callable[[str, JudgeQuestion], tuple[str, bool | None, str]] = {
            "criterion": read_criterion,
            "blind": read_blind,
        }[self.mode]
        answer, meets, note = read(reply, view)
        return Verdict(self.identity, answer, meets, note)

    def _no_verdict(self, why: str) -> Verdict:
        return Verdict(self.identity, note=why)


@dataclass
class _ServerState:
    """The error of a server that answers nothing: later pictures are not sent."""

    error: BadEndpoint | None = None


def read_criterion(reply: str, view: JudgeQuestion) -> tuple[str, bool | None, str]:
    """("", whether the criterion holds, the observation). Raises ValueError."""
    data = _object(reply)
    meets = data.get("matches_target")
    if not isinstance(meets, bool):
        raise ValueError(f"'matches_target' is {_excerpt(meets)}, not true or false")
    return "", meets, _observation(data)


def read_blind(reply: str, view: JudgeQuestion) -> tuple[str, bool | None, str]:
    """(the answer, whether it names the target, the observation). Raises ValueError.

    The answer null means that the picture does not show it, so not the target either.
    """
    data = _object(reply)
    answer = data.get("answer", 0)
    if answer is not None and not isinstance(answer, str):
        raise ValueError(f"'answer' is {_excerpt(answer)}, not a text or null")
    answer = (answer or "").strip()
    return answer, mentions(answer, view.target), _observation(data)


def _object(reply: str) -> dict[str, Any]:
    """The JSON object of the reply. Raises ValueError, also if a key occurs twice."""
    data = json_object(reply)
    keys = _keys(reply)
    if len(keys) != len(set(keys)):
        raise ValueError("the reply names a key twice")
    return data


def _keys(reply: str) -> list[str]:
    """The keys of the outermost object, with repetitions, of a reply that `json_object` reads."""
    objects: list[list[str]] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        objects.append([k for k, _ in items])
        return dict(items)

    json.loads(reply[reply.index("{") : reply.rindex("}") + 1], object_pairs_hook=pairs)
    return objects[-1]


def _observation(data: dict[str, Any]) -> str:
    text = data.get("observation", "")
    return " ".join(text.split())[:300] if isinstance(text, str) else ""


def _excerpt(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def data_url(path: Path) -> str:
    """The picture as a PNG in a data URL, scaled for the model. Raises BadImage."""
    picture = load_image(Image(str(path)))
    longest = max(picture.size)
    if longest > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Pillow.Resampling.LANCZOS)
    elif longest < SMALLEST:
        times = -(-SMALLEST // longest)
        size = (picture.width * times, picture.height * times)
        picture = picture.resize(size, Pillow.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
