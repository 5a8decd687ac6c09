"""The data types that all of errata uses: prompts, edits, probes, cases and answers.

Frozen, hashable, free of torch, and equal after a round trip through JSON. `to_json` and
`from_json` are the only way these values reach a file; `json_schema` is what docs/schemas is
generated from.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from errata.core.kinds import KINDS, ProbeKind

if TYPE_CHECKING:
    from pydantic import TypeAdapter


@dataclass(frozen=True, slots=True)
class Image:
    """An image by reference: a file path, or `<scheme>:<spec>` for one that a benchmark renders.

    `sha256` is the hash of the file's bytes, or of the spec for a rendered image; None until known.
    """

    uri: str
    sha256: str | None = None

    def __repr__(self) -> str:
        return f"Image({self.uri!r})"


Segment = str | Image


@dataclass(frozen=True, slots=True)
class Prompt:
    """The input of a model: a tuple of text and image segments, in order."""

    segments: tuple[Segment, ...]

    def __repr__(self) -> str:
        return f"Prompt({', '.join(map(repr, self.segments))})"

    @classmethod
    def of(cls, text: str, image: Image | str | None = None) -> Prompt:
        """The common shape: at most one image, then text."""
        if image is None:
            return cls((text,))
        return cls((Image(image) if isinstance(image, str) else image, text))

    @property
    def text(self) -> str:
        """All text segments, joined."""
        return "".join(s for s in self.segments if isinstance(s, str))

    @property
    def images(self) -> tuple[Image, ...]:
        return tuple(s for s in self.segments if isinstance(s, Image))

    def with_text(self, text: str) -> Prompt:
        """The same images, in front of another text."""
        return Prompt((*self.images, text))


@dataclass(frozen=True, slots=True)
class Edit:
    """The papers' edit descriptor (v_e, x_e, y_e): `prompt` should be answered by `target`.

    `subject` is the span of the prompt's text that names the edited thing, `old` the answer that
    the edit replaces.
    """

    prompt: Prompt
    target: str
    subject: str | None = None
    old: str | None = None
    id: str = ""

    def __repr__(self) -> str:
        rest = {"subject": self.subject, "old": self.old, "id": self.id}
        named = "".join(f", {k}={v!r}" for k, v in rest.items() if v)
        return f"Edit({self.prompt!r} -> {self.target!r}{named})"


@dataclass(frozen=True, slots=True)
class HopQuestion:
    """The first hop of a portability probe, which counts only if the base model answers it."""

    prompt: Prompt
    reference: str


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
    shows the target, None if it could not decide; `note` says why.
    """

    judge: str
    answer: str = ""
    meets: bool | None = None
    note: str = ""


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
    the rationale of an image has that image's `view`.
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

    def __post_init__(self) -> None:
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
        """JSON without `custom_kind` where there is none: a plan keeps its bytes."""
        from pydantic_core import core_schema

        def write(probe: Probe, to_dict: Any) -> Any:
            data = to_dict(probe)
            if data["custom_kind"] is None:
                del data["custom_kind"]
            return data

        schema = handler(source)
        schema["serialization"] = core_schema.wrap_serializer_function_ser_schema(write)
        return schema


@dataclass(frozen=True, slots=True)
class Case:
    """One edit with its probes.

    `origin` is `counterfactual` (the base is right, the target false) or `correction` (the base is
    wrong, the target true). `scope` declares what the edit is about, as (attribute, value) pairs;
    `asked` names the attribute that the edit changes. `parts` are (name, value)
    pairs, such as a category: the cases of each value are also scored apart.
    """

    id: str
    edit: Edit
    probes: tuple[Probe, ...]
    task: str = "vqa"
    origin: str = "counterfactual"
    asked: str = ""
    scope: tuple[tuple[str, str], ...] = ()
    parts: tuple[tuple[str, str], ...] = ()

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
    those of the model's answer before the edit. `images` are the drawn pictures, one per seed, as
    paths in the run's folder, `verdicts` the judge's verdict on each. `top` holds the ten likeliest
    ids at every position of prompt and reference, in order, only if a requested metric needs it.
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


@dataclass(frozen=True, slots=True)
class Skip:
    """A row of the data that is left out, and why. Skips are counted and reported."""

    id: str
    reason: str


T = TypeVar("T")


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def to_json(value: Any) -> Any:
    """A JSON-ready value (dicts, lists, strings, numbers)."""
    cls: Any = type(value)
    return _adapter(cls).dump_python(value, mode="json")


def from_json(cls: type[T], data: Any) -> T:
    """The inverse of `to_json`. Raises `pydantic.ValidationError` on a wrong shape."""
    shape: Any = cls
    value: T = _adapter(shape).validate_python(data)
    return value


def json_schema(cls: type) -> dict[str, Any]:
    return _adapter(cls).json_schema()


def digest(value: Any) -> str:
    """sha256 over the canonical JSON of a value of this module, or of plain JSON data."""
    data = value if isinstance(value, (dict, list, str, int, float)) else to_json(value)
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
