"""Contract of a judge: a verdict on every picture, or the reason why there is none.

A judge that needs a server gets one that does not answer; problems of a picture must be reported
all the same.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from PIL import Image

from errata.contract._names import named
from errata.core.errors import UserError
from errata.core.measure.judge import Judge
from errata.core.types import JudgeQuestion, Verdict

VIEW = JudgeQuestion("What colour is it?", "It is red.", "red", "blue", "colour")
NOWHERE = {"endpoint": "http://127.0.0.1:9/v1", "model": "none", "tries": 1}


def checks(cls: type[Judge]) -> list[tuple[str, Callable[[], None]]]:
    made = partial(make, cls)
    return [(named(f), partial(f, made)) for n, f in globals().items() if n.startswith("holds_")]


def make(cls: type[Judge]) -> Judge:
    """A judge of this class; if it needs a server, one that does not answer."""
    parameters = inspect.signature(cls).parameters
    return cls(**(NOWHERE if "endpoint" in parameters else {}))


def _judged(judge: Judge, *pictures: tuple[Path, JudgeQuestion]) -> list[Verdict]:
    """The verdicts; none if nothing can be judged, in which case a judge may raise UserError."""
    try:
        return judge.judge(pictures)
    except UserError:
        return []


def holds_missing(make: Callable[[], Judge]) -> None:
    """A missing or broken picture gets a reason instead of a verdict; nothing is raised."""
    with tempfile.TemporaryDirectory() as folder:
        broken = Path(folder) / "broken.png"
        broken.write_bytes(b"no picture")
        verdicts = make().judge([(Path(folder) / "gone.png", VIEW), (broken, VIEW)])
    assert [v.meets for v in verdicts] == [None, None]
    assert all(v.note for v in verdicts)


def holds_order(make: Callable[[], Judge]) -> None:
    """One verdict per picture, the same each time, with the judge's identity."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.png"
        Image.new("RGB", (32, 32), (200, 30, 30)).save(path)
        judge = make()
        one, two = (_judged(judge, (path, VIEW), (path, VIEW)) for _ in range(2))
    assert one == two
    assert len(one) in (0, 2)
    assert all(v.judge == judge.identity for v in one)
    assert all(v.meets is not None or v.note for v in one)


def holds_identity(make: Callable[[], Judge]) -> None:
    """Its identity begins with its name (in verdicts) and version."""
    judge = make()
    assert judge.identity.startswith(f"{judge.verdict_name or judge.name}@{judge.version}")


def holds_nothing(make: Callable[[], Judge]) -> None:
    """No pictures give no verdicts."""
    assert make().judge([]) == []
