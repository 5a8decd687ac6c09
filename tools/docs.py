"""Writes the parts of the docs that are made from the code: the README's table and docs/schemas.

From the repository root:

    python -m tools.docs            writes
    python -m tools.docs --check    exits 1 when a part is not current
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]

if TYPE_CHECKING:
    from errata import Case
    from errata.core.model.backbone import Backbone

TYPES = ("Case", "Edit", "Probe", "Answer")
BEGIN, END = "<!-- table: tools/docs.py -->", "<!-- end of table -->"

PICTURE = (
    "microworld:shape=ring,colour=blue,pattern=striped,accent=black,size=small,position=centre,"
    "background=grey,seed=1"
)

#: column -> function of errata.testing.tiny_models that makes a model of that class
COLUMNS = {
    "LLaVA-1.5": "llava",
    "BLIP-2 (OPT)": "blip2",
    "Qwen2.5-VL": "qwen25",
    "Qwen3-VL": "qwen3",
    "micro-umm": "micro_umm",
}


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


def readme() -> dict[Path, str]:
    """The README with the current table of editors and backbones."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    assert pattern.search(text), f"README.md has no '{BEGIN}'"
    return {path: pattern.sub(f"{BEGIN}\n{table()}\n{END}", text)}


def table() -> str:
    """Every editor tried on a small random-weight model of every class: `yes` or why not."""
    import torch

    from errata.core import registry
    from errata.testing import tiny_models

    torch.set_num_threads(1)
    backbones = {title: getattr(tiny_models, name)() for title, name in COLUMNS.items()}
    lines = [_row(["editor", "edits", *backbones]), _row(["---"] * (len(backbones) + 2))]
    lines.append(_row(["*processor*", "", *map(processor_of, backbones.values())]))
    for name in registry.names("editors"):
        edits = " + ".join(sorted(registry.load("editors", name).modalities, reverse=True))
        cells = [attempt(name, bb) for bb in backbones.values()]
        lines.append(_row([f"`{name}`", edits, *cells]))
    return "\n".join(lines)


def processor_of(bb: Backbone) -> str:
    """Which processor the column was run with: one of transformers, or a stand-in of ours."""
    kind = type(getattr(bb, "processor", None))
    if kind is type(None):
        return "tokenizer only"
    real = kind.__module__.startswith("transformers.")
    return f"`{kind.__name__}`" if real else "stand-in; the real one needs torchvision"


def attempt(name: str, bb: Backbone) -> str:
    """One small edit: does the patch change the logits, and does removing it restore them?"""
    import torch

    from errata import Edit, Prompt, UserError, editor
    from errata.core import registry
    from errata.testing.small_settings import SMALL_SETTINGS
    from errata.training.trained_editor import TrainedEditor

    cls = registry.load("editors", name)
    if lacking := cls.requires - bb.capabilities:
        return f"needs `{'`, `'.join(sorted(lacking))}`"
    shown = PICTURE if "image" in cls.modalities & bb.capabilities else None
    if shown is None and cls.modalities == {"image"}:
        return "needs `image`"
    edit = Edit(Prompt.of("What colour is the thing?", shown), "green", "thing", id="table")
    batch = bb.encode([edit.prompt], [edit.target])
    with torch.no_grad():
        before = bb.logits(batch)
    settings = SMALL_SETTINGS.get(name, {})
    if issubclass(cls, TrainedEditor):
        settings = {**settings, "steps": 1}
    else:  # the defaults, with fewer steps
        settings = {k: v for k, v in settings.items() if k in ("steps", "epochs")}
    try:
        one = editor(name, **settings).for_backbone(bb)
        state = one.prepare(bb, _train_cases("image" in bb.capabilities))
        patch = one.edit(bb, [edit], state).patch
        with torch.no_grad(), bb.applied(patch):
            during = bb.logits(bb.encode([edit.prompt], [edit.target]))
        with torch.no_grad():
            after = bb.logits(batch)
    except UserError as e:
        return f"no: {e}"
    assert torch.equal(before, after), f"{name} on {bb.name} was not undone"
    return "no effect" if torch.equal(before, during) else "yes"


def _train_cases(pictures: bool) -> list[Case]:
    """Cases for editors that need a prepared state or a training."""
    from errata import Case, Edit, Probe, Prompt

    unrelated = Probe("l", Prompt.of("Who made the other one?"), "t_locality", reference="Corvin")
    truths = {"Where is it from?": "Aldham", "Who made it?": "Sorrel", "What is it?": "a ring"}
    questions = [
        (Prompt.of(q, p), a)
        for q, a in truths.items()
        for p in (None, PICTURE if pictures else None)
    ]
    return [
        Case(
            f"train {i}",
            Edit(prompt, answer),
            (Probe("g", prompt, "t_generality", reference=answer), unrelated),
            origin="correction",
        )
        for i, (prompt, answer) in enumerate(questions)
    ]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


MAKERS: tuple[Callable[[], dict[Path, str]], ...] = (schemas, readme)


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
