"""The engine: every accepted job ends, whatever happens to the others."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import errata
from errata import Edit, Prompt
from errata.backbones._text_blocks.running import RunningRows
from errata.core.patch import Patch
from errata.serve.decoding.engine import Engine, EngineWatch
from errata.serve.decoding.jobs import AskJob, Begun, Event, Finished, Job
from errata.serve.failures import Refused
from errata.serve.settings import Limits
from tests import tiny

QUESTION = Prompt.of("Which shape?")
OTHER = Prompt.of("What is the colour of the thing?")


class Desk:
    """An engine, and what it says. forwards: rows of each; bugs: what failed."""

    def __init__(self, bb: Any, limits: Limits, **options: Any) -> None:
        self.events: dict[int, list[Event]] = defaultdict(list)
        self.forwards: list[int] = []
        self.bugs: list[BaseException] = []
        self.changed = threading.Condition()
        watch = EngineWatch(self.forwards.append, self.bugs.append)
        self.engine = Engine(bb, limits, self.post, watch, **options)

    def post(self, events: list[tuple[Job, Event]]) -> None:
        with self.changed:
            for job, event in events:
                self.events[job.number].append(event)
            self.changed.notify_all()

    def end_of(self, job: Job, seconds: float = 30) -> Event:
        def ended() -> bool:
            said = self.events[job.number]
            return bool(said) and isinstance(said[-1], (Finished, Refused))

        with self.changed:
            assert self.changed.wait_for(ended, seconds), "a job did not end"
            return self.events[job.number][-1]

    def asked(self, patch: Patch | None, prompt: Prompt = QUESTION, tokens: int = 8) -> AskJob:
        job = AskJob(patch=patch, prompt=prompt, tokens=tokens)
        self.engine.submit(job)
        return job


@contextmanager
def desk(bb: Any = None, *, wait: bool = False, **options: Any) -> Iterator[Desk]:
    """wait: the engine is not started yet."""
    limits = options.pop("limits", Limits(queue=50, batch=8))
    open_desk = Desk(bb or tiny.shared("llava"), limits, **options)
    if not wait:
        open_desk.engine.start()
    yield open_desk
    assert open_desk.engine.close(30)


@pytest.fixture(scope="module")
def patches() -> list[Patch]:
    bb = tiny.shared("llava")
    say = errata.editor("say").for_backbone(bb)
    edits = [Edit(QUESTION, "a green ring"), Edit(QUESTION, "red")]
    return [say.edit(bb, [e]).patch for e in edits]


def text(event: Event) -> str:
    assert isinstance(event, Finished), event
    return event.text


def test_jobs_that_wait_are_answered_together(patches):
    with desk(wait=True) as d:
        jobs = [d.asked(patches[i % 2]) for i in range(6)]
        d.engine.start()
        answers = {text(d.end_of(j)) for j in jobs[::2]}, {text(d.end_of(j)) for j in jobs[1::2]}
        assert len(answers[0]) == len(answers[1]) == 1 and answers[0] != answers[1]
        assert max(d.forwards) == 6
        assert all(isinstance(d.events[j.number][0], Begun) for j in jobs)


def test_unedited_jobs_have_forwards_of_their_own_unless_they_are_to_share(patches):
    bb = tiny.shared("llava")
    wanted = errata.ask(bb, [QUESTION], cap=8)[0].text
    for share, most in ((False, 2), (True, 4)):
        with desk(wait=True, share_unedited=share) as d:
            jobs = [d.asked(p) for p in (None, patches[0], None, patches[1])]
            d.engine.start()
            for job in jobs:
                d.end_of(job)
            assert max(d.forwards) == most
            assert text(d.end_of(jobs[0])) == text(d.end_of(jobs[2])) == wanted


def test_models_whose_rows_cannot_be_joined_answer_one_by_one(patches, monkeypatch):
    bb = tiny.llava()
    with bb.applied(patches[0]):
        wanted = errata.ask(bb, [QUESTION], cap=8)[0].text
    monkeypatch.setattr(bb, "decode_batch", lambda *hooks: None)
    with desk(bb, wait=True) as d:
        jobs = [d.asked(patches[0]) for _ in range(3)]
        d.engine.start()
        assert {text(d.end_of(j)) for j in jobs} == {wanted}
        assert set(d.forwards) == {1}


def test_one_bad_question_does_not_hurt_the_others(patches):
    with desk(wait=True) as d:
        bad = d.asked(patches[0], Prompt.of("an <image> marker"))
        good = [d.asked(patches[0]), d.asked(patches[1])]
        long = d.asked(patches[1], Prompt.of("x" * 600))
        d.engine.start()
        for job, code in ((bad, "bad_request"), (long, "context_length_exceeded")):
            end = d.end_of(job)
            assert isinstance(end, Refused) and end.status == 400 and end.code == code
        assert all(text(d.end_of(j)) for j in good)
        assert not d.bugs


@pytest.mark.parametrize("where", ["feed", "join"])
def test_a_bug_ends_the_jobs_it_hits_and_no_others(patches, monkeypatch, where):
    plain, calls = getattr(RunningRows, where), []

    def fails_once(self: RunningRows, *args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("of these words")
        return plain(self, *args)

    monkeypatch.setattr(RunningRows, where, fails_once)
    with desk() as d:
        first = d.asked(patches[0])
        d.end_of(first)
        second = d.asked(patches[0])
        ends = [d.end_of(first), d.end_of(second)]
        failed = [e for e in ends if isinstance(e, Refused)]
        assert [e.status for e in failed] == [500]
        assert "these words" not in failed[0].message and len(d.bugs) == 1
        assert text(d.end_of(d.asked(patches[1])))


def test_a_cancelled_job_leaves(patches):
    with desk(limits=Limits(batch=1, tokens=400)) as d:
        endless = d.asked(None, OTHER, tokens=400)
        waits = d.asked(None)
        waits.cancelled = True
        while not d.engine.growing:
            time.sleep(0.001)
        endless.cancelled = True
        after = d.asked(patches[0])
        assert text(d.end_of(after))
        assert not d.events[waits.number]
        assert d.engine.growing == 0


def test_a_full_queue_and_a_closing_engine_refuse(patches):
    with desk(wait=True, limits=Limits(queue=3, batch=2)) as d:
        jobs = [d.asked(patches[0]) for _ in range(3)]
        with pytest.raises(Refused) as e:
            d.asked(patches[0])
        assert e.value.status == 429 and e.value.retry_after >= 1
        jobs[1].cancelled = True  # makes room
        jobs.append(d.asked(patches[1]))
        d.engine.start()
        assert d.engine.close(30)  # what was accepted is answered first
        assert all(text(d.end_of(j)) for j in (jobs[0], jobs[2], jobs[3]))
        with pytest.raises(Refused) as e:
            d.asked(patches[0])
        assert e.value.status == 503


def test_an_unloaded_patch_is_let_go_of():
    bb = tiny.shared("llava")
    patch = errata.editor("say").for_backbone(bb).edit(bb, [Edit(QUESTION, "blue")]).patch
    with desk() as d:
        job = d.asked(patch)
        assert text(d.end_of(job)) is not None
        gone = weakref.ref(patch)
        d.engine.forget([patch])
        job.patch = patch = None
        d.end_of(d.asked(None))
        gc.collect()
        assert gone() is None


def test_sampled_answers_do_not_depend_on_the_batch(patches):
    from errata.serve.decoding.sampling import Sampling

    def drawn(d: Desk, others: int) -> str:
        job = AskJob(prompt=OTHER, tokens=12, sampling=Sampling(temperature=1.5, seed=5))
        for i in range(others):
            d.asked(patches[i % 2], OTHER)
        d.engine.submit(job)
        return text(d.end_of(job))

    with desk(share_unedited=True) as d:
        assert drawn(d, 0) == drawn(d, 5) != ""
        assert max(d.forwards) > 1


def test_the_unedited_answer_is_bit_for_bit_the_models_own(patches):
    """Logits of the row, against `generate` of transformers on the plain model."""
    bb = tiny.llava()
    job = AskJob(prompt=OTHER, tokens=6)
    from errata.serve.decoding.rows import LoneRow

    kept: list[torch.Tensor] = []
    row = LoneRow(bb, job, None)
    plain = row.question.feed

    def feed(ids: torch.Tensor) -> torch.Tensor:
        kept.append(plain(ids)[0, -1])
        return kept[-1][None, None]

    row.question.feed = feed
    while not row.row.over:
        row.step()
    batch = bb.encode([OTHER])
    made = bb.model.generate(
        **batch.inputs, max_new_tokens=len(kept) + 1, do_sample=False, output_logits=True,
        return_dict_in_generate=True, pad_token_id=0,
    )  # fmt: skip
    assert len(kept) > 2
    for step, logits in enumerate(kept, 1):
        assert torch.equal(made.logits[step][0].float(), logits)
