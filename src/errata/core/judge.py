"""What a judge is: it looks at saved pictures and says what they show. No torch.

Judging is a step of its own over a run's pictures (`errata judge`); metrics read its verdicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from errata.core.types import JudgeQuestion, Verdict

#: how the note of a verdict begins that could be had another time
RETRY = "again: "


def waits(verdict: Verdict) -> bool:
    """Whether the picture should be judged again: something stood in the way for the moment."""
    return verdict.note.startswith(RETRY)


class Judge(ABC):
    """Looks at pictures. `version` changes whenever a verdict may change.

    Settings are keywords of `__init__`, which raises BadSpec on one that cannot be used.
    """

    plugin_kind: ClassVar[str] = "judges"
    name: ClassVar[str]
    version: ClassVar[str] = "1"

    @property
    def identity(self) -> str:
        """Whose verdicts may stand in one score: name, version and the settings that matter."""
        return f"{self.name}@{self.version}"

    @abstractmethod
    def judge(self, pictures: Sequence[tuple[Path, JudgeQuestion]]) -> list[Verdict]:
        """One verdict per picture, in order.

        A picture that cannot be judged gets a verdict with `meets` None and the reason, which
        begins with RETRY where it may go better another time. Raises UserError where nothing could
        be judged at all (a wrong key, say).
        """
