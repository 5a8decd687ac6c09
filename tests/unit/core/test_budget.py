"""A batch is cut to the memory that it may take; the results are those of the whole batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.algorithms.locate_then_edit import base, value_search
from errata.algorithms.locate_then_edit.value_search import ValueSettings, search
from errata.core.errors import BadSpec, OutOfMemory
from errata.core.measure.protocol import Ask
from errata.core.model import budget
from errata.core.model.backbone import Backbone
from errata.core.model.budget import as_text, free_bytes, in_parts, parse_bytes
from errata.core.types import Answer, Edit, Probe, Prompt
from errata.evaluation import answers
from errata.evaluation.answers import PromptRequest, ask_all
from tests import locate, tiny

STARTS = ("", "A fact. ", "New thing of it. ")
EDITS = [
    Edit(Prompt.of(f"The {what} of the {name} is"), said, f"the {name}", id=f"{what}-{name}")
    for what in ("colour", "shape") for name in ("ring", "Fact", "thing") for said in ("green",)
]  # fmt: skip
ROW = 200_000  # bytes: a few rows of a tiny model


@pytest.fixture
def small() -> Iterator[Backbone]:
    """A tiny model whose batches may take hardly anything."""
    bb = tiny.shared("llava")
    bb.memory = ROW
    yield bb
    bb.memory = None


def _counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, size: Any = len) -> list[int]:
    """The sizes of the second argument of all calls of a function from now on."""
    seen: list[int] = []
    original = getattr(owner, name)

    def counting(first: Any, second: Any, *more: Any, **named: Any) -> Any:
        seen.append(size(second))
        return original(first, second, *more, **named)

    monkeypatch.setattr(owner, name, counting)
    return seen


def _requests() -> list[PromptRequest]:
    return [
        PromptRequest(Ask(e.id, Probe(e.id, e.prompt, "reliability", reference=e.target)))
        for e in EDITS
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("1.5 MiB", 3 << 19), (" 500mb ", 5 * 10**8), (4096, 4096)],
)
def test_sizes_are_read(text: int | str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["8", "much", "-1GB", "0GB", 0, True, "0.1B", "GB"])
def test_what_is_no_size_is_refused_in_one_line(text: int | str) -> None:
    with pytest.raises(BadSpec, match="Write a number and a unit: 8GB, 500MB"):
        parse_bytes(text)


def test_sizes_are_written_for_people() -> None:
    assert [as_text(n) for n in (1234, 45_600_000, 7_890_000_000)] == [
        "1.23 kB",
        "45.6 MB",
        "7.89 GB",
    ]


def test_what_the_group_of_the_process_leaves_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = free_bytes(torch.device("cpu"))
    assert whole > 10**8
    monkeypatch.setattr(budget, "_cgroup", {"memory.max": 5000, "memory.current": 2000}.get)
    assert free_bytes(torch.device("cpu")) == 3000
    monkeypatch.setattr(budget, "_cgroup", {"memory.current": 2000}.get)  # it says `max`
    assert free_bytes(torch.device("cpu")) > 10**8


def test_the_limit_is_half_of_what_was_free_when_it_was_first_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bb = tiny.llava()
    monkeypatch.setattr(budget, "free_bytes", lambda _: 10_000)
    assert bb.budget == 5000
    monkeypatch.setattr(budget, "free_bytes", lambda _: 99_000)
    assert bb.budget == 5000, "batches of one process must not change with what others do"
    bb.memory = "1MB"
    assert bb.budget == 10**6


def test_rows_that_fit_are_a_power_of_two_and_at_least_one() -> None:
    bb = tiny.llava()
    bb.memory = 1000
    assert [bb.fitting(n, 40) for n in (999, 1001, 5000, 10**9)] == [40, 32, 8, 1]


def test_values_searched_in_parts_are_those_of_one_batch(
    small: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ValueSettings(
        sites=("text.2.in",), lr=0.1, steps=5, clamp=100.0, weight_decay=0.5, stop_loss=0.0,
        eos=False,
    )  # fmt: skip
    edits = list(enumerate(EDITS))
    seen = _counted(monkeypatch, value_search, "_search")
    parts = search(small, edits, STARTS, settings)
    assert len(seen) > 1 and sum(seen) == len(edits)
    small.memory = None
    whole = search(small, edits, STARTS, settings)
    assert seen[-1] == len(edits)
    for result in ("value", "start"):
        a, b = (getattr(r, result)["text.2.in"] for r in (parts, whole))
        assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())
    assert [x["steps"] for x in parts.log] == [x["steps"] for x in whole.log]


@pytest.mark.parametrize("name", ["memit", "rome", "alphaedit", "pmet"])
def test_patches_made_in_parts_are_those_of_one_batch(
    name: str, small: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = locate.made(name, context_templates="none", kl_factor=0.0625)
    state = locate.statistics(small, attention=name == "pmet")
    searched = _counted(monkeypatch, value_search, "_search")
    entered = _counted(monkeypatch, base.KeyReader, "_enter")
    small.memory = ROW // 4
    group = EDITS[:1] if name == "rome" else EDITS
    parts = editor.edit(small, group, state).patch
    assert len(group) == 1 or (len(searched) > 1 and len(entered) > 1)
    small.memory = None
    whole = editor.edit(small, group, state).patch
    for site in whole.sites:
        a, b = (p.part(site)["B"] @ p.part(site)["A"] for p in (parts, whole))
        assert float((a - b).norm()) <= 1e-4 * float(b.norm())


def test_keys_read_without_entered_states_are_the_same(small: Backbone) -> None:
    """Where the states of all prompts do not fit, each reading starts from the words."""

    def keys() -> Any:
        reader = base.KeyReader(small, list(enumerate(EDITS)), STARTS, "subject", 1)
        read, value = reader.read([1, 2], "text.2.block", top=2)
        return reader, read, value

    kept, read_kept, value_kept = keys()
    small.memory = 2000
    anew, read_anew, value_anew = keys()
    assert sum(isinstance(c[0], base.Batch) for c in anew.chunks) > len(EDITS) / 2
    assert all(isinstance(c[0], base.PrefixState) for c in kept.chunks)
    for layer in (1, 2):
        assert torch.allclose(read_kept[layer], read_anew[layer], atol=1e-5)
    assert torch.allclose(value_kept, value_anew, atol=1e-5)


def _same(a: Sequence[Answer], b: Sequence[Answer]) -> None:
    assert [(x.case, x.ids, x.stopped) for x in a] == [(x.case, x.ids, x.stopped) for x in b]
    for x, y in zip(a, b, strict=True):
        if x.reference and y.reference:
            assert x.reference.logprobs == pytest.approx(y.reference.logprobs, abs=2e-5)


def test_answers_asked_in_parts_are_those_of_one_batch(
    small: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _counted(monkeypatch, answers, "_text_answers")
    small.memory = ROW // 8
    parts = ask_all(small, _requests(), step=0)
    assert len(seen) > 2 and max(seen[1:]) < len(EDITS)
    small.memory = None
    _same(parts, ask_all(small, _requests(), step=0))


def test_questions_are_asked_in_parts_too(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _counted(monkeypatch, answers, "_said")
    parts = errata.ask(small, [e.prompt for e in EDITS])
    assert len(seen) > 1
    small.memory = None
    _same(parts, errata.ask(small, [e.prompt for e in EDITS]))


def test_gradient_searches_are_cut_too(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    from errata.algorithms import gradient

    seen = _counted(monkeypatch, gradient, "search")
    editor = errata.editor("ft_l", steps=2, lr=1e-3)
    parts = editor.edit_rows(small, EDITS)
    assert max(seen) < len(EDITS)
    small.memory = None
    whole = editor.edit_rows(small, EDITS)
    for a, b in zip(parts, whole, strict=True):
        assert a.log.loss == pytest.approx(b.log.loss, rel=1e-4)


def test_a_device_that_is_out_of_memory_gets_halves() -> None:
    seen = []

    def run(items: Sequence[int]) -> list[int]:
        seen.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return [2 * i for i in items]

    assert in_parts(range(8), run, "one") == [2 * i for i in range(8)]
    assert seen == [8, 4, 2, 2, 4, 2, 2]


def test_one_item_that_is_too_much_is_one_line() -> None:
    def run(items: Sequence[int]) -> list[int]:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory"
        )

    with pytest.raises(OutOfMemory, match="no memory left for one edit of m"):
        in_parts([1, 2], run, "one edit of m")

    def other(items: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        in_parts([1, 2], other, "one edit of m")


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_every_family_knows_its_costs(family: str) -> None:
    bb: Any = tiny.shared(family)
    costs = bb.costs
    assert costs is not None
    linear = [m for m in bb.blocks[0].modules() if hasattr(m, "in_features")]
    numbers = sum(m.in_features + m.out_features for m in linear)
    assert costs.block == int(budget.RUNNING * numbers * 4)
    assert costs.keys == 4 * (bb.weight("text.0.attn.k")[1] + bb.weight("text.0.attn.v")[1])
    assert costs.vocabulary == bb.head.weight.shape[0]
    assert costs.pixels > 0 and costs.vision > 0
