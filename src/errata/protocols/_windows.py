"""Shared by the protocols: sizes, windows of cases, numbered units, sequential steps."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterable, Sequence

from errata.core.errors import BadSpec
from errata.core.measure.protocol import Ask, Lane, LaneStep, Step, Unit
from errata.core.types import Answer, Case, Probe

Window = list[Case]


def size_argument(name: str, argument: str, default: int, *, even: bool = False) -> int:
    """The whole number after the colon of `name:10`. Raises BadSpec."""
    if not argument:
        return default
    wanted = "an even whole number of at least 2" if even else "a whole number of at least 1"
    size = int(argument) if argument.isascii() and argument.isdigit() else 0
    if size < 1 or (even and size % 2):
        raise BadSpec(
            f"protocol '{name}:{argument}': '{argument}' is not {wanted}. Write for example "
            f"{name}:{default}."
        )
    return size


def no_argument(name: str, argument: str) -> None:
    if argument:
        raise BadSpec(f"protocol '{name}' takes no argument, '{argument}' was given. Write {name}.")


def edited_things(case: Case) -> frozenset[str]:
    """What a case edits: its images (by hash, else address), or without an image its subject.

    And the facts that it states, where its benchmark declares them: two edits of one fact
    contradict each other. Subjects are not counted then: one thing has many facts.
    """
    images = frozenset(image.sha256 or image.uri for image in case.edit.prompt.images)
    if images or case.states or not case.edit.subject:
        return images | {f"fact {fact}" for fact in case.states}
    return frozenset({f"subject {case.edit.subject.casefold()}"})


def _group(case: Case) -> frozenset[str]:
    """Cases that share this never stand in one window."""
    return frozenset({f"fact {case.states[0]}"}) if case.states else edited_things(case)


def most_windows(cases: Sequence[Case], size: int) -> int:
    """The largest number of windows of `size` cases in which no image or subject repeats."""
    counts: dict[frozenset[str], int] = {}
    free = 0
    for case in cases:
        things = _group(case)
        if things:
            counts[things] = counts.get(things, 0) + 1
        else:
            free += 1
    for windows in range(len(cases) // size, 0, -1):
        if free + sum(min(n, windows) for n in counts.values()) >= windows * size:
            return windows
    return 0


def deal(cases: Sequence[Case], windows: Sequence[Window], size: int, rng: random.Random) -> None:
    """Fills each window with up to `size` shuffled cases; no image or subject repeats in a window.

    Cases that share one are placed one after another, each in the emptiest window that may take
    it. Sizes then never differ by more than one, so that `most_windows` windows are filled.
    """
    groups: dict[frozenset[str], list[Case]] = {}
    for case in rng.sample(list(cases), len(cases)):
        groups.setdefault(_group(case) or frozenset({f"case {case.id}"}), []).append(case)
    loads = [0] * len(windows)
    used: list[set[str]] = [{t for c in w for t in edited_things(c)} for w in windows]
    for case in (c for group in groups.values() for c in group):
        things = edited_things(case)
        open_ = [i for i, load in enumerate(loads) if load < size and not things & used[i]]
        if open_:
            i = min(open_, key=loads.__getitem__)
            windows[i].append(case)
            used[i] |= things
            loads[i] += 1


def windows_of(cases: Sequence[Case], size: int, seed: int, spec: str) -> list[Window]:
    """Complete windows of `size` cases, in seeded random order. Raises BadSpec if there is none."""

    def dealt(count: int) -> tuple[list[Window], random.Random]:
        rng = random.Random(seed)
        windows: list[Window] = [[] for _ in range(count)]
        deal(cases, windows, size, rng)
        return windows, rng

    windows, rng = most_full(most_windows(cases, size), size, dealt)
    return complete(windows, size, rng, spec, f"{len(cases)} cases are planned")


def most_full(
    count: int, size: int, dealt: Callable[[int], tuple[list[Window], random.Random]]
) -> tuple[list[Window], random.Random]:
    """The deal into at most `count` windows that fills the most of them.

    The bound of `most_windows` is reached where cases share one thing at most; where an edit
    states several facts, fewer windows may be filled, and more of them if fewer are begun.
    """
    best, filled = dealt(count), -1
    for fewer in range(count, 0, -1):
        if fewer <= filled:
            break
        windows, rng = dealt(fewer)
        full = sum(len(w) == size for w in windows)
        if full > filled:
            best, filled = (windows, rng), full
    return best


def complete(
    windows: Iterable[Window], size: int, rng: random.Random, spec: str, have: str
) -> list[Window]:
    """The full windows, each in random order."""
    full = [rng.sample(w, size) for w in windows if len(w) == size]
    if not full:
        raise BadSpec(
            f"protocol '{spec}' needs at least {size} cases with different images (without images: "
            f"subjects); {have}. "
            "Raise --limit or choose a smaller size."
        )
    return full


def number(windows: Iterable[Sequence[Case]], rows: int) -> tuple[Unit, ...]:
    """One numbered lane per window, in units of at most `rows` lanes."""
    assert rows >= 1, rows
    lanes = [Lane(f"l{i:04d}", tuple(w)) for i, w in enumerate(windows)]
    chunks = [tuple(lanes[i : i + rows]) for i in range(0, len(lanes), rows)]
    return tuple(Unit(f"u{i:03d}", chunk) for i, chunk in enumerate(chunks))


def asks(case: Case, tag: str = "") -> tuple[Ask, ...]:
    """All probes of a case."""
    return tuple(Ask(case.id, probe, tag) for probe in case.probes)


def closing_asks(lane: Lane, panel: Sequence[Probe]) -> tuple[Ask, ...]:
    """All probes of all cases of a lane, then the panel."""
    panel_asks = tuple(Ask(f"panel/{lane.id}", probe) for probe in panel)
    return sum((asks(case) for case in lane.cases), ()) + panel_asks


def sequential_steps(unit: Unit, panel: Sequence[Probe]) -> Generator[Step, list[Answer], None]:
    """Case k of every lane on top of the earlier ones; asked at once (`own`) and after the last."""
    (length,) = {len(lane.cases) for lane in unit.lanes}
    for k in range(length):
        yield Step(
            tuple(
                LaneStep(
                    (lane.cases[k].edit,),
                    asks(lane.cases[k], "own")
                    + (closing_asks(lane, panel) if k == length - 1 else ()),
                )
                for lane in unit.lanes
            ),
            on="previous",
        )
