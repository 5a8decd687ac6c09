"""Cases for the gallery: what was asked, wanted and answered, by every method and protocol."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from errata.core import registry
from errata.core.errors import BadImage
from errata.core.metric import Metric
from errata.core.types import Answer, Case, Image, Probe, Prompt
from errata.evaluation.run_folder import RunFolder, read_run
from errata.report.results import Result, Setting
from errata.report.strips import Strip, StripRun, Thumbnail, strips
from errata.report.tables import COLUMNS

#: An album with pictures that were drawn shows fewer cases: each has dozens of pictures.
DRAWN = 24
SIDE = 160
"""Larger pictures are scaled down to this many pixels, and to 256 colours: they are thumbnails."""


@dataclass(frozen=True, slots=True)
class GalleryAnswer:
    """One method's answer. `right` is None where exact does not score it."""

    method: str
    protocol: str
    text: str
    right: bool | None
    capped: bool
    own: str | None
    """The answer right after the case's own edit, where the later edits changed it."""


@dataclass(frozen=True, slots=True)
class GalleryQuestion:
    kind: str
    heading: str
    group: str
    text: str
    pictures: tuple[Thumbnail, ...]
    keep: bool
    wanted: str
    before: str
    said: tuple[GalleryAnswer, ...]

    @property
    def by_protocol(self) -> dict[str, list[GalleryAnswer]]:
        """The answers by protocol, in the order of the runs."""
        found: dict[str, list[GalleryAnswer]] = {}
        for said in self.said:
            found.setdefault(said.protocol, []).append(said)
        return found


@dataclass(frozen=True, slots=True)
class CaseCard:
    """One case of one backbone and benchmark."""

    id: str
    where: str
    prompt: str
    pictures: tuple[Thumbnail, ...]
    target: str
    old: str
    task: str
    origin: str
    questions: tuple[GalleryQuestion, ...]
    strips: tuple[Strip, ...] = ()


@dataclass(slots=True)
class _Album:
    """The runs that share a backbone and a benchmark, and so their untouched answers."""

    where: str
    runs: list[tuple[Setting, Result, RunFolder]] = field(default_factory=list)

    @property
    def draws(self) -> bool:
        return any(a.images for _, _, run in self.runs for a in run.answers.values())


def cards(settings: Sequence[Setting], limit: int) -> tuple[list[CaseCard], int]:
    """At most `limit` cards and the number of cases they were chosen from.

    Cases that most protocols asked come first; among those, evenly spaced in the plan's order, so
    that the choice does not depend on any answer.
    """
    albums: dict[tuple[str, str], _Album] = {}
    for setting in settings:
        album = albums.setdefault(
            (setting.fingerprint, setting.benchmark), _Album(setting.benchmark)
        )
        album.runs += [(setting, r, read_run(r.path)) for r in setting.results]
    exact: Metric = registry.load("metrics", "exact")()
    share = -(-limit // max(len(albums), 1))
    found: list[CaseCard] = []
    total = 0
    for album in albums.values():
        most = min(share, DRAWN) if album.draws else share
        chosen, available = _choose(album, most)
        total += available
        pictures = Thumbnails()
        found += [_card(case, album, exact, pictures) for case in chosen]
    return found[:limit], total


def _choose(album: _Album, limit: int) -> tuple[list[Case], int]:
    seen: dict[Case, int] = {}
    for _, _, run in album.runs:
        for ids in run.lanes.values():
            for case in ids:
                seen[run.cases[case]] = seen.get(run.cases[case], 0) + 1
    most = max(seen.values(), default=0)
    pool = sorted((c for c, n in seen.items() if n == most), key=lambda c: c.id)
    if len(pool) <= limit:
        return pool, len(seen)
    return [pool[i * len(pool) // limit] for i in range(limit)], len(seen)


def _card(case: Case, album: _Album, exact: Metric, pictures: Thumbnails) -> CaseCard:
    edit = case.edit
    shown = frozenset(image.uri for image in edit.prompt.images)
    return CaseCard(
        id=case.id,
        where=album.where,
        prompt=edit.prompt.text.strip(),
        pictures=pictures.of(edit.prompt),
        target=edit.target.strip(),
        old=(edit.old or "").strip(),
        task=case.task,
        origin=case.origin,
        questions=tuple(_questions(case, album, exact, pictures, shown)),
        strips=strips(
            case,
            [StripRun(result.label, setting.protocol, run) for setting, result, run in album.runs],
            pictures.one,
        ),
    )


def _questions(
    case: Case, album: _Album, exact: Metric, pictures: Thumbnails, shown: frozenset[str]
) -> Iterator[GalleryQuestion]:
    for probe in case.probes:
        if probe.kind_info.drawn:
            continue
        before: Answer | None = None
        said = []
        for setting, result, run in album.runs:
            if run.cases.get(case.id) != case or (case.id, probe.id, "") not in run.answers:
                continue
            before = run.before[case.id, probe.id]
            said.append(_said(setting, result, run, probe, exact, case.id))
        if before is None:
            continue
        keep = probe.kind_info.keeps_answer
        yield GalleryQuestion(
            kind=probe.kind,
            heading=COLUMNS.get(probe.kind, (probe.kind.replace("_", " "), ""))[0],
            group=probe.group.replace("_", " "),
            text=probe.prompt.text.strip(),
            pictures=()
            if {i.uri for i in probe.prompt.images} <= shown
            else pictures.of(probe.prompt),
            keep=keep,
            wanted=before.text if keep else probe.reference.strip(),
            before=before.text,
            said=tuple(said),
        )


def _said(
    setting: Setting, result: Result, run: RunFolder, probe: Probe, exact: Metric, case: str
) -> GalleryAnswer:
    before, after = run.before[case, probe.id], run.answers[case, probe.id, ""]
    own = run.answers.get((case, probe.id, "own"))
    failed = after.notes.get("unscored")
    score = None if failed else exact.score(before, after, probe)
    return GalleryAnswer(
        method=result.label,
        protocol=setting.protocol,
        text=str(failed) if failed else after.text,
        right=None if score is None else score == 1.0,
        capped=not after.stopped,
        own=own.text if own is not None and own.text != after.text else None,
    )


class Thumbnails:
    """Thumbnails by address, each made once."""

    def __init__(self) -> None:
        self._known: dict[Image, Thumbnail] = {}

    def of(self, prompt: Prompt) -> tuple[Thumbnail, ...]:
        return tuple(self.one(image) for image in prompt.images)

    def one(self, image: Image) -> Thumbnail:
        if image not in self._known:
            self._known[image] = thumbnail(image)
        return self._known[image]


def thumbnail(image: Image) -> Thumbnail:
    """A PNG data URI of at most SIDE x SIDE pixels, or the reason why there is none."""
    from errata.io.images import load_image

    try:
        picture = load_image(image)
    except BadImage as e:
        return Thumbnail(image.uri, None, str(e))
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE))
        picture = picture.quantize(256)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return Thumbnail(
        image.uri, "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    )
