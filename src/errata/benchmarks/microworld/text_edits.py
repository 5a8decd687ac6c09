"""Probes of an edit that is made in text, about a thing that the model knows by name.

Besides the text probes of every edit: the edited question at pictures of the thing (`at_picture`).
"""

from __future__ import annotations

import random

from errata.benchmarks.microworld import topics
from errata.benchmarks.microworld.pools import ProbePool, image_of, new_scene, other_light, question
from errata.benchmarks.microworld.probes import (
    CROSS_MODAL,
    ProbeBuilder,
    ProbeList,
    far,
    neighbours,
    portability,
    reworded,
    same_subject,
)
from errata.core.types import Probe, Prompt
from errata.synthetic.objects import language as lang


def text_probes(
    ask: ProbeBuilder, home: ProbePool, pool: ProbePool, rng: random.Random
) -> tuple[Probe, ...]:
    """Every probe of an edit in text. home and pool as in `all_probes`."""
    out = ProbeList()
    reworded(ask, rng, out)
    neighbours(ask, rng, out)
    same_subject(ask, rng, out)
    _same_answer(ask, home, rng, out)
    _at_picture(ask, rng, out)
    portability(ask, home, rng, out)
    far(ask, pool, rng, out)
    return tuple(out.probes)


def _same_answer(ask: ProbeBuilder, home: ProbePool, rng: random.Random, out: ProbeList) -> None:
    """The same question about other named things whose true answer is the edit's old answer."""
    others = [e for e in home.known if e.name != ask.name and e.taught(ask.relation)]
    count = 0
    for e in rng.sample(others, len(others)):
        if count < 2 and e.fact(ask.relation) == ask.old:
            prompt = Prompt.of(question(ask.part, ask.relation, rng, e.name))
            about = topics.by_name(e, ask.relation)
            count += out.add("near_locality", "same_answer", prompt, ask.old or "", about)


def _at_picture(ask: ProbeBuilder, rng: random.Random, out: ProbeList) -> None:
    for _ in range(2):
        scene = other_light(new_scene(ask.scene.look, rng), rng)
        text = question(ask.part, ask.relation, rng, rng.choice(lang.POINTERS))
        about = topics.at_picture(scene, ask.relation)
        out.add(CROSS_MODAL.name, "at_picture", Prompt.of(text, image_of(scene)), ask.target, about)
