"""What the page does, without the page: ask, correct, compare, take back, save and load.

A `Workbench` holds the model and the folder of patches; each visitor has a `Session` with the
corrections that are in use. One thing runs at a time. Nothing of the model is written.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from errata.core.editor import Editor
from errata.core.errors import BadEdit, BadOutput, BadSpec
from errata.core.formats.counts import counted
from errata.core.model.generation import image_generator
from errata.core.patch import Patch, remarks, same_prompt
from errata.core.state import State
from errata.core.types import Edit, Image, Prompt
from errata.evaluation.answers import ask_prompts
from errata.evaluation.verify import last_of_each
from errata.patches.stack import stacked
from errata.serve.catalogue import PatchCatalogue, check_name
from errata.serve.edits import CAP, UNRELATED, EditMaker, TriedEdit, WantedEdit, rephrased
from errata.serve.pictures import checked_image
from errata.serve.settings import Limits
from errata.ui.choices import AUTOMATIC, EVERYWHERE, methods, reaches, scopes_for
from errata.ui.examples import Example, examples_of
from errata.ui.outcome import Answered, DrawnTriple, Outcome, Way

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.serve.edits import Collect

VISITORS = 32  # sessions that are remembered; the oldest is forgotten
QUESTIONS = 12  # that one edit is looked at with
LETTERS = 2000  # of a question or an answer
ANSWER = "{answer}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """A correction as it is typed in; the picture is that of the session.

    rephrase: the question in other words. near: further questions about the same picture, one a
    line; unrelated: questions without a picture. drawing: what to draw; oracle: the same with the
    new fact stated, where ANSWER stands for the target. Empty ones are filled in.
    """

    question: str
    target: str
    rephrase: str = ""
    near: str = ""
    unrelated: str = ""
    method: str = AUTOMATIC
    reach: str = AUTOMATIC
    subject: str = ""
    drawing: str = ""
    oracle: str = ""
    seed: int = 0

    @property
    def stated(self) -> str:
        """What is drawn to see the new fact as the model would draw it."""
        target = self.target.strip()
        if self.oracle.strip():
            return self.oracle.strip().replace(ANSWER, target)
        return f"{self.drawing.strip().rstrip('.')}. {self.question.strip()} {target}"


@dataclass(frozen=True)
class Correction:
    """A patch of a session. saved: its name in the folder, or "". on: whether it is in use."""

    number: int
    patch: Patch
    words: str
    way: str
    saved: str = ""
    on: bool = True

    @property
    def label(self) -> str:
        saved = f", saved as {self.saved}" if self.saved else ""
        return f"{self.number}. {self.words} ({self.way}{saved})"


class Workbench:
    """folder: where patches are saved and loaded; None: nowhere. editor, state: what is taken where
    no method is named. collect: makes the states of methods that are cheap to prepare.
    """

    def __init__(
        self, bb: Backbone, *, folder: Path | None = None, limits: Limits | None = None,
        editor: Editor | None = None, state: State | None = None, collect: Collect | None = None,
    ) -> None:  # fmt: skip
        self.bb, self.folder = bb, folder
        self.limits = limits or Limits()
        self.catalogue = PatchCatalogue(bb, bb.name, self.limits, given={}, folder=folder)
        self.maker = EditMaker(
            bb, self.catalogue, editor=editor, state=state, cap=CAP, collect=collect
        )
        self.sees, self.draws = ("image" in bb.capabilities), ("draw" in bb.capabilities)
        self.examples = examples_of(bb)
        self.methods = methods(bb, None if editor is None else editor.name)
        self.reaches = reaches()
        self.lock = threading.RLock()
        self.sessions: OrderedDict[str, Session] = OrderedDict()

    def session(self, visitor: str) -> Session:
        """The session of a visitor, made at the first call."""
        with self.lock:
            if visitor not in self.sessions:
                self.sessions[visitor] = Session(self)
                if len(self.sessions) > VISITORS:
                    self.sessions.popitem(last=False)
            self.sessions.move_to_end(visitor)
            return self.sessions[visitor]

    def forget(self, visitor: str) -> None:
        with self.lock:
            self.sessions.pop(visitor, None)

    def saved(self) -> list[str]:
        """The names of the patches in the folder."""
        return sorted(self.catalogue.places())


class Session:
    """One visitor's corrections, oldest first. picture: in front of the question that is asked."""

    def __init__(self, workbench: Workbench) -> None:
        self.workbench, self.bb = workbench, workbench.bb
        self.picture: Image | None = None
        self.example: Example | None = None
        self.corrections: list[Correction] = []
        self.made = 0

    # -- asking -------------------------------------------------------------------------------

    def choose(self, number: int) -> Request:
        """Takes an example, by its place; what is typed in for it."""
        example = self.workbench.examples[number]
        self.picture, self.example = example.picture, example
        mine = tuple(example.prompt.images)
        return Request(
            question=example.question,
            target=example.target,
            rephrase=example.rephrase,
            near=_lines(p for p in example.near if p.images == mine),
            unrelated=_lines(p for p in example.unrelated if not p.images),
            drawing=example.drawing,
            oracle=re.sub(rf"\b{re.escape(example.target)}\b", ANSWER, example.oracle),
        )

    def upload(self, data: bytes) -> None:
        """Takes the bytes of a picture file. Raises Refused, UserError."""
        if not self.workbench.sees:
            raise BadEdit(f"{self.bb.name} takes no pictures.")
        self.picture, self.example = checked_image(data, self.workbench.limits), None

    def remove_picture(self) -> None:
        self.picture, self.example = None, None

    @property
    def live(self) -> list[Patch]:
        """The patches in use."""
        return [c.patch for c in self.corrections if c.on]

    def notes(self) -> list[str]:
        """What there is to know about the corrections in use, a line each."""
        return remarks(self.live, self.live)

    def ask(self, question: str) -> str:
        """The answer with the corrections in use. Raises UserError."""
        prompt = self._prompt(question)
        with self.workbench.lock, self.bb.only(*self._as_one(self.live)):
            return ask_prompts(self.bb, [prompt], cap=CAP)[0].text

    def _drawn(self, request: Request, patch: Patch, below: Sequence[Patch]) -> DrawnTriple:
        """The picture before, after and with the new fact stated. Raises UserError."""
        generator = image_generator(self.bb)

        def one(text: str, *patches: Patch) -> Any:
            rows = torch.zeros(1, dtype=torch.long)
            with self.bb.only(*self._as_one(patches)):
                return generator.draw([Prompt.of(text)], [request.seed], rows=rows)[0][0]

        before, after = one(request.drawing, *below), one(request.drawing, *below, patch)
        return DrawnTriple(before, after, one(request.stated), request.drawing, request.stated)

    # -- editing ------------------------------------------------------------------------------

    def correct(self, request: Request) -> Outcome:
        """Makes the correction and puts it in use. Raises UserError."""
        with self.workbench.lock:
            below = self.live
            outcome, (tried,) = self._tried(request, below, [(request.method, request.reach)])
            words = _fact(request.question, request.target)
            self._keep(tried.patch, words, outcome.ways[0].label)
            return outcome

    def compare(self, request: Request, method: str, reach: str) -> Outcome:
        """The same correction made in two ways, as if it were not made yet; neither is kept.

        Raises UserError.
        """
        first, second = (request.method, request.reach), (method, reach)
        if first == second:
            raise BadSpec("both ways are the same. Choose another method or reach for one of them.")
        with self.workbench.lock:
            asked = self._prompt(request.question)
            below = [p for p in self.live if not any(same_prompt(e.prompt, asked) for e in p.edits)]
            return self._tried(request, below, [first, second])[0]

    def _tried(
        self, request: Request, below: Sequence[Patch], ways: Sequence[tuple[str, str]]
    ) -> tuple[Outcome, list[TriedEdit]]:
        """The edit in each of some ways, on top of the same corrections."""
        wanted, kinds = self._wanted(request, below)
        found = [self._find(wanted, kinds.count("earlier"), *way) for way in ways]
        tried = [one for one, _ in found]
        told = [Way(one.editor, scope or EVERYWHERE, one.check.kept) for one, scope in found]
        rows = [
            Answered(
                kind, prompt.text.strip(), next(iter(prompt.images), None), tried[0].before[i],
                tuple(t.after[i] for t in tried), wanted.edit.target,
            )
            for i, (kind, prompt) in enumerate(zip(kinds, wanted.questions, strict=True))
        ]  # fmt: skip
        drawn: tuple[DrawnTriple, ...] = ()
        if self.workbench.draws and request.drawing.strip():
            drawn = tuple(self._drawn(request, t.patch, below) for t in tried)
        return Outcome(tuple(told), tuple(rows), wanted.edit.target, drawn), tried

    def _find(
        self, wanted: WantedEdit, earlier: int, method: str, reach: str
    ) -> tuple[TriedEdit, str | None]:
        """The edit by a method and within a reach, and the scope that was taken.

        earlier: how many of the last questions are those of earlier corrections. Where the reach is
        left open, the narrowest one is taken that holds and harms none of them; else the best.
        """
        maker = self.workbench.maker
        editor = None if method == AUTOMATIC else method
        if reach != AUTOMATIC:
            scope = None if reach == EVERYWHERE else reach
            return maker.find(replace(wanted, editor=editor, scope=scope)), scope
        tried: list[tuple[bool, int, int, TriedEdit, str | None]] = []
        for scope in scopes_for(wanted.edit):
            try:
                one = maker.find(replace(wanted, editor=editor, scope=scope))
            except BadSpec:
                if scope is None:
                    raise
                continue  # this method cannot be put behind a scope
            lost = sum(
                a != b for a, b in zip(one.before[-earlier:], one.after[-earlier:], strict=True)
            ) if earlier else 0  # fmt: skip
            tried.append((not one.check.kept, lost, len(tried), one, scope))
            if one.check.kept and not lost:
                break
        *_, best, scope = min(tried, key=lambda t: t[:3])
        return best, scope

    def _wanted(
        self, request: Request, below: Sequence[Patch]
    ) -> tuple[WantedEdit, tuple[str, ...]]:
        """The edit with all that is asked about it, and the kind of each question."""
        prompt = self._prompt(request.question)
        target = _checked(request.target, "the right answer")
        edit = Edit(prompt, target, subject=request.subject.strip() or None, id="0001")
        same = request.rephrase.strip()
        near = [prompt.with_text(q) for q in request.near.splitlines() if q.strip()]
        far = [Prompt.of(q) for q in request.unrelated.splitlines() if q.strip()]
        if self.example is not None:  # those at other pictures cannot be typed in
            near += [p for p in self.example.near if p.images != prompt.images]
            far += [p for p in self.example.unrelated if p.images]
        far = far or [Prompt.of(q) for q in UNRELATED]
        near = [p for p in dict.fromkeys(near) if p != prompt][:QUESTIONS]
        far = [p for p in dict.fromkeys(far) if p != prompt and p not in near][:QUESTIONS]
        before = [e.prompt for p in below for e in last_of_each(p.edits)]
        earlier = [p for p in dict.fromkeys(before) if p not in (prompt, *near, *far)]
        earlier = earlier[-QUESTIONS:]
        counts = {"near": near, "unrelated": far, "earlier": earlier}
        wanted = WantedEdit(
            edit=edit,
            below=next(iter(self._as_one(below)), None),
            rephrase=prompt.with_text(same) if same else rephrased(edit),
            unrelated=(*near, *far, *earlier),
            seed=request.seed,
        )
        kinds = [kind for kind, prompts in counts.items() for _ in prompts]
        return wanted, ("edited", "rephrased", *kinds)

    # -- what is kept -------------------------------------------------------------------------

    def undo(self) -> Correction:
        """Takes the newest correction back. Raises BadEdit where there is none."""
        with self.workbench.lock:
            if not self.corrections:
                raise BadEdit("there is nothing to take back: no correction is made or loaded.")
            return self.corrections.pop()

    def use(self, numbers: Sequence[int]) -> None:
        """Exactly these corrections are in use, by their numbers."""
        with self.workbench.lock:
            self.corrections = [replace(c, on=c.number in numbers) for c in self.corrections]

    def save(self, name: str) -> Correction:
        """Saves the newest correction under a name. Raises UserError, Refused."""
        with self.workbench.lock:
            if self.workbench.folder is None:
                raise BadOutput(
                    "nothing can be saved: errata ui was started without --patches FOLDER."
                )
            if not self.corrections:
                raise BadEdit("there is nothing to save. Make a correction first.")
            last = self.corrections[-1]
            self.workbench.catalogue.add(check_name(name.strip()), last.patch)
            self.corrections[-1] = replace(last, saved=name.strip())
            return self.corrections[-1]

    def load(self, name: str) -> Correction:
        """Puts a saved patch in use, on top of the others. Raises UserError, Refused."""
        with self.workbench.lock:
            if not name:
                raise BadEdit("there is nothing to load. Save a correction first.")
            if any(c.saved == name and c.on for c in self.corrections):
                raise BadEdit(f"'{name}' is in use already.")
            catalogue = self.workbench.catalogue
            catalogue.load(name)
            patch = catalogue.loaded[name]
            first = next(iter(patch.edits), None)
            words = "no fact is named" if first is None else _fact(first.prompt.text, first.target)
            if len(patch.edits) > 1:
                words += f" and {counted(len(patch.edits) - 1, 'other')}"
            return self._keep(patch, words, patch.header.editor or "unknown", name)

    def _keep(self, patch: Patch, words: str, way: str, saved: str = "") -> Correction:
        self.made += 1
        self.corrections.append(Correction(self.made, self.bb.place(patch), words, way, saved))
        return self.corrections[-1]

    # -- parts --------------------------------------------------------------------------------

    def _as_one(self, patches: Sequence[Patch]) -> list[Patch]:
        """Patches as one that can be live; nothing for none."""
        return [self.bb.place(stacked(*patches))] if patches else []

    def _prompt(self, question: str) -> Prompt:
        """Raises BadEdit for a question that is empty or too long."""
        return Prompt.of(_checked(question, "the question"), self.picture)


def _lines(prompts: Iterable[Prompt]) -> str:
    return "\n".join(p.text.strip() for p in prompts)


def _checked(text: str, what: str) -> str:
    text = text.strip()
    if not text:
        raise BadEdit(f"{what} is empty. Type it in.")
    if len(text) > LETTERS:
        raise BadEdit(f"{what} has {len(text):,} letters, the most is {LETTERS:,}. Shorten it.")
    return text


def _fact(question: str, target: str) -> str:
    """A correction in a few words."""
    question, target = " ".join(question.split()), " ".join(target.split())
    return f"{question if len(question) <= 60 else question[:57] + '...'} → {target[:60]}"
