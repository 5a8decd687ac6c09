"""A benchmark provides candidate cases, from files or from a generator. No torch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from errata.core import registry
from errata.core.errors import BadSpec
from errata.core.types import Case, Probe, Skip, brief

_SPEC = re.compile(r"(?P<name>[\w-]+)(:(?P<tasks>[\w+-]+))?(@(?P<split>\w+))?(/(?P<variant>\w+))?")


@dataclass(frozen=True, slots=True)
class BenchmarkSpec:
    """`name[:task[+task]][@train|dev|eval][/published|disjoint]`. Empty tasks = all tasks.

    Of a benchmark that reads a file of the user: `name:FILE[@split[/variant]]`; `source` is the
    file. Default variant: `disjoint`, else the benchmark's first.
    """

    name: str
    tasks: tuple[str, ...] = ()
    split: str = "eval"
    variant: str = "disjoint"
    source: str = ""

    @classmethod
    def parse(cls, text: str, *, split: str = "eval") -> BenchmarkSpec:
        """split: where the text names none. Raises BadSpec, UnknownName."""
        if not isinstance(text, str):
            raise BadSpec(f"a benchmark is named by a text, not by {brief(text)}.")
        name, colon, source = text.partition(":")
        if colon and name in registry.names("benchmarks"):
            benchmark = registry.load("benchmarks", name)
            if benchmark.source and (not benchmark.source_tasks or "." in source):
                return cls._of_source(benchmark, source, split)
        m = _SPEC.fullmatch(text)
        if not m:
            raise BadSpec(
                f"cannot read benchmark '{text}'. Write name[:task[+task]][@split][/variant], for "
                "example microworld:vqa@eval/disjoint."
            )
        spec = cls(
            m["name"],
            tuple((m["tasks"] or "").split("+")) if m["tasks"] else (),
            m["split"] or split,
            m["variant"] or "disjoint",
        )
        benchmark = registry.load("benchmarks", spec.name)
        if benchmark.source and not benchmark.source_tasks:
            raise BadSpec(
                f"benchmark '{spec.name}' reads a file. Name it: {spec.name}:{benchmark.source}."
            )
        for what, values, known in (
            ("task", spec.tasks, benchmark.tasks),
            ("split", (spec.split,), benchmark.splits),
            ("variant", (spec.variant,), benchmark.variants),
        ):
            for value in values:
                if value not in known:
                    file = f", or a file: {spec.name}:{benchmark.source}" * (what == "task")
                    raise BadSpec(
                        f"benchmark '{spec.name}' has no {what} '{value}'. It has: "
                        f"{', '.join(known)}{file if benchmark.source else ''}."
                    )
        tasks = spec.tasks or benchmark.default_tasks or benchmark.tasks
        return cls(spec.name, tasks, spec.split, spec.variant)

    @classmethod
    def _of_source(cls, benchmark: type[Benchmark], source: str, split: str) -> BenchmarkSpec:
        file, at, rest = source.rpartition("@")
        named, _, variant = rest.partition("/")
        if at and named in benchmark.splits and variant in ("", *benchmark.variants):
            source, split = file, named
        else:
            variant = ""
        if not source.strip():
            raise BadSpec(
                f"benchmark '{benchmark.name}' reads a file. Name it: "
                f"{benchmark.name}:{benchmark.source}."
            )
        tasks = benchmark.source_tasks or benchmark.tasks
        return cls(benchmark.name, tasks, split, variant or _default_variant(benchmark), source)

    def __str__(self) -> str:
        if self.source:
            default = _default_variant(registry.load("benchmarks", self.name))
            variant = "" if self.variant == default else f"/{self.variant}"
            return f"{self.name}:{self.source}@{self.split}{variant}"
        return f"{self.name}:{'+'.join(self.tasks)}@{self.split}/{self.variant}"


def _default_variant(benchmark: type[Benchmark]) -> str:
    """The variant of a file that a spec names none for."""
    return "disjoint" if "disjoint" in benchmark.variants else benchmark.variants[0]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Candidate cases in a fixed order, and rows that could not become a case."""

    cases: tuple[Case, ...]
    skipped: tuple[Skip, ...] = ()


class Benchmark(ABC):
    """A source of cases. Its results depend on the spec, the root and the seed only."""

    plugin_kind: ClassVar[str] = "benchmarks"
    name: ClassVar[str]
    version: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    #: the tasks of a spec that names none, where that is not all of them
    default_tasks: ClassVar[tuple[str, ...]] = ()
    splits: ClassVar[tuple[str, ...]] = ("train", "dev", "eval")
    variants: ClassVar[tuple[str, ...]] = ("published", "disjoint")
    #: what stands behind the colon where it is a file of the user and no task: FILE.jsonl
    source: ClassVar[str] = ""
    #: the tasks in such a file, of a benchmark whose tasks can be named too; its name has a dot
    source_tasks: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        """All candidate cases of `spec`, in a fixed order. Raises BadData for missing files."""

    def drawn_as(self, spec: BenchmarkSpec) -> str:
        """The text that, with the seed, decides the order in which cases are planned.

        A variant that gives an older version's cases names the spec that these had.
        """
        return str(spec)

    def panel(self, spec: BenchmarkSpec, *, root: Path | None = None) -> tuple[Probe, ...]:
        """A fixed panel of questions unrelated to any edit (kind `retention`); may be empty."""
        return ()

    def files(self, spec: BenchmarkSpec, *, root: Path | None = None) -> Mapping[str, str]:
        """Files of the user that `load` reads: name -> sha256; a run records them."""
        return {}

    def judge(self, task: str) -> str:
        """Name of the judge that `errata bench` runs on the pictures of `task`; "" for none."""
        return ""

    def open_image(self, spec: str) -> Any:
        """The PIL image (RGB) of the URI `<name>:<spec>`, for benchmarks that render images."""
        raise BadSpec(f"benchmark '{self.name}' renders no images.")

    def audit(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Counts and leaks of the splits, computed from the data (nested, JSON-ready)."""
        raise BadSpec(f"benchmark '{self.name}' has no audit.")

    def verify(self, *, root: Path | None = None) -> Mapping[str, Any]:
        """Per file: whether it is there and undamaged (JSON-ready)."""
        raise BadSpec(f"benchmark '{self.name}' has nothing to verify.")
