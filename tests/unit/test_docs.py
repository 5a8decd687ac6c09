"""The docs agree with the code: errors, schemas, the README's table, commands, examples, links."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from errata.core import errors
from tools import docs
from tools.site import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _subclasses(cls: type) -> set[str]:
    return {c.__name__ for c in cls.__subclasses__()}.union(
        *(_subclasses(c) for c in cls.__subclasses__())
    )


def test_every_user_error_has_a_row_and_every_row_an_error():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    known = {n for n in _subclasses(errors.UserError) if hasattr(errors, n)}
    assert {name for name, *_ in rows} == known
    assert len(rows) == len(known)
    assert all(cell.strip() for row in rows for cell in row)


def test_schemas_are_current():
    made = docs.schemas()
    for path, text in made.items():
        assert path.read_text(encoding="utf-8") == text, "run `make docs`"
    assert set((ROOT / "docs" / "schemas").glob("*.json")) == set(made)


def test_the_tables_of_classes_are_those_that_are_stored():
    """That the stored ones are right is tested in tests/contract/test_classes.py."""
    for path, text in docs.stored_pages().items():
        assert path.read_text(encoding="utf-8") == text, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if "://" in target or target.startswith("mailto:"):
            continue
        path = page.parent / target if target else page
        if path.resolve().is_relative_to(ROOT / "docs" / "reference"):  # made with the site
            assert str(path.resolve().relative_to(ROOT / "docs")) in reference.paths()
            continue
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _anchors(path), f"{page.name}: {target}#{anchor}"


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}


def test_commands_in_the_docs_exist():
    """Every `errata <command>` that a page shows is one."""
    from errata.cli import app

    known = {c.name for c in app.registered_commands} | {g.name for g in app.registered_groups}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        shown = set(re.findall(r"^\s*(?:\$ )?errata ([a-z][a-z-]+)", text, re.MULTILINE))
        assert shown <= known, f"{page.name}: {shown - known}"


def _code(page: str, number: int = 0) -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.M)
    return str(blocks[number])


def _run(code: str, page: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the code of a page as a module, so that its classes know where they are from."""
    module = ModuleType(re.sub(r"\W", "_", page))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, page, "exec"), module.__dict__)
    return module.__dict__


def test_the_editor_in_the_docs_works(monkeypatch):
    import torch

    from errata import Edit, Prompt
    from tests import tiny

    bb = tiny.llava()
    cls = _run(_code("docs/add-an-editor.md"), "docs/add-an-editor.md", monkeypatch)["FtUp"]
    one = Edit(Prompt.of("Which thing is red?"), "the ring", id="one")
    two = Edit(Prompt.of("What is the colour?"), "blue", id="two")
    batch = bb.encode([e.prompt for e in (one, two)], [e.target for e in (one, two)])
    patch = cls(preset="careful", layer=-2).edit(bb, [one, two]).patch
    with torch.no_grad():
        before = bb.logits(batch)
        with bb.applied(patch):
            assert not torch.equal(bb.logits(batch), before)
        assert torch.equal(bb.logits(batch), before)


@pytest.mark.parametrize(
    ("number", "name", "settings"),
    [
        (0, "FtUp", {"lr": 1e-2, "steps": 8}),
        (1, "StepSizeEditor", {"steps": 2, "batch_size": 2, "held_out": 0, "layers": (1, 2)}),
    ],
)
def test_the_editors_in_the_docs_hold_the_contract(
    number, name, settings, monkeypatch, edits, tmp_path
):
    from errata.contract import editors as contract
    from errata.core.types import Case, Probe, Prompt
    from tests import tiny

    page = "docs/add-an-editor.md"
    cls = _run(_code(page, number), page, monkeypatch)[name]
    cases = [
        Case(
            f"c{i}",
            e,
            (
                Probe("g", e.prompt.with_text("Please: x"), "t_generality", reference=e.target),
                Probe("l", Prompt.of(f"What is Fact {i}?"), "t_locality", reference="ring"),
            ),
        )
        for i, e in enumerate(edits)
    ]
    prompts = [*(e.prompt for e in edits), Prompt.of("Which ring?")]
    many = [e.prompt.with_text(f"{e.prompt.text} {i}") for e in edits for i in range(10)]
    world = contract.World(tiny.shared("llava"), edits, prompts, many, cases, tmp_path, settings)
    for words, check in contract.checks(cls, world):
        try:
            check()
        except AssertionError as e:
            raise AssertionError(words) from e


def test_the_benchmark_in_the_docs_works(monkeypatch, tmp_path):
    from errata.core.errors import BadData
    from errata.core.measure.benchmark import BenchmarkSpec

    code = _code("docs/add-a-benchmark.md")
    benchmark = _run(code, "docs/add-a-benchmark.md", monkeypatch)["Capitals"]()
    spec = BenchmarkSpec("capitals", ("text",), "eval", "disjoint")
    row = {"question": "Capital of X?", "new": "A", "old": "B", "rephrased": "X's capital?"}
    row |= {"other": "Capital of Y?", "other_answer": "C"}
    lines = "\n".join(json.dumps(r) for r in (row, {**row, "new": " "}))
    (tmp_path / "eval.jsonl").write_text(lines)
    loaded = benchmark.load(spec, root=tmp_path)
    assert [c.id for c in loaded.cases] == ["eval-1"]
    assert [s.reason for s in loaded.skipped] == ["empty target"]
    with pytest.raises(BadData):
        benchmark.load(spec, root=tmp_path / "nowhere")


def test_the_metric_in_the_docs_works(monkeypatch):
    from errata.contract import metrics

    cls = _run(_code("docs/add-a-metric.md"), "docs/add-a-metric.md", monkeypatch)["Brief"]
    for _, check in metrics.checks(cls):
        check()
    assert cls.scorers()[0].title == "Brevity"


def test_the_probe_kind_in_the_docs_works(monkeypatch):
    from errata.core.types import Probe, Prompt

    code = _code("docs/add-a-benchmark.md", 1)
    names = {"Probe": Probe, "prompt": Prompt.of("Where is it?")}
    exec(compile(code, "docs/add-a-benchmark.md", "exec"), names)
    assert names["probe"].kind_info.group_meaning("left") == "things to the left of the edited one"


def test_the_analysis_in_the_docs_works(monkeypatch, edits):
    from errata.core.analysis import Subject
    from errata.core.types import Case
    from errata.figures.plots import svg
    from tests import tiny

    cls = _run(_code("docs/analyses.md"), "docs/analyses.md", monkeypatch)["Lengths"]
    cases = tuple(Case(e.id, e, ()) for e in edits)
    found = cls().look(Subject(tiny.shared("llava"), cases))
    assert len(found.tables[0].rows) == 4 * len(cases)
    assert "block 3" in svg(found.figures[0])
    assert "a first look" in found.said[0]


def test_the_session_in_the_readme_is_short():
    """That it says what it claims is tested in tests/e2e/test_docs_commands.py."""
    assert len([line for line in _code("README.md").splitlines() if line.strip()]) <= 18
