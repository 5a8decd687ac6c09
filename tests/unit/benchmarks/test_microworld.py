"""microworld: a deterministic world, declared scopes, and splits that share nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import errata
from errata.benchmarks.microworld import Microworld
from errata.core import registry
from errata.core.errors import BadImage
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.types import Case, Probe, from_json, to_json
from errata.synthetic.objects import language, render, world
from errata.synthetic.objects.world import ObjectScene

ASSETS = Path(errata.__file__).parent / "assets" / "micro-vlm"
BENCH = Microworld()
SPLITS = ("train", "dev", "eval")


def load(split: str, task: str = "vqa", variant: str = "disjoint") -> tuple[Case, ...]:
    return BENCH.load(BenchmarkSpec("microworld", (task,), split, variant)).cases


def scene_of(probe: Probe) -> ObjectScene:
    (image,) = probe.prompt.images
    return ObjectScene.parse(image.uri.removeprefix("microworld:"))


def of(case: Case, kind: str, group: str = "") -> list[Probe]:
    return [p for p in case.probes if p.kind == kind and p.group == group]


def test_is_registered_and_parses() -> None:
    assert registry.load("benchmarks", "microworld") is Microworld
    spec = BenchmarkSpec.parse("microworld:vqa@train/published")
    assert str(spec) == "microworld:vqa@train/published"


def test_imports_no_torch() -> None:
    code = (
        "import sys, errata.benchmarks.microworld as m; m.Microworld; print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


# ----------------------------------------------------------------------------------------- pictures


def test_scene_specs_are_canonical_and_round_trip() -> None:
    for case in load("eval")[:200]:
        for image in case.edit.prompt.images:
            spec = image.uri.removeprefix("microworld:")
            assert ObjectScene.parse(spec).spec() == spec
            assert image.sha256 == hashlib.sha256(spec.encode()).hexdigest()


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "shape=ring",
        "colour=red,shape=ring,pattern=plain,accent=none,size=big,position=top,background=grey,seed=1",
        "shape=ring,colour=red,pattern=plain,accent=white,size=big,position=top,background=grey,seed=1",
        "shape=ring,colour=red,pattern=plain,accent=none,size=big,position=top,background=grey,seed=01",
        "shape=ring,colour=red,pattern=plain,accent=none,size=huge,position=top,background=grey,seed=1",
        "shape=../x,colour=red,pattern=plain,accent=none,size=big,position=top,background=grey,seed=1",
    ],
)
def test_a_spec_that_is_not_canonical_is_refused(spec: str) -> None:
    with pytest.raises(BadImage, match="scene"):
        BENCH.open_image(spec)


def test_rendering_is_deterministic_and_every_attribute_shows() -> None:
    spec = (
        "shape=ring,colour=red,pattern=striped,accent=white,size=big,position=top,"
        "background=grey,seed=5"
    )
    image = BENCH.open_image(spec)
    assert image.mode == "RGB" and image.size == (render.SIDE, render.SIDE)
    base = np.asarray(image).astype(int)
    assert np.array_equal(base, np.asarray(BENCH.open_image(spec)))
    scene = ObjectScene.parse(spec)
    other = {"shape": "disc", "colour": "blue", "pattern": "dotted", "accent": "black"}
    for attribute, value in other.items():
        look = world.Appearance(**(dict(scene.look.items()) | {attribute: value}))
        moved = render.render(scene.varied(look=look)).astype(int)
        assert np.abs(moved - base).max() > 40, attribute
    for attribute, value in {"size": "small", "position": "left", "background": "navy"}.items():
        moved = render.render(scene.varied(**{attribute: value})).astype(int)
        assert np.abs(moved - base).max() > 40, attribute


# -------------------------------------------------------------------------------------------- cases


def test_sizes_and_origins() -> None:
    for split, least in (("train", 3000), ("dev", 500), ("eval", 500)):
        assert len(load(split)) >= least
        captions = load(split, "caption")
        assert len(captions) >= (1500 if split == "train" else 500)
        origins = Counter(c.origin for c in (*load(split), *captions))
        assert origins["correction"] >= (1500 if split == "train" else 250)
        assert origins["counterfactual"] >= (1500 if split == "train" else 250)
        assert {c.origin for c in captions} == {"correction", "counterfactual"}


def test_loading_is_deterministic_fast_and_of_a_seed() -> None:
    code = (
        "from errata.benchmarks.microworld import Microworld\n"
        "from errata.core.types import digest\n"
        "from errata.core.measure.benchmark import BenchmarkSpec\n"
        "b = Microworld(); s = BenchmarkSpec('microworld', ('vqa',), 'eval', 'disjoint')\n"
        "print(digest([digest(c) for c in b.load(s).cases[:50]]))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout != ""
    start = time.process_time()
    spec = BenchmarkSpec("microworld", ("vqa", "caption"), "eval", "disjoint")
    other = BENCH.load(spec, seed=1).cases
    assert time.process_time() - start < 4
    assert [c.edit for c in other] != [c.edit for c in BENCH.load(spec).cases]


def test_ids_are_unique_and_cases_round_trip() -> None:
    cases = [c for s in SPLITS for t in BENCH.tasks for c in load(s, t)]
    assert len({c.id for c in cases}) == len(cases)
    for c in cases[::50]:
        assert len({p.id for p in c.probes}) == len(c.probes)
        assert from_json(Case, to_json(c)) == c


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_each_case_has_its_probes(task: str) -> None:
    for c in load("eval", task):
        assert len(of(c, "reliability")) == 1
        assert len(of(c, "t_generality", "seen")) == len(of(c, "t_generality", "unseen")) == 2
        assert len(of(c, "m_generality")) >= 2
        assert len(of(c, "t_locality", "far")) == len(of(c, "m_locality", "far")) == 2
        assert of(c, "near_locality", "same_image")
        for p in c.probes:
            told = p.kind in ("t_locality", "m_locality", "near_locality")
            assert not (told and p.reference == c.edit.target), p
            assert p.reference
        if c.origin == "counterfactual":
            assert c.edit.old and c.edit.old != c.edit.target
        else:
            assert c.edit.old is None
        if task == "vqa":
            assert c.edit.subject and c.edit.subject in c.edit.prompt.text
    near = [bool(of(c, "near_locality", "near2")) for c in load("eval", task)]
    assert sum(near) > 0.95 * len(near)
    groups = Counter(f"{p.kind}/{p.group}" for c in load("eval", task) for p in c.probes)
    assert groups["portability/"] > 50
    if task == "vqa":
        assert groups["near_locality/same_answer"] > 300
        assert groups["near_locality/neighbour"] > 300


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_probes_keep_to_the_declared_scope(task: str) -> None:
    for c in load("eval", task):
        scope = dict(c.scope)
        first = scene_of(of(c, "reliability")[0])
        assert all(first.get(a) == v for a, v in scope.items() if a != "name")
        mentioned = set(language.MENTIONED) if task == "caption" else {c.asked}
        for p in of(c, "m_generality"):
            moved = scene_of(p)
            assert moved.look == first.look and p.prompt.text == c.edit.prompt.text
            assert any(moved.get(a) != first.get(a) for a in world.FREE)
            assert all(moved.get(a) == first.get(a) for a in mentioned & set(world.FREE))
        for distance in (1, 2):
            for p in of(c, "near_locality", f"near{distance}"):
                assert scene_of(p).look.distance(first.look) == distance
                assert p.prompt.text == c.edit.prompt.text
        for p in of(c, "near_locality", "same_image"):
            assert p.prompt.images == c.edit.prompt.images
        for p in of(c, "near_locality", "same_answer"):
            assert p.reference == c.edit.old
        for p in (*of(c, "t_locality", "far"), *of(c, "near_locality", "neighbour")):
            assert not p.prompt.images
            assert scope.get("name", "no name") not in p.prompt.text
        for p in of(c, "portability"):
            assert p.hop and p.hop.reference


# ------------------------------------------------------------------------------------------- splits


def test_splits_share_nothing_but_what_published_says() -> None:
    audit = BENCH.audit()
    for pair, shared in audit["shared"]["disjoint"].items():
        assert not any(shared.values()), pair
    published = audit["shared"]["published"]
    assert published["train/eval"]["far m-locality (image, question)"] > 300
    assert published["train/eval"]["far t-locality questions"] > 100
    assert published["train/eval"]["(shape, colour, pattern, asked)"] == 0
    assert audit["eval_equal_in_both_variants"]


def test_the_variants_differ_in_far_locality_of_train_only() -> None:
    for a, b in zip(load("train"), load("train", variant="published"), strict=True):
        assert a.edit == b.edit
        kept = [[p for p in c.probes if p.group != "far"] for c in (a, b)]
        assert kept[0] == kept[1]


def test_withheld_things_are_the_corrections_and_never_locality() -> None:
    withheld = {e.look for e in world.entities() if not e.known}
    for c in load("eval"):
        for p in c.probes:
            if p.prompt.images and p.kind in ("m_locality", "near_locality"):
                own = p.prompt.images == c.edit.prompt.images
                assert own or scene_of(p).look not in withheld
        if c.origin == "correction":
            entity = world.entity_of()[scene_of(of(c, "reliability")[0]).look]
            assert not entity.taught(c.asked)
            assert c.edit.target == entity.fact(c.asked)


def test_the_panel_is_unrelated_to_every_edit() -> None:
    panel = BENCH.panel(BenchmarkSpec("microworld"))
    assert len(panel) == 50 == len({p.id for p in panel})
    assert {p.kind for p in panel} == {"retention"}
    split = world.triple_split()
    for p in panel:
        if p.prompt.images:
            assert split[scene_of(p).look.triple] == "panel"


def test_reserved_wordings_are_made_of_trained_words() -> None:
    for relation in (*language.RELATIONS, "caption"):
        groups = {g: set(language.wordings(relation, g)) for g in ("seen", *SPLITS)}
        assert all(len(groups[s]) >= 3 for s in SPLITS)
        assert sum(map(len, groups.values())) == len(set().union(*groups.values()))
        assert {w.noun for w in groups["seen"]} == {w.noun for s in SPLITS for w in groups[s]}
        assert {w.template for s in SPLITS for w in groups[s]} <= {
            w.template for w in groups["seen"]
        }
    assert language.CAPTION in [
        language.ask("caption", w, "") for w in language.wordings("caption")
    ]


# ---------------------------------------------------------------------------------------- tokeniser


def test_names_and_values_have_several_tokens_and_share_first_ones() -> None:
    tok = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    said = {e.name for e in world.entities()}
    for r in (*world.VALUES, "home", "country"):
        said |= set(world.values(r))
    for group in (said, said - {e.name for e in world.entities()}):
        ids = {w: tok.encode(f" {w}", add_special_tokens=False).ids for w in group}
        assert sum(2 <= len(i) <= 4 for i in ids.values()) >= len(group) / 3
        assert len({i[0] for i in ids.values()}) < len(group) * 0.9
    colours = {
        w: tok.encode(f" {w}", add_special_tokens=False).tokens for w in world.values("home")
    }
    assert len({t[0] for t in colours.values()}) < len(colours)


def test_nothing_is_unknown_and_a_prompt_is_a_prefix_of_prompt_and_target() -> None:
    tok = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    for text in ("What hue?", "naïve 日本 \n\t €", "New Fact: a b\nPrompt: c"):
        ids = tok.encode(text, add_special_tokens=False).ids
        assert tok.decode(ids) == text
    for task in BENCH.tasks:
        for c in load("eval", task)[:100]:
            prompt = tok.encode(c.edit.prompt.text).ids
            joined = tok.encode(f"{c.edit.prompt.text} {c.edit.target}").ids
            assert joined[: len(prompt)] == prompt


# ---------------------------------------------------------------------------------- bundled weights


def test_the_bundled_model_is_small_and_has_its_card() -> None:
    assert sum(f.stat().st_size for f in ASSETS.iterdir()) <= 10_000_000
    card = (ASSETS / "README.md").read_text(encoding="utf-8")
    for relation in (*world.IDENTITY, *world.FREE, "name", "caption", *world.FACTS, "country"):
        line = next(k for k in card.splitlines() if k.startswith(f"| image/{relation} |"))
        assert float(line.split("|")[2].split("(")[0]) >= 95, line


@pytest.mark.trained
def test_the_bundled_model_knows_what_counterfactual_edits_replace() -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(ASSETS)
    model = AutoModelForImageTextToText.from_pretrained(ASSETS).eval()
    right = 0
    cases = [c for t in BENCH.tasks for c in load("eval", t) if c.origin == "counterfactual"][::29]
    for c in cases:
        image = BENCH.open_image(c.edit.prompt.images[0].uri.removeprefix("microworld:"))
        text = f"<image>\n{c.edit.prompt.text}"
        inputs = processor(images=image, text=text, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        right += processor.tokenizer.decode(new, skip_special_tokens=True).strip() == c.edit.old
    assert right >= 0.9 * len(cases)
