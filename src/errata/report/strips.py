"""Pictures for the gallery: what one image prompt gave before, after each way to draw, and at best.

Of every question the picture of the first seed is shown, with its own verdict and how many of all
seeds agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from errata.core.kinds import DRAWN_KINDS
from errata.core.text import mentions, normalise
from errata.core.types import Answer, Case, Image, Probe, Verdict
from errata.evaluation.run_folder import RunFolder

#: How the controls are called, in the order of the columns; edited ones stand behind `pre`.
BEFORE, ORACLE, CEILING = "before", "fact in the prompt", "fact in a rationale"


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """`data` is a PNG data URI, or None with the reason in `problem`."""

    uri: str
    data: str | None
    problem: str = ""


Open = Callable[[Image], Thumbnail]


@dataclass(frozen=True, slots=True)
class StripPicture:
    """One picture: whose it is (`method`, "" for a control), under which heading, its verdict.

    `right` of `judged` pictures are as they should be, out of `of` that were drawn.
    """

    heading: str
    method: str
    picture: Thumbnail
    verdict: str
    read: str
    right: int
    judged: int
    of: int


@dataclass(frozen=True, slots=True)
class Strip:
    """The pictures of one drawn probe, and the rationales that some were drawn from."""

    kind: str
    group: str
    prompt: str
    question: str
    wanted: str
    keep: bool
    shown: tuple[StripPicture, ...]
    rationales: tuple[tuple[str, str, bool | None], ...]


@dataclass(frozen=True, slots=True)
class StripRun:
    """A run that may have drawn a case: its method's label and its protocol."""

    method: str
    protocol: str
    run: RunFolder

    @property
    def way(self) -> str:
        """direct, or reasoning: and its variant."""
        name, _, rest = self.protocol.partition(":")
        variant = rest.partition(":")[0]
        return f"{name}: {variant}" if variant and not variant[0].isdigit() else name


def strips(case: Case, runs: Sequence[StripRun], open: Open) -> tuple[Strip, ...]:
    """One strip per drawn probe of a case, where any run drew it."""
    told = [t for t in runs if t.run.cases.get(case.id) == case]
    found = [_strip(case, p, told, open) for p in case.probes if p.kind in DRAWN_KINDS]
    return tuple(s for s in found if s is not None)


def _strip(case: Case, probe: Probe, told: Sequence[StripRun], open: Open) -> Strip | None:
    key = (case.id, probe.id)
    edited = [t for t in told if (*key, "") in t.run.answers]
    if not edited or probe.view is None:
        return None
    direct_first = sorted(told, key=lambda t: t.way.startswith("reasoning"))
    shown = []
    for heading, tag in ((BEFORE, "pre"), (ORACLE, "oracle"), (CEILING, "ceiling")):
        have = next((t for t in direct_first if (*key, tag) in t.run.answers), None)
        if have is not None:
            shown.append(_shown(heading, "", probe, have.run, tag, key[0], open))
    after = [_shown(t.way, t.method, probe, t.run, "", key[0], open) for t in edited]
    at = sum(s.heading == BEFORE for s in shown)
    return Strip(
        probe.kind,
        probe.group.replace("_", " ").replace("stage", "stage "),
        probe.prompt.text.strip(),
        probe.view.question,
        probe.view.target,
        probe.kind == "i_locality",
        (*shown[:at], *after, *shown[at:]),
        tuple(_rationales(case, probe, edited)),
    )


def _shown(
    heading: str, method: str, probe: Probe, run: RunFolder, tag: str, case: str, open: Open
) -> StripPicture:
    answer = run.answers[case, probe.id, tag]
    marks = _marks(probe, answer, run.before.get((case, probe.id)))
    known = [m for m in marks if m is not None]
    first = answer.verdicts[0] if answer.verdicts else Verdict("")
    verdict = "unscored" if not marks or marks[0] is None else "right" if marks[0] else "wrong"
    return StripPicture(
        heading,
        method,
        open(Image(str(run.path / answer.images[0])))
        if answer.images
        else Thumbnail("", None, str(answer.notes.get("unscored", "no picture"))),
        verdict,
        first.answer or first.note,
        sum(known),
        len(known),
        len(answer.images),
    )


def _marks(probe: Probe, answer: Answer, before: Answer | None) -> list[bool | None]:
    """Whether each picture is as it should be: shows the target, or what it showed before."""
    if probe.kind != "i_locality":
        return [v.meets for v in answer.verdicts]
    old = before.verdicts if before is not None else ()
    return [_same(a, b) for a, b in zip(old, answer.verdicts, strict=False)]


def _same(a: Verdict, b: Verdict) -> bool | None:
    if a.meets is None or b.meets is None:
        return None
    if a.answer and b.answer:
        return normalise(a.answer) == normalise(b.answer)
    return a.meets == b.meets


def _rationales(
    case: Case, probe: Probe, edited: Sequence[StripRun]
) -> Iterator[tuple[str, str, bool | None]]:
    """(method, text, whether it states the target), of runs that drew from a rationale."""
    asked = next((p for p in case.probes if p.kind == "reasoning" and p.group == probe.group), None)
    for told in edited:
        if asked is None or probe.kind != "vqa" or not told.way.startswith("reasoning"):
            continue
        answer = told.run.answers.get((case.id, asked.id, ""))
        if answer is not None and answer.text:
            yield told.method, answer.text, mentions(answer.text, asked.reference)
