"""What an analysis is: it looks into a model, an edit or a state, and shows what it saw. No torch.

One file in `errata/analyses/`, and its name is its file's. It answers a question that a score
cannot, on at least `ENOUGH` cases, and returns figures together with the numbers behind them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from errata.core.config import parse_config
from errata.core.errors import BadSpec
from errata.core.figure import Findings
from errata.core.types import Case

if TYPE_CHECKING:
    from errata.core.editor import Editor
    from errata.core.model.backbone import Backbone
    from errata.core.patch import Patch
    from errata.core.state import State

#: fewer cases make a first look, and the result says so
ENOUGH = 100

Progress = Callable[[str, int, int], None]


Split = Callable[[str], tuple[Case, ...]]


def no_split(split: str) -> tuple[Case, ...]:
    """Where the cases come from no benchmark."""
    raise BadSpec(
        f"this analysis needs cases of the split '{split}' too. Name a --benchmark that has it."
    )


def silent(what: str, done: int, total: int) -> None:
    """No progress shown."""


@dataclass(frozen=True)
class Subject:
    """What is looked at. `cases` are the benchmark's candidates, whatever the model answers.

    `patches` are edits that were made before, applied in order, for analyses that take them.
    `split` gives those of another split of the same benchmark, all of them.
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

    benchmark: what is looked at where none is named. from_state: whether it looks at a state (it is
    then given the one that comes with the model where none is named), so that an editor is needed.
    takes_patch: whether it looks at edits that were made before.
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
        """The benchmark to look at where none is named; "" for none."""
        return self.benchmark

    @abstractmethod
    def look(self, subject: Subject) -> Findings:
        """Raises BadSpec, MissingState or BadData where there is nothing to look at."""


def first_look(n: int, what: str) -> tuple[str, ...]:
    """A line that says so where fewer than `ENOUGH` were looked at; else none."""
    if n >= ENOUGH:
        return ()
    return (f"only {n} {what}: a first look, not a result (that takes {ENOUGH})",)
