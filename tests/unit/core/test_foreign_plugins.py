"""A plug-in of another package replaces nothing, and a broken one is named with its package."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from errata.backbones import _families
from errata.cli import main
from errata.core import registry
from errata.core.errors import BadPlugin
from errata.core.types import Edit, Prompt
from errata.editors import choose
from errata.report.results import scorers_of
from errata.testing import tiny_models as tiny

Install = Callable[..., None]


class Package:
    """What an entry point knows of its package."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    points: list[EntryPoint] = []
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [p for p in points if p.group == group]
    )

    def add(kind: str, name: str, source: str, package: str = "other") -> None:
        module = f"theirs_{package}_{kind}_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        point = EntryPoint(name, f"{module}:Theirs", f"errata.{kind}")
        points.append(point._for(Package(package)))  # type: ignore[attr-defined]

    return add


BROKEN = {
    "syntax": "def",
    "import": "import a_module_that_is_not_there",
    "attribute": "x = 1",
    "exit": "raise SystemExit(3)",
    "no class": "Theirs = 5",
    "another kind": "class Theirs:\n    plugin_kind = 'weather'",
}


@pytest.mark.parametrize("kind", registry.KINDS)
@pytest.mark.parametrize("why", BROKEN)
def test_a_broken_one_is_named_and_breaks_nothing_else(
    install: Install, kind: str, why: str
) -> None:
    install(kind, "theirs", BROKEN[why], package=f"p{list(BROKEN).index(why)}")
    with pytest.raises(BadPlugin, match=r"'theirs' of the package p\d .*uninstall it"):
        registry.load(kind, "theirs")
    assert "theirs" in registry.names(kind) and "theirs" not in registry.usable(kind)
    for name in set(registry.names(kind)) - {"theirs"}:
        registry.load(kind, name)
    assert registry.summary(kind, "theirs").startswith("from p")
    assert _families() and scorers_of([]) == []


@pytest.mark.parametrize("kind", registry.KINDS)
def test_a_name_of_errata_is_not_taken_by_another_package(install: Install, kind: str) -> None:
    for name in [*registry.names(kind), *(n for k, n in registry.RENAMED if k == kind)]:
        install(kind, name, "raise AssertionError('it was imported')")
        with pytest.raises(BadPlugin, match=rf"'{name}' is in two packages: errata and other"):
            registry.load(kind, name)
    install(kind, "theirs", "", "one")
    install(kind, "theirs", "", "two")
    with pytest.raises(BadPlugin, match="two packages: one and two"):
        registry.load(kind, "theirs")


def test_one_that_fails_while_it_is_used_is_not_called_a_bug_of_errata(
    install: Install, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = (
        "from errata.core.measure.benchmark import Benchmark\n\n\nclass Theirs(Benchmark):\n"
        "    name = 'theirs'\n    version = '1'\n    tasks = ('a',)\n"
        "    def load(self, spec, *, root=None, seed=0):\n        return {}['gone']\n"
        "    def verify(self, *, root=None):\n        return {}['gone']\n"
    )
    install("benchmarks", "theirs", source)
    for words, code, said in (
        (["data", "verify", "theirs"], 2, "'theirs' of the package other failed: KeyError"),
        (["list", "benchmarks"], 0, ""),
        (["show", "benchmark", "microworld"], 0, ""),
    ):
        with pytest.raises(SystemExit) as end:
            main(words)
        err = capsys.readouterr().err
        assert (end.value.code or 0, said in err, err.count("\n")) == (code, True, code // 2)


def test_the_blame_names_the_plug_in_whose_code_failed(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "class Theirs:\n    plugin_kind = 'metrics'\n    def fail(self):\n        return 1 / 0\n"
    )
    install("metrics", "theirs", source)
    install("judges", "another", "")

    def blamed() -> str:
        with pytest.raises(ZeroDivisionError) as failed:
            registry.load("metrics", "theirs")().fail()
        return registry.blamed(failed.value)

    assert blamed() == "metric 'theirs' of the package other"
    (point,) = registry._points("metrics", "theirs")
    second = EntryPoint("more", point.value, "errata.gates")
    second._for(Package("other"))  # type: ignore[attr-defined]
    found = registry.entry_points
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group: [*found(group), *([second] if group == "errata.gates" else [])],
    )
    assert blamed() == "a plug-in of the package other"


def test_an_editor_is_chosen_and_a_model_shown_beside_broken_ones(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("theirs", "ike"):  # broken, and one with a name of errata
        install("editors", name, "import nothing_of_the_kind", name)
    install("backbones", "another", "import nothing_of_the_kind")
    bb = tiny.shared("llava")
    assert choose(bb, [Edit(Prompt.of("Which?"), "red")])[0].name
    with pytest.raises(SystemExit) as end:
        main(["show", "backbone", "micro-vlm"])
    assert not end.value.code and "bundled model" in capsys.readouterr().out


def test_a_broken_backbone_is_not_asked(install: Install) -> None:
    install("backbones", "theirs", "import nothing_of_the_kind")
    found: dict[str, Any] = _families()
    assert "hf_vlm" in found and "theirs" not in found
