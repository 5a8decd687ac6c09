"""What a judge is: it looks at saved pictures and says what they show. No torch.

Judging is a step of its own over a run's pictures (`errata judge`); metrics read its verdicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from errata.core.types import Verdict, View


class Judge(ABC):
    """Looks at pictures. `version` changes whenever a verdict may change."""

    plugin_kind: ClassVar[str] = "judges"
    name: ClassVar[str]
    version: ClassVar[str] = "1"

    @abstractmethod
    def judge(self, pictures: Sequence[tuple[Path, View]]) -> list[Verdict]:
        """One verdict per picture, in order.

        A picture that cannot be judged gets a verdict with `meets` None and the reason.
        """
