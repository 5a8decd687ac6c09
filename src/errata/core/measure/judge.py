"""A judge looks at the saved pictures of a run and returns a verdict on each. No torch.

`errata judge` runs a judge over a run folder; metrics read the verdicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from errata.core.text import same_answer
from errata.core.types import JudgeQuestion, Verdict

#: Prefix of the note of a verdict that may be retried.
RETRY = "again: "


def may_retry(verdict: Verdict) -> bool:
    """Whether the picture should be judged again: the failure was temporary."""
    return verdict.note.startswith(RETRY)


def same_verdict(before: Verdict, after: Verdict) -> bool | None:
    """Whether two pictures show the same answer; None where one of them could not be judged.

    Without any answers: whether they are equally right.
    """
    if before.meets is None or after.meets is None:
        return None
    if before.answer or after.answer:
        return same_answer(before.answer, after.answer)
    return before.meets == after.meets


class Judge(ABC):
    """Looks at pictures. `version` changes whenever a verdict may change.

    Settings are keywords of `__init__`, which raises BadSpec on one that cannot be used.
    """

    plugin_kind: ClassVar[str] = "judges"
    name: ClassVar[str]
    version: ClassVar[str] = "1"
    #: Name in saved verdicts; "" means `name`. A judge that is renamed keeps its former name here.
    verdict_name: ClassVar[str] = ""

    @property
    def identity(self) -> str:
        """Verdicts of equal identity may be averaged: name, version, settings that matter."""
        return f"{self.verdict_name or self.name}@{self.version}"

    @abstractmethod
    def judge(self, pictures: Sequence[tuple[Path, JudgeQuestion]]) -> list[Verdict]:
        """One verdict per picture, in order.

        A picture that cannot be judged gets a verdict with `meets` None and the reason in `note`;
        the note begins with RETRY if a retry may succeed. Raises UserError if no picture could be
        judged (for example with a wrong key).
        """
