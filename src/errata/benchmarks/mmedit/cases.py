"""Turns a row into a case. What cannot be asked becomes a `Skip` with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from errata.benchmarks.mmedit.rows import (
    MMEditRow,
    clean_rephrase,
    locality_question,
    rephrase_problem,
)
from errata.benchmarks.mmedit.splits import Triple
from errata.core.errors import BadImage
from errata.core.types import Case, Edit, Probe, Prompt, Skip
from errata.io.images import within_root


@dataclass(frozen=True, slots=True)
class MMEditFolder:
    """The folder of the images. present: whether it holds any; if not, only paths are checked."""

    base: Path
    present: bool

    def find(self, relative: str) -> tuple[str, str | None]:
        """(path, None), or ("", why the image cannot be used)."""
        try:
            path = within_root(self.base, relative)
        except BadImage as e:
            return "", str(e)
        if self.present and not os.path.isfile(path):
            return "", f"image {relative} is missing under the root"
        return str(path), None


def image_folder(root: Path, rows: Iterable[MMEditRow]) -> MMEditFolder:
    """`root` or `root/images`: the one that holds a folder named in the rows."""
    tops = {PurePosixPath(path).parts[:1] for row in rows for path in row.images}
    names = sorted(top[0] for top in tops if top and top[0] not in ("/", "..", "."))
    for base in (root, root / "images"):
        if any(os.path.exists(base / name) for name in names):
            return MMEditFolder(base, True)
    return MMEditFolder(root / "images" if (root / "images").is_dir() else root, False)


def build(
    task: str, part: str, row: MMEditRow, locality: Triple | None, folder: MMEditFolder
) -> tuple[Case | None, tuple[Skip, ...]]:
    """The case of one row, and what was skipped.

    Without image, prompt or target of the edit the row is skipped; otherwise single probes are.
    `origin` is `correction`: the target is the annotated truth. `old` stays empty: the file's
    `pred` is BLIP2's answer, not that of the model at hand.
    """
    name = f"{task}-{part}-{row.index:05d}"
    src, target = row.src.strip(), row.alt.strip()
    path, problem = folder.find(row.image)
    if not src or not target:
        problem = "the edit's prompt is empty" if not src else "the edit's target is empty"
    if problem:
        return None, (Skip(name, problem),)
    probes: list[Probe] = []
    skips: list[Skip] = []

    def ask(kind: str, text: str, reference: str, image: str | None, problem: str | None) -> None:
        where = None
        if problem is None and not (text and reference):
            problem = f"the {'question' if not text else 'reference'} is empty"
        if problem is None and image is not None:
            where, problem = folder.find(image)
        if problem is None:
            probes.append(Probe(kind, Prompt.of(text, where), kind, reference=reference))
        else:
            skips.append(Skip(f"{name}/{kind}", problem))

    dirty = rephrase_problem(row.rephrase)
    ask("reliability", src, target, row.image, None)
    ask("t_generality", clean_rephrase(row.rephrase), target, row.image, dirty)
    ask("m_generality", src, target, row.image_rephrase, None)
    ask("t_locality", locality_question(row.loc), row.loc_ans.strip(), None, None)
    if locality is None:
        skips.append(Skip(f"{name}/m_locality", "no locality triple is free of eval's images"))
    else:
        image, question, answer = locality
        ask("m_locality", question.strip(), answer.strip(), image, None)
    edit = Edit(Prompt.of(src, path), target, id=name)
    case = Case(name, edit, tuple(probes), task=task, origin="correction")
    return case, tuple(skips)
