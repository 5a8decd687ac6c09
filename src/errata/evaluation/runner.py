"""Runs one unit of a run: its lanes are edited together and asked together.

A lane whose edit fails, or whose question cannot be asked, does not stop the other lanes: its
answers are recorded as unscored, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from errata.core.editor import Editor, EditResult
from errata.core.errors import BadEdit, BadImage, NotFinite, TooLong
from errata.core.measure.protocol import Ask, Lane, Protocol, Step, Unit
from errata.core.model.backbone import Backbone
from errata.core.model.memory import measured_peak
from errata.core.patch import Patch, parts_of
from errata.core.state import State
from errata.core.types import Answer, Edit, Probe, digest, to_json
from errata.evaluation.answers import PromptRequest, ask_all, unedited, unscored
from errata.evaluation.pictures import PictureStore
from errata.evaluation.run_folder import UnitTiming
from errata.patches.rows import Rows
from errata.patches.stack import Stack, folded, stacked

#: Errors that concern one edit. Any other error stops the run.
EDIT_ERRORS = (BadEdit, BadImage, NotFinite, TooLong)


@dataclass
class LaneState:
    """A lane while its unit runs: its patch and editor state so far; failed cases with reason."""

    lane: Lane
    patch: Patch | None = None
    state: State | None = None
    failed: dict[str, str] = field(default_factory=dict)


class UnitShare:
    """How much of a unit is done: half by its edits, half by its questions.

    A protocol may ask a probe more than once: then the share waits at its end.
    """

    def __init__(
        self, unit: Unit, panel: Sequence[Probe], told: Callable[[float], None] | None
    ) -> None:
        cases = [case for lane in unit.lanes for case in lane.cases]
        self._edits = max(len(cases), 1)
        self._questions = max(sum(len(c.probes) for c in cases) + len(unit.lanes) * len(panel), 1)
        self._edited = self._asked = 0
        self._told = told

    def edited(self, count: int) -> None:
        self._edited += count
        self._tell()

    def asked(self, count: int) -> None:
        self._asked += count
        self._tell()

    def _tell(self) -> None:
        if self._told is not None:
            shares = self._edited / self._edits, self._asked / self._questions
            self._told(sum(min(share, 1.0) for share in shares) / 2)


class Runner:
    """Runs a protocol's steps: edits, asks, and sends the answers back to the protocol."""

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
        forced: bool = False,
        store: PictureStore | None = None,
        keep_parts: bool = True,
    ) -> None:
        """keep_parts: a lane's patch holds its edits one by one, also where they act as one."""
        self.keep_parts = keep_parts
        self.backbone, self.editor, self.state, self.protocol = backbone, editor, state, protocol
        self.panel, self.before, self.seed, self.legacy = panel, before, seed, legacy
        self.store, self.forced = store, forced
        self._share = UnitShare(Unit("", ()), (), None)

    def run(
        self, unit: Unit, told: Callable[[float], None] | None = None
    ) -> tuple[list[Answer], UnitTiming, list[LaneState]]:
        """The answers of all steps in order, the timing, and each lane's final state.

        told: called with the share of the unit that is done, by edits and by questions.
        """
        lanes = [LaneState(lane, state=self.state) for lane in unit.lanes]
        timing = UnitTiming()
        self._share = UnitShare(unit, self.panel, told)
        unit_answers: list[Answer] = []
        steps = self.protocol.steps(unit, self.panel)
        number = 0
        try:
            step = next(steps)
            while True:
                self._edit(step, lanes, timing)
                answers = self._ask(step, lanes, timing, number)
                unit_answers += answers
                number += 1
                step = steps.send(answers)
        except StopIteration:
            timing.demonstrations_dropped = sum(_dropped(lane.patch) for lane in lanes)
            return unit_answers, timing, lanes

    def _edit(self, step: Step, lanes: Sequence[LaneState], timing: UnitTiming) -> None:
        started = time.perf_counter()
        if step.on == "clean":
            for lane in lanes:
                lane.patch, lane.state = None, self.state
        edited = [(lane, part) for lane, part in zip(lanes, step.lanes, strict=True) if part.edits]
        if not edited:
            return
        with measured_peak() as peak:
            results = self._find([part.edits for _, part in edited], [lane for lane, _ in edited])
        timing.edit_peak_mb = _higher(timing.edit_peak_mb, peak.mb)
        for (lane, part), result in zip(edited, results, strict=True):
            if isinstance(result, str):
                ids = [c.id for c in lane.lane.cases if c.edit in part.edits]
                lane.failed.update(dict.fromkeys(ids, result))
                timing.failed += ids
                continue
            lane.patch = self._added(lane.patch, result.patch)
            lane.state = result.state
            timing.searches.append(result.log.search)
        timing.edit_seconds += time.perf_counter() - started
        timing.edits += sum(len(part.edits) for part in step.lanes)
        self._share.edited(sum(len(part.edits) for part in step.lanes))

    def _added(self, patch: Patch | None, new: Patch) -> Patch:
        if patch is None:
            return new
        return stacked(patch, new) if self.keep_parts else folded(patch, new)

    def _find(
        self, groups: Sequence[Sequence[Edit]], lanes: Sequence[LaneState]
    ) -> list[EditResult | str]:
        """One result per lane, found on top of the lane's patch; or the reason of a failure.

        If a joint search fails, every lane is searched alone.
        """
        live = None if all(lane.patch is None for lane in lanes) else _rows(lanes)
        try:
            with self.backbone.applied(live):
                states = [lane.state for lane in lanes]
                return [*self.editor.edit_groups(self.backbone, groups, states, seed=self.seed)]
        except EDIT_ERRORS as e:
            if len(groups) == 1:
                return [str(e)]
        return [
            result
            for group, lane in zip(groups, lanes, strict=True)
            for result in self._find([group], [lane])
        ]

    def _ask(
        self, step: Step, lanes: Sequence[LaneState], timing: UnitTiming, number: int
    ) -> list[Answer]:
        started = time.perf_counter()
        asks = [(ask, row) for row, part in enumerate(step.lanes) for ask in part.asks]
        requests = [PromptRequest(a, row) for a, row in asks if a.case not in lanes[row].failed]
        with measured_peak() as peak:
            if self.store is not None and requests and all(lane.patch is None for lane in lanes):
                answers = iter(self._control_answers(self.store, requests, number))
            else:
                answers = iter(self._answers(requests, lanes, number))
        timing.ask_peak_mb = _higher(timing.ask_peak_mb, peak.mb)
        timing.ask_seconds += time.perf_counter() - started
        timing.asked += len(requests)
        return [_failed(a, number, lanes[row]) or next(answers) for a, row in asks]

    def _answers(
        self, requests: Sequence[PromptRequest], lanes: Sequence[LaneState], number: int
    ) -> list[Answer]:
        with self.backbone.applied(_rows(lanes) if lanes else None):
            return ask_all(
                self.backbone,
                requests,
                step=number,
                before=self.before,
                legacy=self.legacy,
                forced=self.forced,
                store=self.store,
                on_batch=self._share.asked,
            )

    def _control_answers(
        self, store: PictureStore, requests: Sequence[PromptRequest], number: int
    ) -> list[Answer]:
        """Answers of the unedited model, from the cache that all runs share if they are there."""
        asks = [r.ask for r in requests]
        settings = [list(store.seeds), store.batch, int(self.legacy)]
        questions = [[a.case, to_json(a.probe), a.tag] for a in asks]
        key = digest([*unedited(self.backbone), *settings, questions])
        answers = store.recall(key, asks, number)
        if answers is None:
            answers = self._answers(requests, [], number)
            store.remember(key, answers)
        return answers


def _higher(a: float | None, b: float | None) -> float | None:
    return max((x for x in (a, b) if x is not None), default=None)


def _failed(ask: Ask, number: int, lane: LaneState) -> Answer | None:
    reason = lane.failed.get(ask.case)
    return unscored(ask, number, f"the edit could not be made: {reason}") if reason else None


def _rows(lanes: Sequence[LaneState]) -> Rows:
    """Every lane's patch on its own row; a row whose lane has none is not edited."""
    return Rows([lane.patch if lane.patch is not None else Stack([]) for lane in lanes])


def _dropped(patch: Patch | None) -> int:
    return sum(p.dropped for p in parts_of(patch)) if patch is not None else 0
