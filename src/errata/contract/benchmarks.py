"""Contract of a benchmark: well-formed cases in a fixed order.

A benchmark whose files are missing has no cases and passes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from errata.contract._names import named
from errata.core.errors import BadData
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec
from errata.core.text import mentions
from errata.core.types import Case, from_json, to_json


def checks(cls: type[Benchmark]) -> list[tuple[str, Callable[[], None]]]:
    return [(named(f), partial(f, cls())) for n, f in globals().items() if n.startswith("holds_")]


def _cases(benchmark: Benchmark, split: str = "eval") -> tuple[Case, ...]:
    """The cases of a split, of all tasks whose files are there."""
    cases: tuple[Case, ...] = ()
    for task in benchmark.tasks:
        spec = BenchmarkSpec(benchmark.name, (task,), split, benchmark.variants[-1])
        try:
            cases += benchmark.load(spec).cases
        except BadData:
            continue
    return cases


def holds_order(benchmark: Benchmark) -> None:
    """Loading twice gives equal cases in equal order, with unique ids."""
    one, two = _cases(benchmark), _cases(benchmark)
    assert one == two
    assert len({c.id for c in one}) == len(one)


def holds_shape(benchmark: Benchmark) -> None:
    """Every case has a target, a probe of its edit's own prompt, and unique probe ids."""
    for case in _cases(benchmark):
        assert case.edit.target.strip(), case.id
        assert len({p.id for p in case.probes}) == len(case.probes), case.id
        main = [p for p in case.probes if p.kind == "reliability"]
        assert all(p.prompt == case.edit.prompt for p in main), case.id
        assert case.main is not None and case.main.prompt == case.edit.prompt, case.id
        assert case.main.kind_info.main
        for p in case.probes:
            assert (p.view is not None) or not p.kind_info.drawn, (case.id, p.id)


def holds_prompts(benchmark: Benchmark) -> None:
    """No prompt that is drawn states its target; the oracle prompt and rationale do."""
    for case in _cases(benchmark):
        for p in case.probes:
            if p.aids is None or p.view is None:
                continue
            assert not mentions(p.prompt.text, p.view.target), (case.id, p.id)
            assert mentions(p.aids.oracle.text, p.view.target), (case.id, p.id)
            assert mentions(p.aids.rationale, p.view.target), (case.id, p.id)


def holds_round_trip(benchmark: Benchmark) -> None:
    """A case is equal after a round trip through JSON."""
    for case in _cases(benchmark)[:200]:
        assert from_json(Case, to_json(case)) == case


def holds_splits(benchmark: Benchmark) -> None:
    """No edit of eval is an edit of train."""
    train = {(c.edit.prompt, c.edit.target) for c in _cases(benchmark, "train")}
    assert not [c.id for c in _cases(benchmark) if (c.edit.prompt, c.edit.target) in train]
