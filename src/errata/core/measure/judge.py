"""A judge looks at the saved pictures of a run and returns a verdict on each. No torch.

`errata judge` runs a judge over a run folder; metrics read the verdicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from errata.core.types import JudgeQuestion, Verdict

#: Prefix of the note of a verdict that may be retried.
RETRY = "again: "


def may_retry(verdict: Verdict) -> bool:
    """Whether the picture should be judged again: the failure was temporary."""
    return verdict.note.startswith(RETRY)


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
