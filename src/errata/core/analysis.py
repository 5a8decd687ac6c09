"""What an analysis is: a study of a model, an edit or a state beyond scores. No torch.

One file in `errata/analyses/`, whose name is the analysis's. It needs `ENOUGH` cases for a result
and returns figures together with the numbers behind them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from errata.core.config import parse_config
from errata.core.errors import BadSpec
from errata.core.figure import Findings
from errata.core.formats.counts import counted
from errata.core.types import Case

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone
    from errata.core.patch import Patch
    from errata.core.state import State

#: with fewer cases the result says that it is a first look
ENOUGH = 100

Progress = Callable[[str, int, int], None]


Split = Callable[[str], tuple[Case, ...]]


def no_split(split: str) -> tuple[Case, ...]:
    """For cases that come from no benchmark. Raises BadSpec."""
    raise BadSpec(
        f"this analysis needs cases of the split '{split}' too. Name a --benchmark that has it."
    )


def silent(what: str, done: int, total: int) -> None:
    """Shows no progress."""


@dataclass(frozen=True)
class Subject:
    """What an analysis looks at.

    cases: the benchmark's candidates, also those that the model answers correctly. rows: batch size
    in cases. split: all cases of another split of the same benchmark. patches: saved edits, applied
    in order, for analyses that take them.
    """

    backbone: Backbone
    cases: tuple[Case, ...] = ()
    benchmark: str = ""
    editor: Editor | None = None
    state: State | None = None
    seed: int = 0
    rows: int = 16
    progress: Progress = silent
    split: Split = no_split
    patches: tuple[Patch, ...] = ()


class Analysis(ABC):
    """Base of all analyses. Settings are the nested frozen `Config`.

    benchmark: the default one. from_state: whether it needs a state, and so an editor; without
    --state it gets the one that comes with the model. takes_patch: whether it takes saved edits.
    """

    plugin_kind: ClassVar[str] = "analyses"
    name: ClassVar[str]
    benchmark: ClassVar[str] = ""
    from_state: ClassVar[bool] = False
    takes_patch: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings."""

    def __init__(self, **passed: Any) -> None:
        self.config: Any = parse_config("analysis", self.name, self.Config, passed)

    @property
    def default(self) -> str:
        """The default benchmark for these settings; "" for none."""
        return self.benchmark

    @abstractmethod
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec, MissingState or BadData without suitable cases, state or edit."""


def first_look(n: int, what: str) -> tuple[str, ...]:
    """A line for the terminal if there are fewer than `ENOUGH` of them; else none.

    what: the noun for one.
    """
    if n >= ENOUGH:
        return ()
    return (f"only {counted(n, what)}: a first look, not a result (that takes {ENOUGH})",)
