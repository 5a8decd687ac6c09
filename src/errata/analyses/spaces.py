"""Spaces: do semantic and truthfulness space separate true from wrong answers, and by what?

Source: UniKE Sec. 3.3 and Fig. 5a, which shows both spaces after t-SNE, without numbers. The
questions are about subjects that the encoders were not trained on: corrections (the true answer and
the model's own wrong one), and facts that the model knows (its own answer, which is true, and a
false one). For corrections the model expects the wrong answer; for known facts, the true one. So a
classifier that is fitted to corrections shows on known facts whether it found truth (accuracy near
1) or what the model did not expect (near 0).

Numbers of a space: `probe`, a ridge classifier on unit vectors, five folds over subjects; `answers
balanced`, the same with weights that make every answer as often true as wrong; `answers alone`, a
classifier that knows only how often an answer was true in the other folds. t-SNE keeps neighbours,
not distances, and shows groups where there are none: read the probe.

Shapes: n questions, d width of the hidden states, e width of a space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from errata.analyses._summary import cells, text, with_ends
from errata.core.analysis import Analysis, Subject, first_look
from errata.core.errors import BadData, BadSpec, MissingExtra, MissingState
from errata.core.figure import Dots, Figure, Findings, Panel, Scatter, Table
from errata.core.formats.counts import counted
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.text import same_answer
from errata.core.types import Case, Prompt
from errata.editors.unike.encoders import encode, unit
from errata.editors.unike.probes import by_answer, decisions, ridge_probe, shares
from errata.editors.unike.triplets import EXTRA_TOKENS, collect, states_of, usable
from errata.evaluation.statistics.intervals import Estimate, Intervals

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.state import State

FOLDS = 5
BATCH = 32
#: number of subjects that five folds need
LEAST = 2 * FOLDS
#: space -> the encoder's name in the state; "" for the hidden states themselves
SPACES = {"states": "", "semantic": "enc_sem", "truthfulness": "enc_tru"}
METHODS = {"pca": "PCA", "tsne": "t-SNE"}


@dataclass(frozen=True)
class AnswerPair:
    """One question with a true and a wrong answer."""

    prompt: Prompt
    true: str
    wrong: str
    subject: str
    kind: str


@dataclass(frozen=True)
class ProbeScore:
    """Accuracies of a probe with 95 % intervals over subjects, on n pairs."""

    probe: Estimate | None
    balanced: Estimate | None
    alone: Estimate | None
    n: int
    subjects: int


class SpacesAnalysis(Analysis):
    """True and wrong answers in both spaces, with the accuracy of a probe."""

    name = "spaces"
    benchmark = "microworld:vqa@dev"
    from_state = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Analysis.Config):
        """layers: blocks to show, negative from the end; () = all of the state.

        picture: pca, tsne (needs the extra `viz`), or auto: both where the extra is installed.
        known: largest number of known facts. points: largest number of drawn pairs; the numbers use
        all pairs.
        """

        layers: tuple[int, ...] = ()
        picture: Literal["auto", "pca", "tsne"] = "auto"
        known: int = 400
        points: int = 150

    @in_ordinary_modes
    def look(self, subject: Subject) -> Findings:
        """Raises MissingState, BadSpec, BadData, or MissingExtra for t-SNE without it."""
        state, bb = _spaces_of(subject), subject.backbone
        layers = self._layers(bb, state)
        methods = self._methods()
        wrong = wrong_pairs(bb, usable(subject.cases))
        known = known_pairs(bb, subject.cases, self.config.known)
        subjects = len({p.subject for p in wrong})
        if subjects < LEAST:
            raise BadData(
                f"{bb.name} gets corrections of only {subjects} subjects wrong in "
                f"{subject.benchmark}; a probe needs {LEAST}. Raise --limit, or choose a "
                "benchmark with more corrections."
            )
        at = states_of(bb, [(p.prompt, p.true, p.wrong) for p in (*wrong, *known)], layers)
        views = []
        for done, i in enumerate(layers):
            pos, neg = at.pos[i], at.neg[i]
            n, points = len(wrong), self.config.points
            states = (pos[:n], neg[:n]), ((pos[n:], neg[n:]) if known else None)
            views.append(BlockSpaces(state, i, wrong, known, states, subject.seed, points))
            subject.progress("blocks", done + 1, len(layers))
        return Findings(
            tuple(self._figure(m, views, subject) for m in methods),
            (_numbers(views), *(_points(m, views) for m in methods)),
            {"blocks": {str(v.layer): v.facts() for v in views}},
            (
                *(line for v in views for line in v.lines()),
                *(() if "tsne" in methods else ("no t-SNE: pip install 'errata[viz]'",)),
                *first_look(len(wrong), "wrong answer of the model"),
            ),
        )

    def _layers(self, backbone: Backbone, state: State) -> list[int]:
        in_state = sorted({int(k.split("/")[0][5:]) for k in state.tensors if "/enc_tru/" in k})
        layers = [backbone.layer(i) for i in self.config.layers] or in_state
        for i in layers:
            if i not in in_state:
                known = ", ".join(map(str, in_state))
                raise BadSpec(
                    f"the state has spaces for blocks {known}, not for {i}. "
                    "Choose one of those, or prepare it with that block in latent_layers."
                )
        return layers

    def _methods(self) -> list[str]:
        from importlib.util import find_spec

        wanted = self.config.picture
        has = find_spec("sklearn") is not None
        if wanted == "tsne" and not has:
            raise MissingExtra("t-SNE needs scikit-learn: pip install 'errata[viz]'.")
        return [wanted] if wanted != "auto" else ["pca", "tsne"] if has else ["pca"]

    def _figure(self, method: str, views: Sequence[BlockSpaces], subject: Subject) -> Figure:
        n, subjects = views[0].of("states").n, views[0].of("states").subjects
        panels = [p for v in views for p in v.panels(method)]
        return Figure(
            f"spaces-{method}",
            f"True and wrong answers in the spaces of each block ({METHODS[method]})",
            tuple(panels),
            len(panels) // len(views),
            f"{subject.backbone.name}, {subject.benchmark}: {counted(n, 'question')} about "
            f"{counted(subjects, 'subject')} that the encoders have not seen; at most "
            f"{self.config.points} drawn. Probe: ridge line, five folds of subjects, 95 % "
            "intervals over subjects. Answers alone: what the answer's text gives without any "
            "state. On known facts the line is the one fitted to the corrections: near 100 it "
            "finds truth, near 0 what the model did not expect.",
        )


def _spaces_of(subject: Subject) -> State:
    if subject.state is None:
        raise MissingState(
            "analysis 'spaces' looks at a state with both spaces, and none comes with the model. "
            "Run errata prepare BACKBONE --editor unike --benchmark NAME@train --out DIR, then "
            "pass --state DIR."
        )
    if not any("/enc_tru/" in k for k in subject.state.tensors):
        raise BadSpec(
            f"the state of editor '{subject.state.editor}' holds no semantic and truthfulness "
            "space. Give one of unike."
        )
    if "@train" in subject.benchmark:
        raise BadSpec(
            f"'{subject.benchmark}' is what the spaces were trained on, so that every probe would "
            "look good. Look at @dev or @eval."
        )
    return subject.state


# -- questions ----------------------------------------------------------------------------


def wrong_pairs(backbone: Backbone, cases: Sequence[Case]) -> list[AnswerPair]:
    """(true answer, the model's own wrong one) of the corrections that the model gets wrong."""
    triplets, _ = collect(backbone, cases)
    return [AnswerPair(t.prompt, t.true, t.wrong, t.subject, t.kind) for t in triplets]


def known_pairs(backbone: Backbone, cases: Sequence[Case], most: int) -> list[AnswerPair]:
    """(the model's answer, a false one) of at most `most` facts that it gets right, evenly spaced.

    The false answer is the target of a counterfactual edit.
    """
    chosen = [c for c in cases if c.origin == "counterfactual" and c.edit.old]
    right = []
    for start in range(0, len(chosen), BATCH):
        part = chosen[start : start + BATCH]
        batch = backbone.encode([c.edit.prompt for c in part], [c.edit.old or "" for c in part])
        answers = backbone.generate(batch, [len(t) + EXTRA_TOKENS for t in batch.targets])
        for case, answer in zip(part, answers, strict=True):
            if same_answer(backbone.decode(answer.ids), case.edit.old or ""):
                right.append(_known(case))
    most = min(most, len(right))
    return [right[i * len(right) // most] for i in range(most)]


def _known(case: Case) -> AnswerPair:
    subject = repr(case.scope) if case.scope else repr(case.edit.prompt)
    old, new = (case.edit.old or "").strip(), case.edit.target.strip()
    return AnswerPair(case.edit.prompt, old, new, subject, case.asked)


# -- hidden states and probes -----------------------------------------------------------------

#: [n, d] hidden states at the end of the true answers, and of the false ones
Answers = tuple[Tensor, Tensor]


def encoded(state: State, layer: int, encoder: str, pos: Tensor, neg: Tensor) -> Answers:
    """Unit vectors of both sides in a space; encoder "": of the hidden states themselves."""
    weights = state.under(f"text.{layer}/{encoder}/") if encoder else {}
    pos, neg = (unit(encode(h.float(), weights) if weights else h.float()) for h in (pos, neg))
    return pos, neg


class BlockSpaces:
    """One block: its hidden states, both spaces, and the accuracy of probes in each."""

    def __init__(
        self,
        state: State,
        layer: int,
        wrong: Sequence[AnswerPair],
        known: Sequence[AnswerPair],
        states: tuple[Answers, Answers | None],
        seed: int,
        most: int,
    ) -> None:
        self.layer, self.wrong, self.known, self.seed = layer, wrong, known, seed
        self.chosen, self.chosen_known = _spaced(len(wrong), most), _spaced(len(known), most)
        self.account: Mapping[str, Any] = state.meta.get("blocks", {}).get(str(layer), {})
        self.spaces = {s: encoded(state, layer, e, *states[0]) for s, e in SPACES.items()}
        self.known_spaces = {
            s: encoded(state, layer, e, *states[1]) for s, e in SPACES.items() if states[1]
        }
        self.scores = {name: self._score(*self.spaces[name]) for name in SPACES}
        self._drawn: dict[tuple[str, str], list[Tensor]] = {}

    def of(self, space: str) -> ProbeScore:
        return self.scores[space]

    def _score(self, pos: Tensor, neg: Tensor) -> ProbeScore:
        marks = folds(pos, neg, self.wrong, self.seed)
        pairs = [(p.true, p.wrong) for p in self.wrong]
        subjects = [p.subject for p in self.wrong]
        once = [1.0] * len(pairs), [1.0] * len(pairs)
        right, alone = marks[:2], marks[2:]
        return ProbeScore(
            _weighted(right, once, subjects),
            _weighted(right, shares(pairs), subjects),
            _weighted(alone, once, subjects),
            len(pairs),
            len(set(subjects)),
        )

    def on_known(self, space: str) -> Estimate | None:
        """Accuracy on known facts of the classifier that is fitted to corrections; None without."""
        if not self.known:
            return None
        pos, neg = self.spaces[space]
        labels = torch.cat([torch.ones(len(pos)), -torch.ones(len(neg))])
        line = ridge_probe(torch.cat([pos, neg]), labels)
        true, false = self.known_spaces[space]
        right = (decisions(true, line) > 0).tolist(), (decisions(false, line) <= 0).tolist()
        once = [1.0] * len(self.known), [1.0] * len(self.known)
        return _weighted(right, once, [p.subject for p in self.known])

    def notes(self, space: str) -> tuple[str, ...]:
        s = self.of(space)
        return (
            f"probe {_percent(s.probe)}, n = {s.n}",
            f"answers balanced {_percent(s.balanced)}",
            f"answers alone {_percent(s.alone)}",
        )

    def panels(self, method: str) -> list[Panel]:
        out: list[Panel] = []
        for space in SPACES:
            points = self.points(method, space)
            title = f"block {self.layer}: {space if space == 'states' else space + ' space'}"
            out.append(Scatter(title, _dots(points[:2], "corrections"), self.notes(space)))
        if self.known:
            out.append(
                Scatter(
                    f"block {self.layer}: truthfulness, known",
                    _dots(points[2:], "known facts"),
                    (
                        f"the same line {_percent(self.on_known('truthfulness'))}",
                        f"on plain states {_percent(self.on_known('states'))}",
                        f"{counted(len(self.known), 'fact')}, "
                        f"{counted(len({p.subject for p in self.known}), 'subject')}",
                    ),
                )
            )
        return out

    def points(self, method: str, space: str) -> list[Tensor]:
        """[., 2] each: true and wrong answers of corrections, true and false ones of known facts.

        All are projected together; the axes of PCA are those of the corrections.
        """
        if (method, space) not in self._drawn:
            parts = [h[self.chosen] for h in self.spaces[space]]
            if self.known:
                parts += [h[self.chosen_known] for h in self.known_spaces[space]]
            together = torch.cat(parts)
            if method == "pca":
                flat = principal(torch.cat(parts[:2]), together)
            else:
                flat = neighbours(together, self.seed)
            self._drawn[method, space] = list(torch.split(flat, [len(p) for p in parts]))
        return self._drawn[method, space]

    def facts(self) -> dict[str, Any]:
        spaces = {}
        for name in SPACES:
            s = self.of(name)
            spaces[name] = {
                "probe": _json(s.probe), "answers balanced": _json(s.balanced),
                "answers alone": _json(s.alone), "n": s.n, "subjects": s.subjects,
                "line on known facts": _json(self.on_known(name)), "known facts": len(self.known),
            }  # fmt: skip
        return {"spaces": spaces, "when prepared": dict(self.account)}

    def lines(self) -> list[str]:
        out = []
        for name in SPACES:
            known = self.on_known(name)
            on = f"; on {len(self.known)} known facts {_percent(known)}" if known else ""
            out.append(f"block {self.layer}, {name}: {'; '.join(self.notes(name))}{on}")
        return out


def folds(
    pos: Tensor, neg: Tensor, pairs: Sequence[AnswerPair], seed: int
) -> tuple[list[float], list[float], list[float], list[float]]:
    """[n] each, for true and wrong answers: right by the probe, right by the answer alone.

    Every question is classified without its subject in the training set. `seed` shuffles subjects.
    """
    rng = torch.Generator().manual_seed(seed)
    subjects = sorted({p.subject for p in pairs})
    order = torch.randperm(len(subjects), generator=rng).tolist()
    fold_of = {subjects[i]: k % FOLDS for k, i in enumerate(order)}
    fold = [fold_of[p.subject] for p in pairs]
    answers = [(p.true, p.wrong) for p in pairs]
    out: tuple[list[float], ...] = tuple([0.0] * len(pairs) for _ in range(4))
    for k in range(FOLDS):
        train = [i for i, f in enumerate(fold) if f != k]
        test = [i for i, f in enumerate(fold) if f == k]
        labels = torch.cat([torch.ones(len(train)), -torch.ones(len(train))])
        line = ridge_probe(torch.cat([pos[train], neg[train]]), labels)
        alone = by_answer([answers[i] for i in train])
        for i in test:
            out[0][i] = float(decisions(pos[i], line) > 0)
            out[1][i] = float(decisions(neg[i], line) <= 0)
            out[2][i], out[3][i] = alone(answers[i][0], True), alone(answers[i][1], False)
    return out[0], out[1], out[2], out[3]


def _weighted(
    marks: tuple[Sequence[float], Sequence[float]],
    weights: tuple[Sequence[float], Sequence[float]],
    subjects: Sequence[str],
) -> Estimate | None:
    """The weighted mean of marks of true and wrong answers, with an interval over subjects."""
    parts: dict[str, tuple[float, float]] = {}
    for subject, *each in zip(subjects, *marks, *weights, strict=True):
        right_pos, right_neg, w_pos, w_neg = map(float, each)
        top, bottom = parts.get(subject, (0.0, 0.0))
        top += w_pos * right_pos + w_neg * right_neg
        parts[subject] = (top, bottom + w_pos + w_neg)
    return Intervals(sorted(parts)).ratio(parts, within=(0.0, 1.0))


# -- figures and tables ----------------------------------------------------------------------------


def principal(fitted: Tensor, shown: Tensor) -> Tensor:
    """[m, 2] `shown` along the two main directions of `fitted` [n, d]."""
    mean = fitted.mean(0)
    directions = torch.linalg.svd((fitted - mean).double(), full_matrices=False).Vh[:2]
    signs = directions.gather(1, directions.abs().argmax(1, keepdim=True)).sign()
    flat: Tensor = (shown - mean).double() @ (directions * signs).T
    return flat.float()


def neighbours(states: Tensor, seed: int) -> Tensor:
    """[n, 2] t-SNE of [n, d]. Needs scikit-learn."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(states) - 1) / 3)
    flat = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(states.numpy())
    return torch.from_numpy(np.asarray(flat)).float()


def _dots(points: Sequence[Tensor], what: str) -> tuple[Dots, ...]:
    pos, neg = ([(float(x), float(y)) for x, y in part] for part in points)
    if what == "corrections":
        return (
            Dots("true answer", tuple(pos), "changes"),
            Dots("the model's wrong answer", tuple(neg), "stays"),
        )
    return (
        Dots("known: the model's true answer", tuple(pos), "right"),
        Dots("known: a false answer", tuple(neg), "wrong"),
    )


def _spaced(count: int, most: int) -> list[int]:
    most = min(most, count)
    return [i * count // most for i in range(most)]


def _percent(estimate: Estimate | None) -> str:
    return text(estimate, 1, scale=100)


def _json(e: Estimate | None) -> dict[str, Any] | None:
    return None if e is None else {"value": e.value, "ci95": list(e.ci95) if e.ci95 else None}


def _numbers(views: Sequence[BlockSpaces]) -> Table:
    columns = ("block", "space", "questions", "subjects", "known_facts")
    rows = []
    for v in views:
        for space in SPACES:
            s = v.of(space)
            scores = (s.probe, s.balanced, s.alone, v.on_known(space))
            flat = [x for score in scores for x in cells(score)]
            rows.append((v.layer, space, s.n, s.subjects, len(v.known), *flat))
    return Table("spaces", (*columns, *with_ends("probe", "balanced", "alone", "known")), rows)


def _points(method: str, views: Sequence[BlockSpaces]) -> Table:
    """Every drawn point."""
    columns = ("block", "space", "set", "answer", "x", "y")
    rows = []
    for v in views:
        for space in SPACES:
            points = v.points(method, space)
            names = [("correction", "true"), ("correction", "own wrong")]
            names += [("known", "own true"), ("known", "false")]
            for (which, answer), part in zip(names, points, strict=False):
                rows += [
                    (v.layer, space, which, answer, round(x, 5), round(y, 5))
                    for x, y in part.tolist()
                ]
    return Table(f"spaces-{method}", columns, rows)
