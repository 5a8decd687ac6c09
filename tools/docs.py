"""Writes what is made from the code: docs/schemas, and the tables of classes (docs, README).

From the repository root:

    python -m tools.docs            writes (tries all classes: about seven seconds each)
    python -m tools.docs --only A,B writes, and tries these classes alone
    python -m tools.docs --editors E,F   tries these editors alone; the rest of a row stays
    python -m tools.docs --check    exits 1 when a part is not current
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

TYPES = ("Case", "Edit", "Probe", "Answer")
BEGIN, END = "<!-- table: tools/docs.py -->", "<!-- end of table -->"


def schemas() -> dict[Path, str]:
    """One JSON Schema per type that is written to a file."""
    from errata.core import types

    files = {}
    for name in TYPES:
        schema = types.json_schema(getattr(types, name))
        whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
        text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        files[ROOT / "docs" / "schemas" / f"{name.lower()}.json"] = text
    return files


def classes() -> dict[Path, str]:
    """The classes that errata was tried on: as data, as a page, and in short in the README.

    Takes some seconds a class. `--only NAME,NAME` tries these and keeps the other rows; `--editors
    NAME,NAME` tries these editors, and keeps what the rows say about others.
    """
    from errata.core import registry
    from errata.core.files import versions
    from errata.testing import class_table, zoo

    path = ROOT / "src" / "errata" / "assets" / "classes.json"
    names = list(zoo.ZOO)
    rows = {}
    editors = _argument("--editors")
    if (only := _argument("--only")) or editors:
        rows = {r["name"]: r for r in json.loads(path.read_text(encoding="utf-8"))["classes"]}
        names = only or names
    for row in class_table.examined(names, editors):
        rows[row["name"]] = _with_editors(rows[row["name"]], row) if editors else row
    made = {"transformers": versions()["transformers"]}
    kept = [rows[n] for n in zoo.ZOO if n in rows]
    text = json.dumps({"versions": made, "classes": kept}, indent=1, ensure_ascii=False) + "\n"
    return {path: text, **pages(kept, registry.names("editors"))}


def _argument(name: str) -> list[str] | None:
    """The names behind an argument; None where it is not given."""
    return sys.argv[sys.argv.index(name) + 1].split(",") if name in sys.argv else None


def _with_editors(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what was found about some editors now. Raises where the model itself fails."""
    if old["status"] in ("refused", "absent") and new["status"] == old["status"]:
        return dict(old)
    assert new["status"] in ("works", "partly"), (new["name"], new["status"], new["reason"])
    editors = dict(sorted({**old["editors"], **new["editors"]}.items()))
    return {**old, "editors": editors, "status": "partly" if any(editors.values()) else "works"}


def pages(rows: Sequence[Mapping[str, Any]], editors: Sequence[str]) -> dict[Path, str]:
    """docs/classes.md and the README, from the rows of `assets/classes.json`."""
    page, readme = ROOT / "docs" / "classes.md", ROOT / "README.md"
    return {
        page: _between(page, f"{_counts(rows)}\n\n{_tables(rows, editors)}"),
        readme: _between(readme, _short(rows)),
    }


def stored_pages() -> dict[Path, str]:
    """The same from the stored rows, without trying anything."""
    from errata.cli.shared.classes import stored
    from errata.core import registry

    return pages(stored()["classes"], registry.names("editors"))


def _between(path: Path, part: str) -> str:
    """The file with `part` between its two marks."""
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    assert pattern.search(text), f"{path.name} has no '{BEGIN}'"
    return pattern.sub(lambda _: f"{BEGIN}\n{part}\n{END}", text)


_TAKES = {"image-text": "image and text", "text": "text"}


def _counts(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for takes, words in _TAKES.items():
        own = [r["status"] for r in rows if r["takes"] == takes]
        each = ", ".join(f"{own.count(s)} {s}" for s in dict.fromkeys(sorted(own, reverse=True)))
        lines.append(f"- {words}: {len(own)} classes: {each}")
    return "\n".join(lines)


def _short(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of statuses with the classes that have them."""
    lines = [_row(["takes", "status", "classes"]), _row(["---"] * 3)]
    for takes, words in _TAKES.items():
        own = [r for r in rows if r["takes"] == takes]
        for status in ("works", "partly", "refused", "absent", "fails"):
            names = ", ".join(_family(r["class"]) for r in own if r["status"] == status)
            if names:
                lines.append(_row([words, status, names]))
    return "\n".join(lines)


def _family(cls: str) -> str:
    """The name of a class without what all of them end with."""
    return re.sub(r"(ForConditionalGeneration|ForCausalLM|LMHeadModel)", "", cls)


def _tables(rows: Sequence[Mapping[str, Any]], editors: Sequence[str]) -> str:
    """One table for each kind of model: a row per class, a column per editor."""
    parts = []
    for takes, words in _TAKES.items():
        own = [r for r in rows if r["takes"] == takes]
        columns = [e for e in editors if any(e in r["editors"] for r in own)]
        notes: dict[str, int] = {}
        lines = [_row(["class", "status", *(f"`{e}`" for e in columns)])]
        lines.append(_row(["---"] * (len(columns) + 2)))
        for r in own:
            cells = []
            for e in columns:
                why = _note(r["editors"].get(e), r["class"])
                mark = "" if why is None else "yes"
                cells.append(f"no[{notes.setdefault(why, len(notes) + 1)}]" if why else mark)
            status = r["status"]
            if reason := _note(r["reason"], r["class"]):
                status += f"[{notes.setdefault(reason, len(notes) + 1)}]"
            lines.append(_row([f"`{r['class']}`", status, *cells]))
        said = [f"{n}. {_escaped(why)}" for why, n in notes.items()]
        parts.append("\n".join([f"## Models that take {words}", "", *lines, "", *said]).rstrip())
    return "\n\n".join(parts)


def _note(why: str | None, cls: str) -> str | None:
    """A reason without the name of the class and the number of a block, for several classes."""
    if why is None:
        return None
    why = why.replace(f"errata doctor {cls}", "errata doctor MODEL")
    why = why.replace(f"{cls}:", "The model:").replace(cls, "the model")
    why = re.sub(r" Similar ones: .*", "", why)
    why = re.sub(r"text\.\d+\.(mlp)\.\w+", r"text.{i}.\1", re.sub(r"block \d+ ", "a block ", why))
    return why[:1].upper() + why[1:]


def _escaped(text: str) -> str:
    return re.sub(r"([<>|*_])", r"\\\1", text)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


MAKERS: tuple[Callable[[], dict[Path, str]], ...] = (schemas, classes)


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = 0
    for path, text in (item for make in MAKERS for item in make().items()):
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        print(f"{'not current' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
