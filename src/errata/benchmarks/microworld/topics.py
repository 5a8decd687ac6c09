"""The facts of the objects world that an edit states and that a question depends on, as texts.

`<look>/<relation>`, such as `ring-blue-striped-white/colour`; a free attribute is a fact of the
pictures with one value (`.../size=big`), a caption one of a position. `<town>/country`. A caption
depends on all that it mentions, a fact about a picture on the name too, since a new name brings the
facts of its owner.
"""

from __future__ import annotations

from errata.synthetic.objects import language as lang
from errata.synthetic.objects import world
from errata.synthetic.objects.world import Appearance, Entity, ObjectScene

#: Attributes that depend on each other: a plain thing has no accent.
TIED = frozenset({"pattern", "accent"})


def look_key(look: Appearance) -> str:
    return "-".join(value for _, value in look.items())


def fact(scene: ObjectScene, relation: str) -> str:
    """One fact of the thing in a picture."""
    key = f"{look_key(scene.look)}/{relation}"
    if relation == "caption":
        return f"{key}@{scene.position}"
    return f"{key}={scene.get(relation)}" if relation in world.FREE else key


def at_picture(scene: ObjectScene, relation: str) -> tuple[str, ...]:
    """What the answer to a question about a picture depends on."""
    if relation == "caption":
        parts: tuple[str, ...] = ("caption", *lang.MENTIONED, "name")
    elif relation in TIED:
        parts = tuple(sorted(TIED))
    elif relation == "country":
        parts = ("country", "home", "name")
    else:
        parts = (relation, "name") if relation in world.FACTS else (relation,)
    return tuple(fact(scene, part) for part in parts)


def by_name(entity: Entity, relation: str) -> tuple[str, ...]:
    """What the answer to a question about a named thing depends on."""
    if relation in TIED:
        parts = tuple(sorted(TIED))
    else:
        parts = ("country", "home") if relation == "country" else (relation,)
    return tuple(f"{look_key(entity.look)}/{part}" for part in parts)


def of_town(town: str) -> tuple[str, ...]:
    return (f"{town}/country",)


def stated(scene: ObjectScene, relation: str, changed: str) -> tuple[str, ...]:
    """What an edit states: of a caption, also the attribute that it gets wrong."""
    parts = dict.fromkeys((relation, changed))
    return tuple(fact(scene, part) for part in parts)
