"""What is live belongs to the caller, and undoing works in any order: over every model family."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from errata.core.hooks.hook import Hook
from errata.core.model.backbone import Backbone
from errata.core.model.batch import Batch
from errata.core.types import Prompt
from errata.patches.delta import Delta
from tests import tiny

ALL = {**tiny.FAMILIES, **tiny.WINDOWED, **tiny.DRAWING}


@pytest.fixture(params=sorted(ALL))
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return tiny.shared(request.param)


@pytest.fixture
def batch(backbone: Backbone, pictures: list[str]) -> Batch:
    return backbone.encode(
        [Prompt.of("Which?", pictures[0] if "image" in backbone.capabilities else None)]
    )


def delta(backbone: Backbone, seed: int) -> Delta:
    rng = torch.Generator().manual_seed(seed)
    site = f"text.{backbone.depth - 1}.mlp.down"
    into, out = backbone.weight(site)
    change = torch.randn(out, into, generator=rng) * 0.5
    return Delta({site: {"dense": change}}).requires_grad_(False)


def logits(backbone: Backbone, batch: Batch) -> Tensor:
    with torch.no_grad():
        return backbone.logits(batch)


def in_thread(run: Callable[[], Any]) -> Any:
    """The result of `run` in a new thread, or its exception."""
    results: list[Any] = []

    def catch() -> None:
        try:
            results.append(run())
        except BaseException as e:
            results.append(e)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join(60)
    return results[0]


def test_threads_that_serve_different_patches_answer_each_with_its_own(
    backbone: Backbone, batch: Batch
) -> None:
    patches = [None, delta(backbone, 1), delta(backbone, 2)]
    wanted = []
    for patch in patches:
        with backbone.applied(patch):
            wanted.append(logits(backbone, batch))
    assert not torch.allclose(wanted[1], wanted[2], atol=1e-2)
    wrong: list[Any] = []
    start = threading.Barrier(len(patches))

    def serve(i: int) -> None:
        try:
            start.wait(60)
            for _ in range(6):
                with backbone.applied(patches[i]):
                    if not torch.allclose(logits(backbone, batch), wanted[i], atol=1e-4):
                        wrong.append(i)
        except BaseException as e:
            wrong.append(e)

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(len(patches))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert not wrong
    assert backbone.hooks.stack == () and backbone.hooks.opened == 0
    assert torch.equal(logits(backbone, batch), wanted[0])


def test_a_search_in_one_thread_does_not_disturb_the_models_own_forward_in_another(
    pictures: list[str],
) -> None:
    """The search replaces parts of the forward (blocks below an entry, the last block)."""
    bb = tiny.shared("llava")
    from errata.core import registry
    from errata.core.types import Edit

    asked = bb.encode([Prompt.of("Which shape is it, please?", pictures[1])])
    edits = [
        Edit(Prompt.of("What is the colour of the thing?", pictures[0]), "green", id=str(i))
        for i in range(3)
    ]
    editor = registry.load("editors", "ft_l")(steps=4, lr=1e-2)
    patches = editor.edit_rows(bb, edits)
    with torch.no_grad():
        wanted = bb.model(**asked.inputs).logits
    done = threading.Event()
    wrong: list[Any] = []

    def serve() -> None:
        try:
            while not done.is_set():
                with torch.no_grad():
                    if not torch.equal(bb.model(**asked.inputs).logits, wanted):
                        wrong.append("another answer")
        except BaseException as e:
            wrong.append(e)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        again = [editor.edit_rows(bb, edits) for _ in range(3)]
    finally:
        done.set()
        thread.join(60)
    assert not wrong
    for results in again:
        for one, other in zip(patches, results, strict=True):
            for a, b in zip(one.patch.parameters(), other.patch.parameters(), strict=True):
                assert torch.equal(a, b)


def test_tasks_of_one_thread_each_have_their_own() -> None:
    bb = tiny.shared("llava")
    batch = bb.encode([Prompt.of("Which shape?")])
    patches = [None, delta(bb, 1), delta(bb, 2)]

    async def ask(patch: Any) -> list[Tensor]:
        answers = []
        for _ in range(3):
            with bb.applied(patch):
                await asyncio.sleep(0)  # the other tasks apply theirs now
                answers.append(logits(bb, batch))
                answers.append(await asyncio.to_thread(logits, bb, batch))
            await asyncio.sleep(0)
        return answers

    async def every() -> list[list[Tensor]]:
        return list(await asyncio.gather(*map(ask, patches)))

    answered = asyncio.run(every())
    for patch, answers in zip(patches, answered, strict=True):
        with bb.applied(patch):
            wanted = logits(bb, batch)
        assert all(torch.allclose(a, wanted, atol=1e-4) for a in answers)


def test_a_thread_sees_what_is_live_where_it_is_started_until_that_ends() -> None:
    bb = tiny.shared("llava")
    batch = bb.encode([Prompt.of("Which shape?")])
    patch, plain = delta(bb, 1), logits(bb, batch)
    go, came = threading.Event(), threading.Event()
    answers = []

    def work() -> None:
        answers.append(logits(bb, batch))
        came.set()
        go.wait(60)
        answers.append(logits(bb, batch))

    with bb.applied(patch):
        wanted = logits(bb, batch)
        thread = threading.Thread(target=work)
        thread.start()
        came.wait(60)
    go.set()
    thread.join(60)
    assert torch.equal(answers[0], wanted)
    assert torch.equal(answers[1], plain)


def test_a_thread_that_ran_before_sees_nothing_of_it() -> None:
    bb = tiny.shared("llava")
    batch = bb.encode([Prompt.of("Which shape?")])
    plain, go, answers = logits(bb, batch), threading.Event(), []

    def work() -> None:
        go.wait(60)
        answers.append(logits(bb, batch))

    thread = threading.Thread(target=work)
    thread.start()
    with bb.applied(delta(bb, 1)):
        go.set()
        thread.join(60)
    assert torch.equal(answers[0], plain)


def by_executor(run: Callable[[], Any], pool: Any) -> Any:
    return pool.submit(run).result(60)


def by_pool(run: Callable[[], Any], pool: Any) -> Any:
    return pool.apply(run)


def by_map(run: Callable[[], Any], pool: Any) -> Any:
    return pool.map(lambda _: run(), [0])[0]


def by_imap(run: Callable[[], Any], pool: Any) -> Any:
    return next(pool.imap(lambda _: run(), [0]))


def by_loop(run: Callable[[], Any], pool: Any) -> Any:
    async def main() -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, run)

    return asyncio.run(main())


def by_context(run: Callable[[], Any], pool: Any) -> Any:
    """As `asyncio.to_thread` and the workers of web servers do it."""
    return pool.submit(contextvars.copy_context().run, run).result(60)


@pytest.mark.parametrize("started", ["before", "inside"])
@pytest.mark.parametrize("ask", [by_executor, by_pool, by_map, by_imap, by_loop, by_context])
def test_a_job_of_a_pool_sees_what_is_live_where_it_is_handed_over(ask: Any, started: str) -> None:
    """Whenever the worker was started, and whoever else uses it."""
    bb = tiny.shared("llava")
    batch = bb.encode([Prompt.of("Which shape?")])
    make: Any = ThreadPool if ask in (by_pool, by_map, by_imap) else ThreadPoolExecutor
    patch, plain = delta(bb, 1), logits(bb, batch)

    def run() -> Tensor:
        return logits(bb, batch)

    with contextlib.ExitStack() as stack:
        pool: Any = None
        if started == "before":
            pool = stack.enter_context(make(1))
            assert torch.equal(ask(run, pool), plain)
        with bb.applied(patch):
            pool = pool or stack.enter_context(make(1))
            wanted = run()
            assert torch.equal(ask(run, pool), wanted)
            # another user of the pool, without a patch, in a context where nothing was asked yet
            asking = ThreadWithoutContext(lambda: ask(run, pool))
            with bb.unedited():
                asking.start()
            asking.join(60)
            assert torch.equal(asking.result, plain)
        assert torch.equal(ask(run, pool), plain)


class ThreadWithoutContext(threading.Thread):
    """A thread that sees nothing of errata."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self.work = work

    def run(self) -> None:
        self.result = contextvars.Context().run(self.work)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_an_answer_keeps_the_patch_that_it_was_begun_with(family: str, pictures: list[str]) -> None:
    """The block is closed between two tokens, while another thread answers inside it."""
    bb = tiny.shared(family)
    inputs = bb.encode([Prompt.of("Which shape?", pictures[0])]).inputs
    model: Any = bb.model
    begun, closed, answers = threading.Event(), threading.Event(), []

    class Wait:
        def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
            begun.set()
            assert closed.wait(60)
            return scores

    def answer(**more: Any) -> list[int]:
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": 999}
        ids: list[int] = model.generate(**inputs, **options, **more)[0].tolist()
        return ids

    with bb.applied(delta(bb, 3)):
        wanted = answer()
        thread = threading.Thread(
            target=lambda: answers.append(answer(logits_processor=[Wait()])),
        )
        thread.start()
        assert begun.wait(60)
    closed.set()
    thread.join(60)
    assert answers == [wanted] != [answer()]
    assert all(p.used == 0 for p in bb.hooks.points.values())


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_blocks_that_nest_and_cross_leave_exactly_the_open_ones(data: st.DataObject) -> None:
    bb = tiny.shared("llava")
    hooks = [delta(bb, i) for i in range(4)]
    blocks: list[tuple[Any, Hook | None]] = []
    try:
        for _ in range(data.draw(st.integers(1, 10))):
            action = data.draw(st.sampled_from(["apply", "alone", "close"]))
            if action == "close" and blocks:
                block, _ = blocks.pop(data.draw(st.integers(0, len(blocks) - 1)))
                error = data.draw(st.sampled_from([None, ValueError("in the middle")]))
                try:
                    block.__exit__(type(error) if error else None, error, None)
                except ValueError as e:
                    assert e is error
            elif action != "close":
                hook = data.draw(st.sampled_from(hooks))
                block = bb.applied(hook) if action == "apply" else bb.only(hook)
                block.__enter__()
                blocks.append((block, hook if action == "apply" else (hook,)))  # type: ignore[arg-type]
            stack: list[Hook] = []
            for _, what in blocks:
                stack = [*what] if isinstance(what, tuple) else [*stack, what]  # type: ignore[list-item]
            assert list(bb.hooks.stack) == stack
            assert bb.hooks.opened == len(blocks)
    finally:
        for block, _ in blocks:
            block.__exit__(None, None, None)
    assert bb.hooks.stack == ()
    assert all(p.used == 0 for p in bb.hooks.points.values())


def test_a_block_can_be_closed_in_another_thread() -> None:
    bb = tiny.shared("llava")
    block = bb.applied(delta(bb, 1))
    block.__enter__()
    in_thread(lambda: block.__exit__(None, None, None))
    assert bb.hooks.stack == () and bb.hooks.opened == 0


def test_a_generator_that_is_dropped_leaves_nothing_live() -> None:
    bb = tiny.shared("llava")

    def answers() -> Iterator[int]:
        with bb.applied(delta(bb, 1)):
            yield 1

    stream = answers()
    next(stream)
    del stream
    assert bb.hooks.stack == ()


def test_a_copy_of_a_wrapped_model_is_a_model_of_its_own(pictures: list[str]) -> None:
    bb = tiny.llava(layers=2)
    batch = bb.encode([Prompt.of("Which?", pictures[0])])
    patch = delta(bb, 1)
    with torch.no_grad(), bb.applied(patch):
        twin = copy.deepcopy(bb.model)
        edited, copied = bb.model(**batch.inputs).logits, twin(**batch.inputs).logits
    with torch.no_grad():
        plain = bb.model(**batch.inputs).logits
        assert torch.equal(copied, plain) and not torch.equal(edited, plain)
        other = tiny.HfVlm(twin, bb.processor, name=bb.name)
        with other.applied(patch):
            assert torch.equal(twin(**batch.inputs).logits, edited)
            assert torch.equal(bb.model(**batch.inputs).logits, plain)
