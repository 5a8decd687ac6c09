"""A vision model behind any OpenAI-compatible endpoint, asked blind or shown the criterion.

`criterion` is how the published judge works: it is told what the picture must show, and says
whether it does. `blind` asks only the question and compares the answer with the target here, so
that the wanted answer cannot suggest itself; a fine-tuned or small model should be read this way
too. The published judge's model, prompt and parser are not repeated: the prompts are our own, and a
reply counts only if it is one JSON object of the asked shape, with a JSON boolean where one is
asked ("false" in quotes is no verdict). Whatever fails is judged again next time.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
    """`endpoint` is a URL up to the version; the key comes from the environment only.

    The identity names the model and the mode: verdicts of different ones are never mixed.
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
            raise BadSpec(f"there is no mode '{mode}' of judging. Choose {' or '.join(MODES)}.")
        self.mode = mode
        self.endpoint = Endpoint(endpoint, model, key_env=key_env, **options)

    @property
    def identity(self) -> str:
        return f"{super().identity}:{self.mode}:{self.endpoint.model}"

    def judge(self, pictures: Sequence[tuple[Path, JudgeQuestion]]) -> list[Verdict]:
        """Asks for several pictures at once. Raises BadEndpoint where not one could be judged."""
        turn = _Turn()
        with ThreadPoolExecutor(WORKERS) as pool:
            found = list(pool.map(lambda one: self._careful(one[0], one[1], turn), pictures))
        if turn.trouble is not None and all(v.meets is None for v in found):
            raise turn.trouble
        return found

    def _careful(self, path: Path, view: JudgeQuestion, turn: _Turn) -> Verdict:
        if turn.trouble is not None:
            return self._none(RETRY + str(turn.trouble))
        try:
            return self._one(path, view)
        except BadImage as e:
            return self._none(str(e))
        except BadEndpoint as e:
            turn.trouble = e
            return self._none(RETRY + str(e))
        except (NoReply, ValueError) as e:
            return self._none(RETRY + str(e))

    def _one(self, path: Path, view: JudgeQuestion) -> Verdict:
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

    def _none(self, why: str) -> Verdict:
        return Verdict(self.identity, note=why)


@dataclass
class _Turn:
    """What keeps the server from answering anything, once it is known."""

    trouble: BadEndpoint | None = field(default=None)


def read_criterion(reply: str, view: JudgeQuestion) -> tuple[str, bool | None, str]:
    """(nothing read, whether the criterion holds, what was observed). Raises ValueError."""
    found = _object(reply)
    meets = found.get("matches_target")
    if not isinstance(meets, bool):
        raise ValueError(f"'matches_target' is {_shown(meets)}, not true or false")
    return "", meets, _observed(found)


def read_blind(reply: str, view: JudgeQuestion) -> tuple[str, bool | None, str]:
    """(the answer, whether it names the target, what was observed). Raises ValueError.

    A picture that does not show it (null) does not show the target either.
    """
    found = _object(reply)
    answer = found.get("answer", 0)
    if answer is not None and not isinstance(answer, str):
        raise ValueError(f"'answer' is {_shown(answer)}, not a text or null")
    answer = (answer or "").strip()
    return answer, mentions(answer, view.target), _observed(found)


def _object(reply: str) -> dict[str, Any]:
    """The reply's JSON object, which names no key twice."""
    found = json_object(reply)
    keys = _keys(reply)
    if len(keys) != len(set(keys)):
        raise ValueError("the reply names a key twice")
    return found


def _keys(reply: str) -> list[str]:
    """The keys of the outermost object of a reply that `json_object` can read."""
    seen: list[list[str]] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen.append([k for k, _ in items])
        return dict(items)

    json.loads(reply[reply.index("{") : reply.rindex("}") + 1], object_pairs_hook=pairs)
    return seen[-1]


def _observed(found: dict[str, Any]) -> str:
    text = found.get("observation", "")
    return " ".join(text.split())[:300] if isinstance(text, str) else ""


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:60]


def data_url(path: Path) -> str:
    """The picture as a PNG in a URL, scaled so that a model can see it. Raises BadImage."""
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
