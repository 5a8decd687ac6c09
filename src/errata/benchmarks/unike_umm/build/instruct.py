"""Records of attributes of everyday objects, proposed by a model behind an endpoint.

The model names objects with a well-known attribute and a false one. For each object it then writes
four stages, one request per stage: the object alone, in a scene, among other things, and something
made from it. Every reply is appended to `replies.jsonl` at once, and everything else is computed
from that file: a killed build is resumed, and a finished one sends no request again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.benchmarks.unike_umm.build.checks import KEYS, holds, problem, same_look, words
from errata.benchmarks.unike_umm.build.rows import BuiltRecord, Rejected, Stage
from errata.core.files import append_lines, read_lines, whole_lines
from errata.core.types import digest
from errata.io.chat_client import Endpoint, NoReply, json_object

CATEGORIES = ("color", "material", "pattern", "shape", "size")
MAX_TOKENS = 1500
ATTEMPTS = 2  # a stage whose reply fails the checks is asked once more
BATCH = 10  # objects per proposal

_SCENES = {
    1: "the object alone, with nothing else that matters in the picture",
    2: "the object in use, in an everyday place",
    3: "the object as one of several different things, none of which has either answer",
    4: (
        "something made from the object or with it, which takes over the fact (juice of a fruit, "
        "a toy of a vehicle); the answers are those of the thing made"
    ),
}
_SYSTEM = (
    "You write items that test whether a corrected fact shows in generated pictures. "
    "Answer with one JSON object and nothing else."
)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Reply:
    """A line of replies.jsonl: digest of the request, and the reply or why there is none."""

    asked: str
    model: str
    text: str = ""
    failure: str = ""


class Interview:
    """Sends each request once per folder.

    temperature: so high that a second attempt differs from the first.
    """

    def __init__(self, endpoint: Endpoint, path: Path, temperature: float = 0.7) -> None:
        self.endpoint, self.path, self.temperature = endpoint, path, temperature
        whole_lines(path)
        self.replies = {r.asked: r for r in read_lines(path, Reply)}

    def ask(self, text: str, attempt: int) -> Reply:
        """The reply, which holds errors of this request alone. Raises BadEndpoint."""
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]
        model, temperature = self.endpoint.model, self.temperature
        request = digest([messages, model, temperature, MAX_TOKENS, attempt])
        if request not in self.replies:
            try:
                answer = self.endpoint.chat(
                    messages, max_tokens=MAX_TOKENS, temperature=self.temperature
                )
                reply = Reply(request, model, answer)
            except NoReply as e:
                reply = Reply(request, model, failure=str(e))
            append_lines(self.path, [reply])
            self.replies[request] = reply
        return self.replies[request]


@dataclass(frozen=True, slots=True)
class ProposedObject:
    """A proposed object, its true attribute (gt) and the new one (gt_target)."""

    subject: str
    gt: str
    gt_target: str


def instruct(
    interview: Interview, categories: Sequence[str], count: int, progress: Progress
) -> tuple[list[BuiltRecord], list[Rejected]]:
    """Up to `count` records per category, in order, and every rejected proposal or stage.

    A category ends early when `count` proposals in a row bring nothing new. An object without a
    valid first stage makes no record; a later invalid stage is left out.
    """
    records: list[BuiltRecord] = []
    rejected: list[Rejected] = []
    for category in categories:
        taken: list[str] = []
        made = idle = turn = 0
        while made < count and idle < count:
            objects = _propose(interview, category, tuple(taken), turn, rejected)
            turn += 1
            idle = 0 if objects else idle + 1
            for thing in objects[: count - made]:
                taken.append(thing.subject)
                stages = _stages(interview, category, thing, rejected)
                if "stage_1" in stages:
                    records.append(BuiltRecord(thing.subject, category, "attribute", stages))
                    made += 1
                progress(category, made, count)
    return records, rejected


def _propose(
    interview: Interview,
    category: str,
    taken: Sequence[str],
    turn: int,
    rejected: list[Rejected],
) -> list[ProposedObject]:
    text = (
        f"Name {BATCH} things that nearly everybody knows and that have one typical {category}. "
        f'For each give "subject" (the thing, without an article, lower case unless a name), "gt" '
        f'(its true {category}, one or two words) and "gt_target" (another {category}, false, '
        "that can be drawn and looks clearly different). The subject must contain neither answer."
        f" Leave out: {', '.join(taken) or 'nothing'}. "
        'Format: {"objects": [{"subject": "", "gt": "", "gt_target": ""}]}'
    )
    reply = interview.ask(text, turn)
    named = {" ".join(words(t)) for t in taken}
    objects: list[ProposedObject] = []
    for item in _objects(interview, reply, category, rejected):
        if why := _object_problem(item, named):
            subject = item.get("subject") if isinstance(item, Mapping) else ""
            rejected.append(_refused(interview, why, str(subject or ""), category, item))
            continue
        named.add(" ".join(words(item["subject"])))
        objects.append(ProposedObject(*(item[k].strip() for k in ("subject", "gt", "gt_target"))))
    return objects


def _objects(
    interview: Interview, reply: Reply, category: str, rejected: list[Rejected]
) -> list[Any]:
    data, why = _read(reply)
    if not why and (set(data) != {"objects"} or not isinstance(data["objects"], list)):
        why = "the proposal is not an object with the one list 'objects'"
    if why:
        rejected.append(_refused(interview, why, "", category, reply.text or None))
        return []
    objects: list[Any] = data["objects"]
    return objects


def _object_problem(item: Any, named: set[str]) -> str | None:
    keys = ("subject", "gt", "gt_target")
    if not isinstance(item, Mapping) or set(item) != set(keys):
        return "the proposal has other keys than subject, gt and gt_target"
    if any(not isinstance(item[k], str) or not words(item[k]) for k in keys):
        return "the proposal holds something else than texts"
    if " ".join(words(item["subject"])) in named:
        return "duplicate: the object was proposed before"
    if same_look(item["gt"], item["gt_target"]):
        return "old answer and target look the same"
    if any(holds(item["subject"], item[k]) for k in ("gt", "gt_target")):
        return "the subject names an answer"
    return None


def _stages(
    interview: Interview, category: str, thing: ProposedObject, rejected: list[Rejected]
) -> dict[str, Stage]:
    stages: dict[str, Stage] = {}
    for number, scene in _SCENES.items():
        for attempt in range(ATTEMPTS):
            reply = interview.ask(_stage_request(category, thing, scene, stages), attempt)
            stage, why = _read(reply)
            wrong = why or problem(stage, thing.subject)
            wrong = wrong or _differs(stage, thing, category, number)
            if not wrong:
                stages[f"stage_{number}"] = stage
                break
            data = stage or reply.text or None
            rejected.append(_refused(interview, wrong, thing.subject, f"stage_{number}", data))
        if number == 1 and not stages:
            break
    return stages


def _stage_request(
    category: str, thing: ProposedObject, scene: str, stages: Mapping[str, Mapping[str, str]]
) -> str:
    before = "; ".join(s["image_prompt"] for s in stages.values()) or "none"
    return (
        f'Subject: "{thing.subject}". Its {category} is "{thing.gt}" and shall be thought to be '
        f'"{thing.gt_target}". Picture: {scene}. Write, each in one line: "question" (asks for the '
        f'{category}, ends in a question mark), "prompt" (the beginning of a statement that the '
        'answer completes), "gt" (the true answer), "gt_target" (the new answer), "image_prompt" '
        '(what to draw), "visual_target" (a sentence saying what must be seen if the new answer '
        'holds; it has the words "must" and the new answer), "vqa_question" (asks what the picture '
        "shows of it, ends in a question mark). question, prompt and image_prompt contain the "
        "subject as it is written above; question, prompt, image_prompt and vqa_question give "
        "neither answer away, nor words of the same meaning. Earlier pictures, which this one must "
        f"not repeat: {before}. Format: an object with exactly the keys {', '.join(KEYS)}."
    )


def _differs(
    stage: Mapping[str, str], thing: ProposedObject, category: str, number: int
) -> str | None:
    """Why a stage has other answers than the object; None if it may, or has the same ones.

    Answers may differ for what is made from the object (stage 4), and for sizes after stage 1,
    which are published as comparisons.
    """
    if number == 4 or (category == "size" and number > 1):
        return None
    for key, value in (("gt", thing.gt), ("gt_target", thing.gt_target)):
        if not same_look(stage[key], value):
            return f"{key} is not that of the object"
    return None


def _read(reply: Reply) -> tuple[dict[str, Any], str]:
    """The JSON object of the reply, or why there is none."""
    if reply.failure:
        return {}, reply.failure
    try:
        return json_object(reply.text), ""
    except ValueError as e:
        return {}, str(e).partition(" (")[0]


def _refused(interview: Interview, why: str, subject: str, stage: str, data: Any) -> Rejected:
    return Rejected(f"endpoint:{interview.endpoint.model}", -1, why, subject, stage, data)
