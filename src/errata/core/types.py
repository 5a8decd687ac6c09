"""The data types that all of errata uses: prompts, edits, probes, cases and answers.

Frozen, hashable, free of torch, and equal after a round trip through JSON. `to_json` and
`from_json` are the only way these values reach a file; `json_schema` is what docs/schemas is
generated from.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from errata.core.errors import BadEdit, BadImage
from errata.core.formats.json_value import without_unused
from errata.core.kinds import KINDS, ProbeKind

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Image:
    """An image by reference: a file path, or `<scheme>:<spec>` for one that a benchmark renders.

    An image in memory is a data URI. `sha256` is the hash of the file's bytes, or of the spec for a
    rendered image; None until known.
    """

    uri: str
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.uri, str):
            raise BadImage(
                f"Image(uri) takes a path or a URI, not a {type(self.uri).__name__}. "
                "Use Image.of, or Prompt.of(text, image)."
            )
        if self.sha256 is not None and not isinstance(self.sha256, str):
            raise BadImage(f"the sha256 of an image is a text, not {self.sha256!r}.")

    @classmethod
    def of(cls, value: Any) -> Image:
        """An image from a path, a URI, a PIL image, an array or the bytes of an image file.

        An array holds uint8 values [rows, columns] or [rows, columns, 1, 3 or 4]. Raises BadImage.
        """
        if isinstance(value, Image):
            return value
        if isinstance(value, str):
            return cls(value)
        from errata.core.formats.pictures import uri_of

        return cls(*uri_of(value))

    @property
    def shown(self) -> str:
        """The URI for people; an image in memory is named by its hash."""
        if not self.uri.startswith("data:"):
            return self.uri
        from errata.core.formats.pictures import shown

        return shown(self.uri)

    def __repr__(self) -> str:
        return f"Image({self.shown!r})"


Segment = str | Image
#: who speaks in a chat; what a system says comes first
ROLES = ("system", "user", "assistant")


def _segments(given: Any) -> tuple[Segment, ...]:
    """Texts and images, in order. Raises BadEdit, BadImage."""
    if isinstance(given, (str, bytes, Image)) or not isinstance(given, Iterable):
        raise BadEdit(
            f"Prompt(segments) takes a tuple of texts and images, not {brief(given)}. "
            "Use Prompt.of(text, image)."
        )
    parts = tuple(s if isinstance(s, str) else Image.of(s) for s in given)
    for part in parts:
        if isinstance(part, str):
            check_text("a prompt", part)
    return parts


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody said in a chat before the question: one of `ROLES`, and texts and images.

    Only a user shows images. Raises BadEdit.
    """

    role: str
    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", _segments(self.segments))
        if self.role not in ROLES:
            raise BadEdit(f"a turn is of {', '.join(ROLES)}, not of {self.role!r:.60}.")
        if self.role != "user" and any(isinstance(s, Image) for s in self.segments):
            raise BadEdit(f"only a user shows images, not the {self.role}.")

    @property
    def text(self) -> str:
        return "".join(s for s in self.segments if isinstance(s, str))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of a model: a question as a tuple of text and image segments, in order.

    history: the turns of a chat in front of it. `text` and `segments` are the question's alone,
    `images` are those of the whole chat.
    """

    segments: tuple[Segment, ...]
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", _segments(self.segments))
        if not self.history:
            return
        object.__setattr__(self, "history", tuple(self.history))
        for place, turn in enumerate(self.history):
            if not isinstance(turn, Turn):
                raise BadEdit(f"the history of a prompt holds turns, not {brief(turn)}.")
            if turn.role == "system" and place:
                raise BadEdit(f"turn {place} is of the system, which speaks first alone.")

    def __repr__(self) -> str:
        earlier = [f"history={self.history!r}"] if self.history else []
        return f"Prompt({', '.join([*map(repr, self.segments), *earlier])})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return without_unused(handler(source), "history")

    @classmethod
    def of(cls, text: str, image: Any = None) -> Prompt:
        """The common shape: at most one image, then text.

        image: whatever `Image.of` takes. Raises BadEdit for a text that is none, BadImage.
        """
        check_text("a prompt", text)
        return cls((text,) if image is None else (Image.of(image), text))

    @classmethod
    def from_any(cls, value: Any) -> Prompt:
        """The prompt itself, or a text as a prompt. Raises BadEdit."""
        if isinstance(value, Prompt):
            return value
        if isinstance(value, str):
            return cls.of(value)
        raise BadEdit(
            f"a prompt is given as {brief(value)}. Give Prompt.of(text, image), or a text."
        )

    @property
    def text(self) -> str:
        """The text segments of the question, joined."""
        return "".join(s for s in self.segments if isinstance(s, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """Those of all turns, in order."""
        parts = (*(s for t in self.history for s in t.segments), *self.segments)
        return tuple(s for s in parts if isinstance(s, Image))

    @property
    def alone(self) -> Prompt:
        """The question without the turns in front of it, about all pictures of the chat."""
        if not self.history:
            return self
        shown = (s for t in self.history for s in t.segments if isinstance(s, Image))
        return Prompt((*shown, *self.segments))

    def with_text(self, text: str) -> Prompt:
        """The same turns and images, in front of another text."""
        own = (s for s in self.segments if isinstance(s, Image))
        return replace(self, segments=(*own, text))


@dataclass(frozen=True, slots=True)
class Edit:
    """The papers' edit descriptor (v_e, x_e, y_e): `prompt` should be answered by `target`.

    `subject` is the span of the prompt's text that names the edited thing, `old` the answer that
    the edit replaces. A text is taken for a prompt without an image. Raises BadEdit for values of
    other types.
    """

    prompt: Prompt
    target: str
    subject: str | None = None
    old: str | None = None
    id: str = ""

    @property
    def modality(self) -> str:
        """`image` or `text`: whether the prompt has a picture."""
        return "image" if self.prompt.images else "text"

    def __post_init__(self) -> None:
        prompt: Any = self.prompt
        if not isinstance(prompt, Prompt):
            object.__setattr__(self, "prompt", Prompt.from_any(prompt))
        check_text("the target of an edit", self.target)
        check_text("the id of an edit", self.id)
        for name, value in (("subject", self.subject), ("old answer", self.old)):
            if value is not None:
                check_text(f"the {name} of an edit", value)

    def __repr__(self) -> str:
        rest = {"subject": self.subject, "old": self.old, "id": self.id}
        named = "".join(f", {k}={v!r}" for k, v in rest.items() if v)
        return f"Edit({self.prompt!r} -> {self.target!r}{named})"


@dataclass(frozen=True, slots=True)
class HopQuestion:
    """The second fact of a portability probe, which counts only if the base model knows it.

    `depends_on` as in `Probe`.
    """

    prompt: Prompt
    reference: str
    depends_on: tuple[str, ...] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return without_unused(handler(source), "depends_on")


@dataclass(frozen=True, slots=True)
class JudgeQuestion:
    """What a judge is asked about a picture.

    `question` does not name the target; `criterion` is the sentence that holds if the picture
    shows `target`. `old` is the answer before the edit, `category` the kind of fact (colour,
    maker, ...).
    """

    question: str
    criterion: str
    target: str
    old: str = ""
    category: str = ""


@dataclass(frozen=True, slots=True)
class StatedFact:
    """The fact of a drawn probe in words. What a model draws from it is the upper bound for edits.

    `oracle` is an image prompt that states the fact, in a wording that no other prompt uses;
    `rationale` is a text that states it, as the model itself would write one. `glue` is the text
    between a rationale and an image prompt, `instruct` the text before an image prompt that asks
    to draw "the above".
    """

    oracle: Prompt
    rationale: str
    glue: str = "\n\n"
    instruct: str = "Based on the above, generate an image: "


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's verdict on one picture.

    `answer` is what it read from the picture ("" if it abstains), `meets` whether the picture
    shows the target, None if it could not decide; `note` says why. `shown` is everything else that
    it reads from a picture, as (attribute, value) pairs, if it reads more than was asked.
    """

    judge: str
    answer: str = ""
    meets: bool | None = None
    note: str = ""
    shown: tuple[tuple[str, str], ...] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return without_unused(handler(source), "shown")


@dataclass(frozen=True, slots=True)
class Probe:
    """One question asked before and after an edit.

    `id` is unique within its case. `kind` names a kind of `core.kinds`, or the one that
    `custom_kind` describes. `group` splits a kind (`seen`, `near1`, ...; "" when the kind has one
    group). `reference` is the wanted answer (target kinds) or the gold answer (locality kinds; the
    score compares with the model's own earlier answer, the gold is used by teacher-forced scores).
    `cap` is the most tokens of a free text, which a line break does not end (0: a short answer, of
    at most 8 tokens more than the reference). A probe that asks for an image has a `view`, the
    question for the judge, and, if the image shows the edited fact, `aids`. A probe that asks for
    the rationale of an image has that image's `view`. `contrast` is an answer that competes with
    the reference, whose likelihood is recorded too ("": none). `depends_on` names the facts that
    its true answer depends on, in the words of `Case.states`.
    """

    id: str
    prompt: Prompt
    kind: str
    group: str = ""
    reference: str = ""
    hop: HopQuestion | None = None
    cap: int = 0
    view: JudgeQuestion | None = None
    aids: StatedFact | None = None
    custom_kind: ProbeKind | None = None
    contrast: str = ""
    depends_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        prompt: Any = self.prompt
        if not isinstance(prompt, Prompt):
            object.__setattr__(self, "prompt", Prompt.from_any(prompt))
        check_text("the id of a probe", self.id)
        check_text("the reference of a probe", self.reference)
        check_text("the contrast of a probe", self.contrast)
        custom = self.custom_kind
        if custom is None and self.kind not in KINDS:
            raise ValueError(
                f"probe {self.id} has the unknown kind '{self.kind}'. The kinds are "
                f"{', '.join(KINDS)}; describe another one with custom_kind."
            )
        if custom is not None and (self.kind in KINDS or custom.name != self.kind or custom.family):
            raise ValueError(
                f"probe {self.id}: custom_kind describes a kind that errata does not have, under "
                f"the name in `kind` ('{self.kind}', not '{custom.name}') and without a family."
            )

    @property
    def kind_info(self) -> ProbeKind:
        """The probe's kind: heading, side, output."""
        return self.custom_kind or KINDS[self.kind]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return without_unused(handler(source), "custom_kind", "contrast", "depends_on")


@dataclass(frozen=True, slots=True)
class Case:
    """One edit with its probes.

    `origin` is `counterfactual` (the base is right, the target false) or `correction` (the base is
    wrong, the target true). `scope` declares what the edit is about, as (attribute, value) pairs;
    `asked` names the attribute that the edit changes. `parts` are (name, value)
    pairs, such as a category: the cases of each value are also scored apart. `states` names the
    facts that the edit states, each as any text that is the same for the same fact of one thing.
    Two edits that state one fact contradict each other, and a question that depends on it lies in
    the scope of both: in a sequence the first are kept apart, the second are not scored.
    """

    id: str
    edit: Edit
    probes: tuple[Probe, ...]
    task: str = "vqa"
    origin: str = "counterfactual"
    asked: str = ""
    scope: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, str], ...] = ()
    states: tuple[str, ...] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return without_unused(handler(source), "states")

    @property
    def main(self) -> Probe | None:
        """The probe that asks the edit's own prompt; None where there is none."""
        return next((p for p in self.probes if p.kind_info.main), None)

    def with_probes(self, probes: tuple[Probe, ...]) -> Case:
        return replace(self, probes=probes)


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation under teacher forcing: ids, their log-probabilities, the argmax at each."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    argmax: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to one probe.

    `step` is -1 before any edit, else the protocol's step after which the probe was asked. `tag` is
    "" for the answer that counts, `own` for the one directly after the case's own edit; protocols
    that draw add controls of the unedited model: `pre`, and with the fact stated, in the prompt
    (`oracle`) or in a rationale (`ceiling`). `text` and `ids` end before the stop token; `stopped`
    is False if the cap was reached. `reference` are the scores of the probe's reference, `own`
    those of the model's answer before the edit, `contrast` those of the probe's contrast. `images`
    are the drawn pictures, one per seed, as paths in the run's folder, `verdicts` the judge's
    verdict on each. `top` holds the ten likeliest ids at every position of prompt and reference, in
    order, only if a requested metric needs it.
    """

    case: str
    probe: str
    step: int = -1
    tag: str = ""
    text: str = ""
    ids: tuple[int, ...] = ()
    stopped: bool = True
    reference: Scored | None = None
    own: Scored | None = None
    top: tuple[tuple[int, ...], ...] | None = None
    images: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict, hash=False)
    contrast: Scored | None = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return without_unused(handler(source), "contrast")

    def __repr__(self) -> str:
        told = [repr(self.text), *([] if self.stopped else ["stopped=False"])]
        for f in fields(self):
            value = getattr(self, f.name)
            plain = f.name in ("text", "ids", "stopped") or (f.name == "probe" and not self.case)
            if not plain and value != f.default and value not in ({}, ""):
                told.append(f"{f.name}={value!r}")
        return f"Answer({', '.join(told)})"


@dataclass(frozen=True, slots=True)
class Skip:
    """A row of the data that is left out, and why. Skips are counted and reported."""

    id: str
    reason: str


T = TypeVar("T")


def brief(value: Any) -> str:
    """A value of a wrong type, for a message."""
    text = " ".join(repr(value).split())
    return f"a {type(value).__name__} ({text[:60]}{'...' if len(text) > 60 else ''})"


def check_text(what: str, value: Any) -> None:
    """Raises BadEdit for anything but a text that can be written to a file."""
    if not isinstance(value, str):
        raise BadEdit(f"{what} is a text, not {brief(value)}.")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadEdit(
                f"{what} holds half of a surrogate pair: {value[:60]!r}. Correct its Unicode."
            ) from None


@functools.cache
def adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def to_json(value: Any) -> Any:
    """A JSON-ready value (dicts, lists, strings, numbers)."""
    cls: Any = type(value)
    return adapter(cls).dump_python(value, mode="json")


def from_json(cls: type[T], data: Any) -> T:
    """The inverse of `to_json`. Raises `pydantic.ValidationError`; `validation.why` reads it."""
    shape: Any = cls
    value: T = adapter(shape).validate_python(data)
    return value


def json_schema(cls: type) -> dict[str, Any]:
    return adapter(cls).json_schema()


def digest(value: Any) -> str:
    """sha256 over the canonical JSON of a value of this module, or of plain JSON data."""
    data = value if isinstance(value, (dict, list, str, int, float)) else to_json(value)
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
