"""The plan of a run: which cases are edited and which probes are asked, fixed before any edit.

A benchmark yields candidate cases. All their probes are asked once, of the unedited model. A case
is kept if its origin holds for this model (counterfactual: the model says the old answer;
correction: it does not say the target). A probe is dropped if it cannot show an effect (a locality
probe whose before-answer is the target; a portability probe whose hop the model does not know).
Every drop is recorded with its reason. No picture is drawn for a plan: a protocol that draws has
its own controls.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from errata.core import registry
from errata.core.editor import check_target
from errata.core.errors import BadBackbone, BadEdit, BadImage, BadSpec
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.measure.metric import answered
from errata.core.measure.protocol import Ask, Protocol, Unit
from errata.core.model.backbone import Backbone
from errata.core.text import normalise, same_answer
from errata.core.types import (
    Answer,
    Case,
    Probe,
    Scored,
    Skip,
    brief,
    digest,
    from_json,
    to_json,
)
from errata.evaluation import cache
from errata.evaluation.answers import PromptRequest, ask_all, too_long, unedited
from errata.evaluation.other_scopes import in_other_scopes
from errata.io.images import hashed, split_uri

VERSION = 1
BLOCK = 16  # cases asked together; part of what makes a plan reproducible
STAGED = 128  # the same, of cases of which only the main probes are asked at first

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Selection:
    """Cases that will be edited, the before-answers to their probes, and what was dropped."""

    cases: tuple[Case, ...]
    panel: tuple[Probe, ...]
    before: tuple[Answer, ...]
    dropped: tuple[Skip, ...]
    data: str


@dataclass(frozen=True)
class Plan:
    """All that a run does, in order; fixed before the first edit."""

    benchmark: str
    protocol: str
    cases: tuple[Case, ...]
    panel: tuple[Probe, ...]
    units: tuple[Unit, ...]
    dropped: tuple[Skip, ...]
    base_accuracy: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    over: str = "lanes"


def protocol_of(text: str) -> Protocol:
    """`name[:argument]` as a protocol. Raises BadSpec or UnknownName."""
    if not isinstance(text, str):
        raise BadSpec(f"a protocol is named by a text, not by {brief(text)}.")
    name, _, argument = text.partition(":")
    return registry.load("protocols", name)(argument)  # type: ignore[no-any-return]


def select(
    backbone: Backbone,
    spec: BenchmarkSpec,
    *,
    seed: int,
    limit: int | None,
    root: Path | None,
    draws: bool = False,
    legacy: bool = False,
    progress: Progress | None = None,
) -> Selection:
    """Asks the unedited model candidate cases, in seeded order, until `limit` are kept.

    draws: whether the protocol draws pictures; if not, drawn probes are dropped. The selection is
    cached by model, data and settings. Raises BadSpec, BadBackbone.
    """
    benchmark = registry.load("benchmarks", spec.name)()
    loaded = benchmark.load(spec, root=root, seed=seed)
    if draws:
        _check_draws(backbone, spec, loaded.cases)
    panel = tuple(benchmark.panel(spec, root=root))
    drawn_as = benchmark.drawn_as(spec)
    order = random.Random(f"{seed}|{drawn_as}").sample(range(len(loaded.cases)), len(loaded.cases))
    candidates = [loaded.cases[i] for i in order]
    data = digest([to_json(c) for c in loaded.cases])
    key = digest(
        [
            VERSION,
            BLOCK,
            *unedited(backbone),
            benchmark.version,
            [to_json(p) for p in panel],
            _files(candidates),
            str(spec),
            data,
            seed,
            limit or 0,
            int(draws),
            int(legacy),
        ]
    )
    stored = cache.load(key)
    if stored is not None:
        with suppress(LookupError, TypeError, ValueError):  # a damaged cache is not used
            return _from_json(stored)
    undrawn: tuple[Skip, ...] = ()
    if not draws:
        candidates, undrawn = _without_drawn(candidates)
    selection = _ask_candidates(backbone, candidates, panel, limit, legacy, progress)
    planned = {c.id for c in selection.cases}
    undrawn = tuple(s for s in undrawn if s.id.partition("/")[0] in planned)
    dropped = (*loaded.skipped, *selection.dropped, *undrawn)
    selection = replace(selection, dropped=dropped, data=data)
    if not selection.cases:
        raise BadSpec(
            f"no case of {spec} is usable on {backbone.name}: {len(candidates)} candidates, "
            f"{len(selection.dropped)} dropped "
            f"({'; '.join(s.reason for s in selection.dropped[:2])}). "
            "Choose another split or model."
        )
    cache.store(key, _to_json(selection))
    return selection


def _check_draws(backbone: Backbone, spec: BenchmarkSpec, cases: Sequence[Case]) -> None:
    if not any(p.kind_info.drawn for case in cases for p in case.probes):
        raise BadSpec(
            f"benchmark {spec} has nothing to draw. Choose another protocol, such as "
            "sequential:10, or a benchmark with pictures to draw, such as unike_umm."
        )
    if "draw" not in backbone.capabilities:
        raise BadBackbone(
            f"{backbone.name} draws no pictures, which this protocol asks for. Choose a model that "
            "does, such as micro-umm, or another protocol, such as sequential:10."
        )


def _without_drawn(cases: Sequence[Case]) -> tuple[list[Case], tuple[Skip, ...]]:
    """The cases without their drawn probes, for a protocol that draws nothing."""
    why = "this protocol draws no pictures"
    skips = [
        Skip(f"{case.id}/{p.id}", why) for case in cases for p in case.probes
        if p.kind_info.drawn
    ]  # fmt: skip
    kept = [c.with_probes(tuple(p for p in c.probes if not p.kind_info.drawn)) for c in cases]
    return kept, tuple(skips)


def _files(cases: Sequence[Case]) -> str:
    """Hash over size and time of every image file: a changed file gives a new plan."""
    paths = {
        image.uri
        for case in cases
        for prompt in (case.edit.prompt, *(p.prompt for p in case.probes))
        for image in prompt.images
        if split_uri(image.uri)[0] is None
    }
    states = []
    for path in sorted(paths):
        try:
            stat = Path(path).stat()
            states.append([path, stat.st_size, stat.st_mtime_ns])
        except OSError:
            states.append([path, 0, 0])
    return digest(states)


def _ask_candidates(
    backbone: Backbone,
    candidates: Sequence[Case],
    panel: Sequence[Probe],
    limit: int | None,
    legacy: bool,
    progress: Progress | None,
) -> Selection:
    most = limit if limit is not None else len(candidates)
    cases: list[Case] = []
    before: list[Answer] = []
    dropped: list[Skip] = []
    if progress is not None:
        progress("asking the unedited model", 0, most)
    # of completions mostly few are known: their other probes are asked for the known ones only
    staged = any(c.main is not None and c.main.contrast for c in candidates)
    size = STAGED if staged else BLOCK
    for start in range(0, len(candidates), size):
        if len(cases) >= most:
            break
        block = []
        for case in candidates[start : start + size]:
            ready, why = _ready(backbone, case)
            dropped += why
            if ready is not None:
                block.append(ready)
        answers: dict[tuple[str, str], Answer] = {}
        if staged:
            answers = _answers(backbone, [_main_alone(c) for c in block], legacy)
            block, why = usable(block, answers)
            block = block[: most - len(cases)]
            dropped += why
        answers |= _answers(backbone, [_unasked(c, answers) for c in block], legacy)
        kept, why = filter_cases(block, answers)
        dropped += why
        for case in kept[: most - len(cases)]:
            cases.append(case)
            before += [answers[case.id, p.id] for p in case.probes if not p.kind_info.drawn]
        if progress is not None:
            progress("asking the unedited model", min(len(cases), most), most)
    requests = [PromptRequest(Ask("panel", p)) for p in panel]
    before += ask_all(backbone, requests, step=-1, legacy=legacy)
    return Selection(tuple(cases), tuple(panel), tuple(before), tuple(dropped), "")


def _ready(backbone: Backbone, case: Case) -> tuple[Case | None, list[Skip]]:
    """The case with image hashes, without probes that cannot be asked; None: an unusable edit."""
    if not normalise(case.edit.target):
        return None, [Skip(case.id, "empty target")]
    if case.main is None:
        return None, [Skip(case.id, "no probe asks the edit's own prompt")]
    reason = None
    edit_probe = Probe("edit", case.edit.prompt, "reliability", reference=case.edit.target)
    try:
        edit = replace(case.edit, prompt=hashed(case.edit.prompt))
        reason = too_long(backbone, edit_probe)
        check_target(backbone, edit)
    except (BadImage, BadEdit) as e:
        reason = reason or str(e)
    if reason:
        return None, [Skip(case.id, reason)]
    probes, skips = [], []
    for probe in case.probes:
        try:
            named = replace(probe, prompt=hashed(probe.prompt))
            reason = too_long(backbone, named)
        except (BadImage, BadEdit) as e:
            named, reason = probe, str(e)
        if reason:
            skips.append(Skip(f"{case.id}/{probe.id}", reason))
        else:
            probes.append(named)
    if not any(p.kind_info.main for p in probes):
        return None, [*skips, Skip(case.id, f"its {case.main.kind} probe cannot be asked")]
    return replace(case, edit=edit, probes=tuple(probes)), skips


def _main_alone(case: Case) -> Case:
    assert case.main is not None, case.id
    return case.with_probes((case.main,))


def _unasked(case: Case, answers: Mapping[tuple[str, str], Answer]) -> Case:
    return case.with_probes(tuple(p for p in case.probes if (case.id, p.id) not in answers))


def _answers(
    backbone: Backbone, cases: Sequence[Case], legacy: bool
) -> dict[tuple[str, str], Answer]:
    """Before-answers to all probes and hops (id `<probe id>/hop`), by (case, probe id)."""
    requests = []
    for case in cases:
        for p in case.probes:
            if p.kind_info.drawn:
                continue
            requests.append(PromptRequest(Ask(case.id, p)))
            if p.hop is not None:
                hop = Probe(f"{p.id}/hop", p.hop.prompt, "portability", reference=p.hop.reference)
                requests.append(PromptRequest(Ask(case.id, hop)))
    return {(a.case, a.probe): a for a in ask_all(backbone, requests, step=-1, legacy=legacy)}


def usable(
    cases: Sequence[Case], answers: Mapping[tuple[str, str], Answer]
) -> tuple[list[Case], list[Skip]]:
    """The cases that can be edited on this backbone, and why the others are dropped.

    answers: the unedited model's to the main probes, by (case, probe id).
    """
    kept, skips = [], []
    for case in cases:
        assert case.main is not None, case.id
        if reason := _case_reason(case, answers[case.id, case.main.id]):
            skips.append(Skip(case.id, reason))
        else:
            kept.append(case)
    return kept, skips


def filter_cases(
    cases: Sequence[Case], answers: Mapping[tuple[str, str], Answer]
) -> tuple[list[Case], list[Skip]]:
    """The cases that can be edited on this backbone, with the probes that can show an effect.

    answers: the unedited model's, by (case, probe id). Also why cases and probes were dropped.
    """
    kept = []
    good, skips = usable(cases, answers)
    for case in good:
        assert case.main is not None, case.id
        answer = answers[case.id, case.main.id]
        probes = []
        for probe in case.probes:
            if reason := _probe_reason(case, probe, answers):
                skips.append(Skip(f"{case.id}/{probe.id}", reason))
            else:
                probes.append(probe)
        edit = replace(case.edit, old=case.edit.old or answer.text or None)
        kept.append(replace(case, edit=edit, probes=tuple(probes)))
    return kept, skips


def _case_reason(case: Case, answer: Answer) -> str:
    """Why the case is dropped, by the unedited model's answer to the edit's prompt; "" if not."""
    goes_on = case.main is not None and bool(case.main.contrast)
    if answered(answer, case.edit.target) or (goes_on and _begins(answer.reference)):
        return "the unedited model already says the target"
    old = case.edit.old if case.origin == "counterfactual" else None
    if old and not answered(answer, old) and not (goes_on and _begins(answer.contrast)):
        return f"the unedited model says '{answer.text[:40]}', not the old answer"
    return ""


def _begins(scored: Scored | None) -> bool:
    """Whether the greedy answer begins with this one: each of its tokens is the likeliest.

    Enough where probes name a contrast: these are completions, which go on behind the answer.
    """
    return scored is not None and scored.ids == scored.argmax != ()


def _probe_reason(case: Case, probe: Probe, answers: Mapping[tuple[str, str], Answer]) -> str:
    """Why the probe is dropped, by the unedited model's answers; "" if it is kept."""
    if probe.kind_info.drawn:
        return ""
    answer = answers[case.id, probe.id]
    text, goes_on = answer.text, bool(probe.contrast)
    if probe.kind_info.keeps_answer and same_answer(text, case.edit.target):
        return "its before-answer is the target"
    if probe.kind == "portability":
        hop = answers.get((case.id, f"{probe.id}/hop"))
        if hop is not None and probe.hop is not None:
            begins = goes_on and _begins(hop.reference)
            if not begins and not answered(hop, probe.hop.reference):
                return "the unedited model does not know the hop"
        if same_answer(text, probe.reference) or (goes_on and _begins(answer.reference)):
            return "the unedited model already gives the new consequence"
    return ""


def make_plan(
    selection: Selection,
    spec: BenchmarkSpec,
    protocol: Protocol,
    *,
    rows: int,
    seed: int,
    earlier: Sequence[int] = (),
) -> Plan:
    """Units for the selected cases. Cases that fill no complete window are recorded as dropped.

    earlier: the lower limits that the run had before: its units of then come first and unchanged,
    the further cases have units of their own. Raises BadSpec if they fill none.
    """
    units: tuple[Unit, ...] = ()
    for limit in (*earlier, len(selection.cases)):
        used = {c.id for u in units for lane in u.lanes for c in lane.cases}
        further = [c for c in selection.cases[:limit] if c.id not in used]
        if further:
            units = _joined(units, protocol.plan(further, rows=rows, seed=seed))
    used = {c.id for u in units for lane in u.lanes for c in lane.cases}
    left = tuple(
        Skip(c.id, f"left over: {protocol.spec} takes complete windows")
        for c in selection.cases
        if c.id not in used
    )
    cases = tuple(c for c in selection.cases if c.id in used)
    lone = len([lane for unit in units for lane in unit.lanes]) == 1
    return Plan(
        benchmark=str(spec),
        protocol=protocol.spec,
        cases=cases,
        panel=selection.panel,
        units=units,
        dropped=(*selection.dropped, *left, *in_other_scopes(units)),
        base_accuracy=_base(cases, selection),
        data=selection.data,
        over="cases" if lone and protocol.cases_of_one_lane else "lanes",
    )


def _joined(units: tuple[Unit, ...], further: tuple[Unit, ...]) -> tuple[Unit, ...]:
    """`further` behind `units`, with ids that are new."""
    lanes = sum(len(unit.lanes) for unit in units)
    if not units:
        return further
    out = list(units)
    for unit in further:
        named = tuple(
            replace(lane, id=f"l{number:04d}") for number, lane in enumerate(unit.lanes, lanes)
        )
        out.append(Unit(f"u{len(out):03d}", named))
        lanes += len(named)
    return tuple(out)


def _base(cases: Sequence[Case], selection: Selection) -> dict[str, Any]:
    """Share of probes that the unedited model answers with the reference, per kind and group.

    Without free texts and drawn probes.
    """
    answers = {(a.case, a.probe): a for a in selection.before}
    hits: dict[str, list[bool]] = defaultdict(list)
    for case, probes in [*((c.id, c.probes) for c in cases), ("panel", selection.panel)]:
        for p in probes:
            if p.cap or p.kind_info.drawn:
                continue
            a = answers[case, p.id]
            hits[p.kind + (f"/{p.group}" if p.group else "")].append(answered(a, p.reference))
    return {k: {"value": sum(v) / len(v), "n": len(v)} for k, v in sorted(hits.items())}


def plan_json(plan: Plan) -> dict[str, Any]:
    """What `plan.json` holds."""
    return {
        "schema": VERSION,
        "benchmark": plan.benchmark,
        "protocol": plan.protocol,
        "cases": [to_json(c) for c in plan.cases],
        "panel": [to_json(p) for p in plan.panel],
        "units": [
            {
                "id": u.id,
                "lanes": [{"id": one.id, "cases": [c.id for c in one.cases]} for one in u.lanes],
            }
            for u in plan.units
        ],
        "dropped": [to_json(s) for s in plan.dropped],
        "base_accuracy": plan.base_accuracy,
        "data": plan.data,
        **({"over": plan.over} if plan.over != "lanes" else {}),
    }


def _to_json(s: Selection) -> dict[str, Any]:
    return {
        "cases": [to_json(c) for c in s.cases],
        "panel": [to_json(p) for p in s.panel],
        "before": [to_json(a) for a in s.before],
        "dropped": [to_json(d) for d in s.dropped],
        "data": s.data,
    }


def _from_json(data: Mapping[str, Any]) -> Selection:
    return Selection(
        from_json(tuple[Case, ...], data["cases"]),
        from_json(tuple[Probe, ...], data["panel"]),
        from_json(tuple[Answer, ...], data["before"]),
        from_json(tuple[Skip, ...], data["dropped"]),
        data["data"],
    )
