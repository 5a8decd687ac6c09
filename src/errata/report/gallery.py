"""Cases in full for the report: question, target, and the answer of every method and protocol.

An answer in text is right or wrong by the metric `exact`. A generated image is right or wrong by
its judge: of each image prompt the image of the first seed is shown, with the controls beside it,
and how many of all seeds are right.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from errata.core import registry
from errata.core.errors import BadImage
from errata.core.files import exists
from errata.core.measure.judge import same_verdict
from errata.core.measure.metric import Metric
from errata.core.text import mentions
from errata.core.types import Answer, Case, Image, Probe, Prompt, Verdict
from errata.evaluation.run_folder import RunFolder, read_run
from errata.io.images import split_uri
from errata.report.results import Result, Setting

MOST_WITH_IMAGES = 24
"""Most cases of an album with generated images: each case has dozens of them."""

SIDE = 160
"""Larger images are scaled down to this many pixels and 256 colours."""

OUTSIDE = "it lies outside the run and the benchmark's root: report --root DIR shows it"

MOST_OF_PICTURES = 24_000_000
"""Characters of pictures in a report; later cases are shown without theirs."""

TOO_MANY = f"left out: the report holds {MOST_OF_PICTURES // 1_000_000} MB of pictures already"

#: Headings of the controls of the unedited model, in the order of the columns.
BEFORE, ORACLE, CEILING = "before", "fact in the prompt", "fact in a rationale"


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """`data` is a PNG data URI, or None with the reason in `problem`."""

    uri: str
    data: str | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class GalleryAnswer:
    """One method's answer. `right` is None where `exact` does not score it."""

    method: str
    protocol: str
    text: str
    right: bool | None
    capped: bool
    own: str | None
    """The answer right after the case's own edit, where later edits changed it."""


@dataclass(frozen=True, slots=True)
class GalleryQuestion:
    """One probe. keep: the answer should stay as it was."""

    kind: str
    heading: str
    group: str
    group_meaning: str
    text: str
    pictures: tuple[Thumbnail, ...]
    keep: bool
    wanted: str
    before: str
    answers: tuple[GalleryAnswer, ...]

    @property
    def by_protocol(self) -> dict[str, list[GalleryAnswer]]:
        """The answers by protocol, in the order of the runs."""
        answers: dict[str, list[GalleryAnswer]] = {}
        for answer in self.answers:
            answers.setdefault(answer.protocol, []).append(answer)
        return answers


@dataclass(frozen=True, slots=True)
class StripImage:
    """One generated image; `method` is "" for a control of the unedited model.

    verdict: of the image itself; `right` of the `judged` images of all `seeds` are right.
    """

    heading: str
    method: str
    picture: Thumbnail
    verdict: str
    read: str
    right: int
    judged: int
    seeds: int


@dataclass(frozen=True, slots=True)
class ImageStrip:
    """The images of one probe; `rationales` are (method, text, whether it states the target)."""

    kind: str
    group: str
    prompt: str
    question: str
    wanted: str
    keep: bool
    images: tuple[StripImage, ...]
    rationales: tuple[tuple[str, str, bool | None], ...]


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
    strips: tuple[ImageStrip, ...] = ()

    @property
    def anchor(self) -> str:
        """What a link to the case ends with; other cases of the report have another one."""
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", self.id).strip("-")[:60]
        return f"case-{name}-{zlib.crc32(f'{self.where} {self.id}'.encode()):08x}"

    @property
    def tally(self) -> list[tuple[str, int, int]]:
        """(method, right answers, scored answers) in text, in the order of the runs."""
        marks: dict[str, list[bool]] = {}
        for answer in (a for q in self.questions for a in q.answers):
            scored = marks.setdefault(answer.method, [])
            scored += [] if answer.right is None else [answer.right]
        return [(method, sum(scored), len(scored)) for method, scored in marks.items()]


@dataclass(frozen=True, slots=True)
class AlbumRun:
    """One run with its label and protocol."""

    method: str
    protocol: str
    run: RunFolder

    @property
    def way(self) -> str:
        """`direct`, or `reasoning` and its variant."""
        name, _, rest = self.protocol.partition(":")
        variant = rest.partition(":")[0]
        return f"{name}: {variant}" if variant and not variant[0].isdigit() else name


class Thumbnails:
    """Thumbnails by image, each made once.

    A plan comes from a file, and may name any picture of this machine. Shown are pictures below
    `trusted` (the runs, and the root that the user names), and below `recorded` (where the runs say
    that their pictures were) if they have the sha256 that the plan recorded.
    """

    def __init__(self, trusted: Iterable[Path] = (), recorded: Iterable[Path] = ()) -> None:
        self.trusted = [folder.resolve() for folder in trusted]
        self.recorded = [folder.resolve() for folder in recorded]
        self._made: dict[Image, Thumbnail] = {}
        self._left = MOST_OF_PICTURES

    def _may_show(self, image: Image) -> bool:
        if split_uri(image.uri)[0] is not None:
            return True
        try:
            path = Path(image.uri).resolve()
        except (OSError, RuntimeError, ValueError):
            return False
        if not exists(path):
            return True  # the reader is told that it is gone
        folders = [*self.trusted, *(self.recorded if image.sha256 is not None else ())]
        return any(path.is_relative_to(folder) for folder in folders)

    def of(self, prompt: Prompt) -> tuple[Thumbnail, ...]:
        return tuple(self.one(image) for image in prompt.images)

    def one(self, image: Image) -> Thumbnail:
        if image not in self._made:
            self._made[image] = made = self._make(image)
            self._left -= len(made.data or "")
        return self._made[image]

    def _make(self, image: Image) -> Thumbnail:
        if self._left <= 0:
            return Thumbnail(image.shown, None, TOO_MANY)
        return thumbnail(image) if self._may_show(image) else Thumbnail(image.uri, None, OUTSIDE)


@dataclass
class _Album:
    """The runs on one backbone and benchmark: their answers before any edit are the same."""

    where: str
    runs: list[AlbumRun] = field(default_factory=list)
    root: Path | None = None

    @cached_property
    def pictures(self) -> Thumbnails:
        roots = {str(one.run.manifest.get("root") or "") for one in self.runs} - {""}
        trusted = [*(one.run.path for one in self.runs), *([self.root] if self.root else ())]
        return Thumbnails(trusted, map(Path, roots))

    @property
    def draws(self) -> bool:
        return any(a.images for x in self.runs for a in x.run.answers.values())


def cards(
    settings: Sequence[Setting], limit: int, root: Path | None = None
) -> tuple[list[CaseCard], int]:
    """At most `limit` cards, and the number of cases that they were chosen from.

    root: folder of the benchmark's pictures, which may be shown.

    Cases that most runs asked come first; among those, evenly spaced by id, so that the choice does
    not depend on any answer.
    """
    albums: dict[tuple[str, str], _Album] = {}
    for setting in settings:
        key = setting.fingerprint, setting.benchmark
        album = albums.setdefault(key, _Album(setting.benchmark, root=root))
        album.runs += [_album_run(setting, result) for result in setting.results]
    exact: Metric = registry.load("metrics", "exact")()
    share = -(-limit // max(len(albums), 1))
    chosen: list[CaseCard] = []
    total = 0
    for album in albums.values():
        cases, available = _choose(album, min(share, MOST_WITH_IMAGES) if album.draws else share)
        total += available
        chosen += [_card(case, album, exact) for case in cases]
    return chosen[:limit], total


def _album_run(setting: Setting, result: Result) -> AlbumRun:
    run = read_run(result.path)
    run.asked()  # raises BadRun where an answer is missing
    return AlbumRun(result.label, setting.protocol, run)


def _choose(album: _Album, limit: int) -> tuple[list[Case], int]:
    """At most `limit` cases, and the number of all cases."""
    counts: dict[Case, int] = {}
    for one in album.runs:
        for ids in one.run.lanes.values():
            for case in ids:
                counts[one.run.cases[case]] = counts.get(one.run.cases[case], 0) + 1
    most = max(counts.values(), default=0)
    pool = sorted((c for c, n in counts.items() if n == most), key=lambda c: c.id)
    if len(pool) <= limit:
        return pool, len(counts)
    return [pool[i * len(pool) // limit] for i in range(limit)], len(counts)


def _card(case: Case, album: _Album, exact: Metric) -> CaseCard:
    edit = case.edit
    return CaseCard(
        id=case.id,
        where=album.where,
        prompt=edit.prompt.text.strip(),
        pictures=album.pictures.of(edit.prompt),
        target=edit.target.strip(),
        old=(edit.old or "").strip(),
        task=case.task,
        origin=case.origin,
        questions=tuple(_questions(case, album, exact)),
        strips=tuple(_strips(case, album)),
    )


# -- answers in text --------------------------------------------------------------------------


def _questions(case: Case, album: _Album, exact: Metric) -> Iterator[GalleryQuestion]:
    in_header = {image.uri for image in case.edit.prompt.images}
    for probe in case.probes:
        kind = probe.kind_info
        asked = [
            one
            for one in album.runs
            if one.run.cases.get(case.id) == case and (case.id, probe.id, "") in one.run.answers
        ]
        if kind.drawn or not asked:
            continue
        before = asked[-1].run.before[case.id, probe.id].text
        repeated = {image.uri for image in probe.prompt.images} <= in_header
        yield GalleryQuestion(
            kind=probe.kind,
            heading=kind.heading,
            group=probe.group.replace("_", " "),
            group_meaning=kind.group_meaning(probe.group),
            text=probe.prompt.text.strip(),
            pictures=() if repeated else album.pictures.of(probe.prompt),
            keep=kind.keeps_answer,
            wanted=before if kind.keeps_answer else probe.reference.strip(),
            before=before,
            answers=tuple(_answer(one, probe, exact, case.id) for one in asked),
        )


def _answer(one: AlbumRun, probe: Probe, exact: Metric, case: str) -> GalleryAnswer:
    before, after = one.run.before[case, probe.id], one.run.answers[case, probe.id, ""]
    own = one.run.answers.get((case, probe.id, "own"))
    failed = after.notes.get("unscored")
    score = None if failed else exact.score(before, after, probe)
    return GalleryAnswer(
        method=one.method,
        protocol=one.protocol,
        text=str(failed) if failed else after.text,
        right=None if score is None else score == 1.0,
        capped=not after.stopped,
        own=own.text if own is not None and own.text != after.text else None,
    )


# -- generated images -------------------------------------------------------------------------


def _strips(case: Case, album: _Album) -> Iterator[ImageStrip]:
    """One strip per probe that asks for an image and that some run answered."""
    runs = [one for one in album.runs if one.run.cases.get(case.id) == case]
    for probe in case.probes:
        edited = [one for one in runs if (case.id, probe.id, "") in one.run.answers]
        if probe.kind_info.drawn and edited and probe.view is not None:
            yield ImageStrip(
                probe.kind,
                probe.group.replace("_", " ").replace("stage", "stage "),
                probe.prompt.text.strip(),
                probe.view.question,
                probe.view.target,
                probe.kind_info.side == "locality",
                tuple(_images(case.id, probe, runs, edited, album.pictures)),
                tuple(_rationales(case, probe, edited)),
            )


def _images(
    case: str,
    probe: Probe,
    runs: Sequence[AlbumRun],
    edited: Sequence[AlbumRun],
    pictures: Thumbnails,
) -> Iterator[StripImage]:
    """The image before the edit, one per method, then the other controls."""
    direct_first = sorted(runs, key=lambda one: one.way.startswith("reasoning"))

    def control(heading: str, tag: str) -> Iterator[StripImage]:
        for one in direct_first:
            if (case, probe.id, tag) in one.run.answers:
                yield _image(heading, "", probe, one.run, tag, case, pictures)
                return

    yield from control(BEFORE, "pre")
    for one in edited:
        yield _image(one.way, one.method, probe, one.run, "", case, pictures)
    yield from control(ORACLE, "oracle")
    yield from control(CEILING, "ceiling")


def _image(
    heading: str,
    method: str,
    probe: Probe,
    run: RunFolder,
    tag: str,
    case: str,
    pictures: Thumbnails,
) -> StripImage:
    answer = run.answers[case, probe.id, tag]
    marks = _marks(probe, answer, run.before.get((case, probe.id)))
    judged = [m for m in marks if m is not None]
    first = answer.verdicts[0] if answer.verdicts else Verdict("")
    verdict = "unscored" if not marks or marks[0] is None else "right" if marks[0] else "wrong"
    return StripImage(
        heading,
        method,
        pictures.one(Image(str(run.path / answer.images[0])))
        if answer.images
        else Thumbnail("", None, str(answer.notes.get("unscored", "no picture"))),
        verdict,
        first.answer or first.note,
        sum(judged),
        len(judged),
        len(answer.images),
    )


def _marks(probe: Probe, answer: Answer, before: Answer | None) -> list[bool | None]:
    """Per seed: whether the image shows the target, or for locality what it showed before."""
    if probe.kind_info.side == "target":
        return [v.meets for v in answer.verdicts]
    old = before.verdicts if before is not None else ()
    return [same_verdict(a, b) for a, b in zip(old, answer.verdicts, strict=False)]


def _rationales(
    case: Case, probe: Probe, edited: Sequence[AlbumRun]
) -> Iterator[tuple[str, str, bool | None]]:
    """(method, text, whether it states the target) of the runs that drew from a rationale."""
    rationale = next(
        (p for p in case.probes if p.kind == "reasoning" and p.group == probe.group), None
    )
    if rationale is None or probe.kind != "vqa":
        return
    for one in edited:
        answer = one.run.answers.get((case.id, rationale.id, ""))
        if one.way.startswith("reasoning") and answer is not None and answer.text:
            yield one.method, answer.text, mentions(answer.text, rationale.reference)


def thumbnail(image: Image) -> Thumbnail:
    """A PNG data URI of at most SIDE x SIDE pixels, or the reason why there is none."""
    from errata.io.images import load_image

    try:
        picture = load_image(image)
    except BadImage as e:
        return Thumbnail(image.shown, None, str(e))
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE))
        picture = picture.quantize(256)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return Thumbnail(
        image.shown, "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    )
