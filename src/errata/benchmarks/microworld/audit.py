"""What the splits hold, and what train shares with eval and dev."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from errata.benchmarks.microworld import cases
from errata.benchmarks.microworld.slices import HELD_BACK, TEMPLATES
from errata.core.types import Case, Probe, Prompt
from errata.synthetic.objects import language, world

SPLITS = ("train", "dev", "eval")
VARIANTS = ("published", "disjoint")
SHARED = (
    "(shape, colour, pattern, asked)",
    "edited entities",
    "edit images",
    "unseen wordings",
    "far m-locality (image, question)",
    "far t-locality questions",
    "near-locality prompts",
    "home -> country pairs",
)
#: What only makes up other counts.
_INSIDE = ("all questions", "all answers", "second facts", "captions that follow")

Facts = dict[str, set[Any]]


def audit(tasks: Iterable[str]) -> Mapping[str, Any]:
    """Counts of each split, and what the splits share in each variant."""
    tasks = tuple(tasks)
    keys = [(v, s) for v in VARIANTS for s in SPLITS] + [("unseen", "eval"), ("all", "eval")]
    loaded = {(v, s): [c for t in tasks for c in cases.cases(t, s, v, 0)] for v, s in keys}
    facts = {key: _facts(of) for key, of in loaded.items()}
    known = world.known_entities()
    return {
        "splits": {split: _counts(loaded["disjoint", split]) for split in SPLITS},
        "eval/unseen": _counts(loaded["unseen", "eval"]),
        "eval/all": _counts(loaded["all", "eval"]),
        "shared": {
            variant: {
                f"{a}/{b}": _common(facts[variant, a], facts[variant, b])
                for a, b in (("train", "eval"), ("train", "dev"), ("dev", "eval"))
            }
            for variant in VARIANTS
        },
        "train shares with eval/unseen": _common(
            facts["disjoint", "train"], facts["unseen", "eval"]
        ),
        "held back": {split: _held_back(loaded["disjoint", split]) for split in SPLITS},
        "eval_equal_in_both_variants": loaded["published", "eval"] == loaded["disjoint", "eval"],
        "entities": {
            "known": len(known),
            "withheld": len(world.entities()) - len(known),
            "facts withheld from known entities": sum(len(e.hidden) for e in known),
            "generic looks": len(world.generic_looks()),
        },
    }


def _common(a: Facts, b: Facts) -> dict[str, int]:
    """How much the second set of cases shares with the first, from which an editor is made."""
    return {
        **{key: len(a[key] & b[key]) for key in SHARED},
        "second facts of hops": len(a["all questions"] & b["second facts"]),
        "captions that follow": len(a["all answers"] & b["captions that follow"]),
    }


def _counts(loaded: Iterable[Case]) -> dict[str, Any]:
    loaded = list(loaded)
    groups: Counter[str] = Counter()
    for c in loaded:
        groups.update(f"{p.kind}/{p.group}" if p.group else p.kind for p in c.probes)
    follows = [c for c in loaded if any(p.kind == "portability" for p in c.probes)]
    return {
        "cases": dict(sorted(Counter(c.task for c in loaded).items())),
        "origin": dict(sorted(Counter(f"{c.task}/{c.origin}" for c in loaded).items())),
        "asked": dict(sorted(Counter(f"{c.task}/{c.asked}" for c in loaded).items())),
        "probes": dict(sorted(groups.items())),
        "cases with portability": dict(sorted(Counter(c.task for c in follows).items())),
        "stated facts": dict(sorted(_stated(loaded).items())),
    }


def _stated(loaded: Iterable[Case]) -> dict[str, int]:
    """Task -> how many different facts are stated: as many edits fit into one memory."""
    facts: dict[str, set[str]] = {}
    for case in loaded:
        facts.setdefault(case.task, set()).add(case.states[0])
    return {task: len(of) for task, of in facts.items()}


def _held_back(loaded: Iterable[Case]) -> dict[str, int]:
    """How often what is held back for `unseen` occurs in these cases."""
    found: Counter[str] = Counter(dict.fromkeys((*HELD_BACK, "templates"), 0))
    for case in loaded:
        texts = [case.edit.target, *(p.reference for p in case.probes)]
        for attribute, value in HELD_BACK.items():
            found[attribute] += sum(value in text.split() for text in texts)
        for prompt in _prompts(case):
            found["templates"] += template_of(prompt.text) in TEMPLATES
            for image in prompt.images:
                for attribute, value in HELD_BACK.items():
                    found[attribute] += f"{attribute}={value}," in image.uri
    return dict(found)


def _prompts(case: Case) -> list[Prompt]:
    hops = [p.hop.prompt for p in case.probes if p.hop]
    return [case.edit.prompt, *(p.prompt for p in case.probes), *hops]


@cache
def template_of(text: str) -> int | None:
    """The template that a question is made from; None for the beginning of a caption."""
    for i, template in enumerate(language.TEMPLATES):
        begins, between, ends = template.replace("{s}", "{n}").split("{n}")
        if text.startswith(begins) and text.endswith(ends) and between in text[len(begins) :]:
            return i
    return None


def _facts(loaded: Iterable[Case]) -> Facts:
    """What two splits could share: kind of fact -> the facts of these cases."""
    out: Facts = {k: set() for k in (*SHARED, *_INSIDE)}
    for c in loaded:
        scope = dict(c.scope)
        triple = (scope["shape"], scope["colour"], scope["pattern"])
        out["(shape, colour, pattern, asked)"].add((*triple, c.asked))
        if "name" in scope:
            out["edited entities"].add(scope["name"])
        out["edit images"].update(i.uri for i in c.edit.prompt.images)
        out["all questions"].update(c.states)
        out["all answers"].add(c.edit.target)
        for p in c.probes:
            _add(out, c, p)
    return out


def _add(out: Facts, case: Case, p: Probe) -> None:
    out["all questions"].update(p.depends_on)
    out["all answers"].add(p.reference)
    if p.group == "unseen":
        out["unseen wordings"].add(_wording(p.prompt.text, case))
    elif p.kind == "m_locality":
        out["far m-locality (image, question)"].add(p.prompt)
    elif p.kind == "t_locality":
        out["far t-locality questions"].add(p.prompt)
    elif p.kind == "near_locality":
        out["near-locality prompts"].add(p.prompt)
    elif p.kind == "portability" and p.hop:
        out["all questions"].update(p.hop.depends_on)
        out["second facts"].update(p.hop.depends_on)
        if case.asked == "home":
            out["home -> country pairs"].add((case.edit.target, p.reference))
        if p.prompt.text == language.CAPTION:
            out["captions that follow"].add(p.reference)


def _wording(text: str, case: Case) -> str:
    """The question without the phrase for its subject."""
    subject = case.edit.subject
    for phrase in (*language.POINTERS, *([subject] if subject else [])):
        text = text.replace(phrase, "*")
    return text
