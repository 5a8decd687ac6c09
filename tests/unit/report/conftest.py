"""Synthetic runs: five editors, three protocols, answers drawn from made-up rates.

Nothing here edits a model; the rates only give the report something to show.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow
from PIL import ImageDraw

from errata.core import registry
from errata.core.files import append_lines, write_json
from errata.core.kinds import LOCALITY_KINDS
from errata.core.measure.protocol import Protocol
from errata.core.types import Answer, Case, Edit, Image, Probe, Prompt, Scored, to_json
from errata.evaluation.score import score_run

COLOURS = {
    "red": "#c8443a",
    "blue": "#3a6ec8",
    "green": "#3f9b58",
    "amber": "#d69a2d",
    "violet": "#7b52b9",
}
SHAPES = ("disc", "square", "triangle")
NAMES = ("Velm", "Orsa", "Tamrin", "Quill", "Besset", "Ludo", "Harrow", "Nim")

#: editor -> reliability, generality, far and near locality, forgetting per later edit, seconds
EDITORS = {
    "ft_l": (0.99, 0.72, 0.95, 0.41, 0.05, 0.31),
    "ft_v": (0.93, 0.55, 0.97, 0.60, 0.06, 0.44),
    "tpatcher": (0.98, 0.64, 0.99, 0.79, 0.02, 0.92),
    "ike": (0.83, 0.80, 0.91, 0.52, 0.01, 0.004),
    "lora": (0.99, 0.77, 0.93, 0.33, 0.07, 0.75),
}
PROTOCOLS = ("one_step", "batch:5", "sequential:10")
PANEL = tuple(Probe(f"r{i}", Prompt.of(f"Panel question {i}?"), "retention") for i in range(4))

MakeRun = Callable[..., Path]


def picture(folder: Path, colour: str, shape: str) -> Image:
    """A drawn file, made once."""
    path = folder / f"{colour}-{shape}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        image = Pillow.new("RGB", (64, 64), "#efece4")
        draw = ImageDraw.Draw(image)
        if shape == "disc":
            draw.ellipse((14, 14, 50, 50), fill=COLOURS[colour])
        elif shape == "square":
            draw.rectangle((14, 14, 50, 50), fill=COLOURS[colour])
        else:
            draw.polygon([(32, 10), (54, 52), (10, 52)], fill=COLOURS[colour])
        image.save(path)
    return Image(str(path))


def make_cases(images: Path, count: int) -> list[Case]:
    rng = random.Random(0)
    cases = []
    for i in range(count):
        colour, target = rng.sample(sorted(COLOURS), 2)
        shape, name = rng.choice(SHAPES), NAMES[i % len(NAMES)]
        other = rng.choice([c for c in COLOURS if c != colour])
        own = Image(str(images / f"case{i}.png"))
        if not Path(own.uri).exists():
            picture(images, colour, shape)
            Path(own.uri).write_bytes((images / f"{colour}-{shape}.png").read_bytes())
        again = picture(images, colour, SHAPES[(SHAPES.index(shape) + 1) % 3])
        near = picture(images, other, shape)
        ask = Prompt.of(f"What colour is {name}, the {shape}?", own)
        probes = (
            Probe("rel", ask, "reliability", reference=target),
            Probe(
                "tg1", ask.with_text(f"Name the colour of {name}."), "t_generality", "seen", target
            ),
            Probe(
                "tg2", ask.with_text(f"{name}'s paint is which?"), "t_generality", "unseen", target
            ),
            Probe("mg", Prompt.of(ask.text, again), "m_generality", reference=target),
            Probe("tl", Prompt.of("Who wrote the Velm almanac?"), "t_locality", reference="Ossi"),
            Probe("ml", Prompt.of("How many are there?", near), "m_locality", reference="one"),
            Probe(
                "n1",
                Prompt.of(f"What colour is the {shape}?", near),
                "near_locality",
                "near1",
                other,
            ),
            Probe("n2", ask.with_text("What shape is it?"), "near_locality", "same_image", shape),
            Probe("po", ask.with_text("Is its colour warm?"), "portability", reference="yes"),
        )
        origin = "correction" if i % 3 == 0 else "counterfactual"
        edit = Edit(ask, target, subject=name, old=colour, id=f"e{i:03d}")
        cases.append(Case(f"vqa-{i:03d}", edit, probes, origin=origin, asked="colour"))
    return cases


def scored(right: float, length: int, rng: random.Random) -> Scored:
    ids = tuple(range(length))
    argmax = tuple(i if rng.random() < right else 999 for i in ids)
    return Scored(ids, (-0.5,) * length, argmax)


def rate(editor: str, probe: Probe, later: int) -> float:
    reliable, general, far, near, forget, _ = EDITORS[editor]
    base = {"reliability": reliable, "t_generality": general, "m_generality": general - 0.1}
    base |= {"portability": general / 2, "near_locality": near, "retention": far}
    return max(base.get(probe.kind, far) - forget * later * 0.8, 0.02)


def answer(case: str, probe: Probe, editor: str, step: int, tag: str, later: int) -> Answer:
    rng = random.Random(f"{case}{probe.id}{editor}")
    keep = probe.kind in LOCALITY_KINDS
    good = rng.random() < rate(editor, probe, later)
    text = before_text(case, probe) if keep == good and keep else probe.reference
    text = text if good else rng.choice(sorted(COLOURS))
    same = keep and good
    ids = (1,) if same else (2, len(text))
    token = 0.5 + 0.5 * rate(editor, probe, later)
    capped = not good and rng.random() < 0.08
    own = scored(token, 2, rng) if keep else None
    return Answer(case, probe.id, step, tag, text, ids, not capped, scored(token, 2, rng), own)


def before_text(case: str, probe: Probe) -> str:
    rng = random.Random(f"{case}{probe.id}")
    return probe.reference if probe.kind in LOCALITY_KINDS else rng.choice(sorted(COLOURS))


def write_run(path: Path, editor: str, spec: str, cases: list[Case], **manifest: Any) -> Path:
    """A complete, scored run folder."""
    name, _, argument = spec.partition(":")
    protocol: Protocol = registry.load("protocols", name)(argument)
    units = protocol.plan(cases, rows=4, seed=0)
    before = [
        Answer(
            c.id,
            p.id,
            text=before_text(c.id, p),
            ids=(1,),
            reference=Scored((0, 1), (-1, -1), (0, 9)),
        )
        for c in cases
        for p in c.probes
    ]
    before += [Answer("panel", p.id, text="x", ids=(1,)) for p in PANEL]
    after = []
    for unit in units:
        steps = list(protocol.steps(unit, PANEL))
        for index, step in enumerate(steps):
            for lane, turn in zip(unit.lanes, step.lanes, strict=True):
                place = {c.id: i for i, c in enumerate(lane.cases)}
                for ask in turn.asks:
                    own = ask.tag == "own" or name == "batch"
                    later = 0 if own else len(lane.cases) - 1 - place.get(ask.case, 0)
                    after.append(answer(ask.case, ask.probe, editor, index, ask.tag, later))
    append_lines(path / "before.jsonl", before)
    append_lines(path / "answers.jsonl", after)
    seconds = EDITORS[editor][-1]
    rng = random.Random(editor)
    facts = {
        "schema": 1,
        "backbone": "micro-vlm",
        "fingerprint": "9f2c" * 16,
        "editor": editor,
        "arguments": {},
        "config": {"steps": 50, "lr": 0.001},
        "benchmark": "microworld:vqa@eval/disjoint",
        "protocol": spec,
        "seed": 0,
        "limit": len(cases),
        "versions": {"errata": "0.1.0", "torch": "2.13.0"},
        "git": "5d06122",
    }
    write_json(path / "manifest.json", {**facts, **manifest})
    plan = {
        "schema": 1,
        "benchmark": "microworld:vqa@eval/disjoint",
        "protocol": spec,
        "cases": [to_json(c) for c in cases],
        "panel": [to_json(p) for p in PANEL],
        "units": [
            {
                "id": u.id,
                "lanes": [{"id": x.id, "cases": [c.id for c in x.cases]} for x in u.lanes],
            }
            for u in units
        ],
        "dropped": [
            {"id": f"d{i}", "reason": "the base already answers the target"} for i in range(7)
        ]
        + [{"id": f"m{i}", "reason": f"the model says '{i}', not the old answer"} for i in range(3)]
        + [{"id": f"{cases[0].id}/po2", "reason": "the hop is not known"}]
        + [{"id": "d9", "reason": "image is missing"}],
    }
    write_json(path / "plan.json", plan)
    timing = {
        "phases": {
            "before": {"seconds": 12.5, "count": len(before), "peak_mb": 410.0},
            "edit": {"seconds": seconds * len(cases), "count": len(cases), "peak_mb": 655.5},
            "ask": {"seconds": 48.25, "count": len(after), "peak_mb": 522.0},
        },
        "edit_seconds": [seconds * rng.uniform(0.7, 1.6) for _ in cases],
    }
    write_json(path / "timing.json", timing)
    score_run(path)
    return path


def write_all(root: Path, count: int = 40) -> list[Path]:
    """Every editor under every protocol."""
    cases = make_cases(root / "images", count)
    return [
        write_run(root / f"{editor}-{spec.replace(':', '')}", editor, spec, cases)
        for spec in PROTOCOLS
        for editor in EDITORS
    ]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Scored runs of five editors under three protocols; do not change them."""
    return write_all(tmp_path_factory.mktemp("runs"), 20)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run(name, editor, spec, cases, change, **manifest)` writes one run of its own."""

    def make(
        name: str,
        editor: str,
        spec: str = "one_step",
        cases: int = 20,
        change: Callable[[Case], Case] | None = None,
        **manifest: Any,
    ) -> Path:
        made = make_cases(tmp_path / "images", cases)
        made = [change(c) for c in made] if change else made
        return write_run(tmp_path / name, editor, spec, made, **manifest)

    return make


@pytest.fixture(scope="session")
def drawn_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two editors over both protocols, with verdicts, of a model that draws."""
    from tests.unit.report.drawn import write_drawn  # torch, which most tests here do without

    return write_drawn(tmp_path_factory.mktemp("drawn"))
