"""One unit of a run: its lanes are edited together and asked together.

A lane whose edit cannot be made, or whose question cannot be asked, does not stop the others: its
answers are recorded as unscored, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from errata.core.backbone import Backbone
from errata.core.editor import Editor, EditResult, State
from errata.core.errors import BadEdit, BadImage, NotFinite, TooLong
from errata.core.patch import Patch
from errata.core.protocol import Ask, Lane, Protocol, Step, Unit
from errata.core.types import Answer, Edit, Probe, digest, to_json
from errata.evaluation.answers import PromptRequest, ask_all, unedited, unscored
from errata.evaluation.pictures import PictureStore
from errata.patches.rows import Rows
from errata.patches.stack import Stack

#: what is wrong with one edit, as opposed to the run
EDIT_ERRORS = (BadEdit, BadImage, NotFinite, TooLong)


@dataclass
class LaneState:
    """A lane while its unit runs: the patch and the editor's state so far, and failed cases."""

    lane: Lane
    patch: Patch | None = None
    state: State | None = None
    failed: dict[str, str] = field(default_factory=dict)


@dataclass
class UnitTiming:
    """Seconds and counts of a unit's phases."""

    edit: float = 0.0
    ask: float = 0.0
    edits: int = 0
    asked: int = 0
    searches: list[dict[str, Any]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    demonstrations_dropped: int = 0


class Runner:
    """Plays a protocol's steps: edits, asks, and sends the answers back."""

    def __init__(
        self,
        backbone: Backbone,
        editor: Editor,
        state: State | None,
        protocol: Protocol,
        panel: Sequence[Probe],
        before: Mapping[tuple[str, str], Answer],
        *,
        seed: int,
        legacy: bool = False,
        store: PictureStore | None = None,
    ) -> None:
        self.backbone, self.editor, self.state, self.protocol = backbone, editor, state, protocol
        self.panel, self.before, self.seed, self.legacy = panel, before, seed, legacy
        self.store = store

    def run(self, unit: Unit) -> tuple[list[Answer], UnitTiming, list[LaneState]]:
        """Answers of all steps in order, times, and each lane's last patch."""
        tracks = [LaneState(lane, state=self.state) for lane in unit.lanes]
        clock = UnitTiming()
        everything: list[Answer] = []
        steps = self.protocol.steps(unit, self.panel)
        number = 0
        try:
            step = next(steps)
            while True:
                self._edit(step, tracks, clock)
                answers = self._ask(step, tracks, clock, number)
                everything += answers
                number += 1
                step = steps.send(answers)
        except StopIteration:
            clock.demonstrations_dropped = sum(_dropped(t.patch) for t in tracks)
            return everything, clock, tracks

    def _edit(self, step: Step, tracks: Sequence[LaneState], clock: UnitTiming) -> None:
        started = time.perf_counter()
        if step.on == "clean":
            for track in tracks:
                track.patch, track.state = None, self.state
        made = [(t, turn) for t, turn in zip(tracks, step.turns, strict=True) if turn.edits]
        if not made:
            return
        found = self._find([turn.edits for _, turn in made], [t for t, _ in made])
        for (track, turn), one in zip(made, found, strict=True):
            if isinstance(one, str):
                ids = [c.id for c in track.lane.cases if c.edit in turn.edits]
                track.failed.update(dict.fromkeys(ids, one))
                clock.failed += ids
                continue
            track.patch = one.patch if track.patch is None else track.patch.join(one.patch)
            track.state = one.state
            clock.searches.append(one.log.search)
        clock.edit += time.perf_counter() - started
        clock.edits += sum(len(t.edits) for t in step.turns)

    def _find(
        self, groups: Sequence[Sequence[Edit]], tracks: Sequence[LaneState]
    ) -> list[EditResult | str]:
        """What was found for each lane, on top of its past; or why nothing could be."""
        past = None if all(t.patch is None for t in tracks) else _rows(tracks)
        try:
            with self.backbone.applied(past):
                states = [t.state for t in tracks]
                return [*self.editor.edit_groups(self.backbone, groups, states, seed=self.seed)]
        except EDIT_ERRORS as e:
            if len(groups) == 1:
                return [str(e)]
        return [
            one
            for group, track in zip(groups, tracks, strict=True)
            for one in self._find([group], [track])
        ]

    def _ask(
        self, step: Step, tracks: Sequence[LaneState], clock: UnitTiming, number: int
    ) -> list[Answer]:
        started = time.perf_counter()
        asks = [(a, row) for row, turn in enumerate(step.turns) for a in turn.asks]
        put = [PromptRequest(a, row) for a, row in asks if a.case not in tracks[row].failed]
        kept = self._controls(put, number) if all(t.patch is None for t in tracks) else None
        answers = iter(kept if kept is not None else self._put(put, tracks, number))
        clock.ask += time.perf_counter() - started
        clock.asked += len(put)
        return [_lost(a, number, tracks[row]) or next(answers) for a, row in asks]

    def _put(
        self, put: Sequence[PromptRequest], tracks: Sequence[LaneState], number: int
    ) -> list[Answer]:
        with self.backbone.applied(_rows(tracks) if tracks else None):
            return ask_all(
                self.backbone,
                put,
                step=number,
                before=self.before,
                legacy=self.legacy,
                store=self.store,
            )

    def _controls(self, put: Sequence[PromptRequest], number: int) -> list[Answer] | None:
        """Answers of the untouched model, which another run on it may have got already."""
        if self.store is None or not put:
            return None
        asks = [one.ask for one in put]
        key = digest([*unedited(self.backbone), *self._settings(), [_plain(a) for a in asks]])
        known = self.store.recall(key, asks, number)
        if known is None:
            known = self._put(put, [], number)
            self.store.remember(key, known)
        return known

    def _settings(self) -> list[object]:
        assert self.store is not None
        return [list(self.store.seeds), self.store.batch, int(self.legacy)]


def _plain(ask: Ask) -> list[object]:
    return [ask.case, to_json(ask.probe), ask.tag]


def _lost(ask: Ask, number: int, track: LaneState) -> Answer | None:
    reason = track.failed.get(ask.case)
    return unscored(ask, number, f"the edit could not be made: {reason}") if reason else None


def _rows(tracks: Sequence[LaneState]) -> Rows:
    """Every lane's patch on its own row; a lane without one is left as it is."""
    return Rows([t.patch if t.patch is not None else Stack([]) for t in tracks])


def _dropped(patch: Patch | None) -> int:
    return sum(p.dropped for p in patch.parts()) if patch is not None else 0
