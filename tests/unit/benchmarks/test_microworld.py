"""microworld: a deterministic world, declared scopes, and splits that share nothing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

import errata
from errata.benchmarks.microworld import Microworld
from errata.benchmarks.microworld.audit import template_of
from errata.benchmarks.microworld.slices import TEMPLATES
from errata.core import registry
from errata.core.errors import BadImage
from errata.core.measure.benchmark import BenchmarkSpec
from errata.core.types import Case, Probe, digest, from_json, to_json
from errata.evaluation.plan import protocol_of
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
        "shape=ring,colour=red,pattern=plain,accent=none,size=big,position=top,background=grey,seed=1,light=100",
        "shape=ring,colour=red,pattern=plain,accent=none,size=big,position=top,background=grey,seed=1,light=10",
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
    dim = render.render(scene.varied(light=90)).astype(int)
    assert dim.mean() < base.mean() and ObjectScene.parse(scene.varied(light=90).spec()).light == 90
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
        assert origins["correction"] >= (1200 if split == "train" else 250)
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
    assert time.process_time() - start < 15, "about 2 on an idle core"
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
    follows = [c for c in load("eval", task) if of(c, "portability")]
    assert len(follows) > 150, "candidates; the model knows nearly all of the second facts"
    assert groups["near_locality/near1_moved"] > 400 and groups["near_locality/same_subject"] > 400
    if task == "vqa":
        assert groups["near_locality/same_answer"] > 300
        assert groups["near_locality/neighbour"] > 300
        assert groups["cross_modal/by_name"] > 150


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
        for p in of(c, "near_locality", "near1_moved"):
            moved = scene_of(p)
            assert moved.look.distance(first.look) == 1 and p.prompt.text == c.edit.prompt.text
            assert moved.light != first.light and moved.seed != first.seed
            assert all(moved.get(a) == first.get(a) for a in mentioned & set(world.FREE))
        for p in of(c, "near_locality", "same_subject"):
            assert p.prompt.images != c.edit.prompt.images
            if p.prompt.images:
                assert scene_of(p).look == first.look
            else:
                assert scope["name"] in p.prompt.text
        for p in of(c, "cross_modal", "by_name"):
            assert not p.prompt.images and scope["name"] in p.prompt.text
            assert p.reference == c.edit.target and p.custom_kind is not None
        for p in c.probes:
            target = p.kind in ("reliability", "t_generality", "m_generality", "cross_modal")
            own = set(p.depends_on) & set(c.states)
            assert bool(own) == (target or p.kind == "portability"), p.id
        for p in of(c, "near_locality", "same_image"):
            assert p.prompt.images == c.edit.prompt.images
        for p in of(c, "near_locality", "same_answer"):
            assert p.reference == c.edit.old
        for p in (*of(c, "t_locality", "far"), *of(c, "near_locality", "neighbour")):
            assert not p.prompt.images
            assert scope.get("name", "no name") not in p.prompt.text
        for p in of(c, "portability"):
            assert p.hop and p.hop.depends_on
            assert p.hop and p.hop.reference


# ------------------------------------------------------------------------------------------- splits


@pytest.fixture(scope="module")
def audit() -> dict[str, Any]:
    return dict(BENCH.audit())


def test_splits_share_nothing_but_what_published_says(audit: dict[str, Any]) -> None:
    for pair, shared in audit["shared"]["disjoint"].items():
        assert not any(shared.values()), pair
    published = audit["shared"]["published"]
    assert published["train/eval"]["far m-locality (image, question)"] > 300
    assert published["train/eval"]["far t-locality questions"] > 100
    assert published["train/eval"]["(shape, colour, pattern, asked)"] == 0
    assert audit["eval_equal_in_both_variants"]


def test_what_a_portability_question_leads_to_is_of_one_split(audit: dict[str, Any]) -> None:
    for shared in audit["shared"]["disjoint"].values():
        assert shared["home -> country pairs"] == shared["second facts of hops"] == 0
    pairs = {split: _pairs(load(split)) for split in SPLITS}
    assert {split: len(of) for split, of in pairs.items()} == {"train": 12, "dev": 6, "eval": 6}
    countries = {split: {country for _, country in of} for split, of in pairs.items()}
    assert not countries["train"] & countries["eval"] and not countries["dev"] & countries["eval"]
    first = {split: _pairs(load(split, variant="v1")) for split in SPLITS}
    assert {p for p in first["eval"]} <= {p for p in first["train"]}, "version 1: it was recall"


def _pairs(cases: tuple[Case, ...]) -> set[tuple[str, str]]:
    """The (town, country) pairs that portability questions lead over."""
    homes = [c for c in cases if c.asked == "home"]
    return {(c.edit.target, p.reference) for c in homes for p in of(c, "portability")}


def test_a_colour_a_shape_and_two_templates_are_kept_for_unseen(audit: dict[str, Any]) -> None:
    for split, found in audit["held back"].items():
        assert not any(found.values()), f"{split} uses what is held back: {found}"
    assert not any(audit["train shares with eval/unseen"].values())
    unseen = load("eval", variant="unseen")
    assert len(unseen) > 300
    for c in unseen:
        assert dict(c.scope)["colour"] == "red" or dict(c.scope)["shape"] == "triangle"
        assert template_of(c.edit.prompt.text) in TEMPLATES
    every = {c.id for c in load("eval", variant="all")}
    assert {c.id for c in unseen} <= every and {c.id for c in load("eval")} < every


def test_consequences_are_the_cases_that_something_follows_from() -> None:
    found, every = load("eval", variant="consequences"), load("eval", variant="all")
    assert len(found) > 300 and [c for c in every if of(c, "portability")] == list(found)
    assert load("train", variant="consequences") == load("train")


@pytest.mark.parametrize("variant", ["unseen", "all"])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_no_editor_is_made_on_what_is_held_back(split: str, variant: str) -> None:
    assert load(split, variant=variant) == load(split)


def test_twelve_hundred_edits_fit_into_one_memory(audit: dict[str, Any]) -> None:
    assert audit["eval/all"]["stated facts"]["vqa"] >= 1400, "1430 of 1464 are usable on micro-vlm"
    (unit,) = protocol_of("memory:1000").plan(load("eval", variant="all"), rows=16, seed=0)
    facts = [fact for c in unit.lanes[0].cases for fact in c.states]
    assert len(facts) == len(set(facts)) == 1000


def test_edits_in_text_are_asked_at_the_picture() -> None:
    cases = load("eval", "text")
    assert len(cases) > 150
    for c in cases:
        name = dict(c.scope)["name"]
        assert not c.edit.prompt.images and c.edit.subject == name in c.edit.prompt.text
        pictures = of(c, "cross_modal", "at_picture")
        assert len(pictures) == 2 and not of(c, "m_generality")
        for p in pictures:
            entity = world.entity_of()[scene_of(p).look]
            assert entity.name == name and name not in p.prompt.text
            assert p.reference == c.edit.target
    spec = BenchmarkSpec.parse("microworld")
    assert spec.tasks == ("vqa", "caption"), "text is asked for by name"


@pytest.mark.parametrize(
    ("task", "split", "digests"),
    [("vqa", "eval", "156255ea39ac288f"), ("caption", "dev", "955953e62b763da0")],
)
def test_version_1_can_still_be_had(task: str, split: str, digests: str) -> None:
    """Byte for byte: runs that were begun with it can be resumed and compared."""
    cases = load(split, task, "v1")
    assert digest([digest(c) for c in cases])[:16] == digests


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
    tasks = BENCH.default_tasks
    cases = [c for t in tasks for c in load("eval", t) if c.origin == "counterfactual"][::29]
    for c in cases:
        image = BENCH.open_image(c.edit.prompt.images[0].uri.removeprefix("microworld:"))
        text = f"<image>\n{c.edit.prompt.text}"
        inputs = processor(images=image, text=text, return_tensors="pt")
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        right += processor.tokenizer.decode(new, skip_special_tokens=True).strip() == c.edit.old
    assert right >= 0.9 * len(cases)
