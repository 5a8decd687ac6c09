"""Every class of the zoo, tried: does errata load it, does it hold what it must, which editors act.

`errata doctor --classes` makes the rows for the transformers that is installed; `make docs` keeps
those of the pinned version in `assets/classes.json`, which `errata list backbones` shows.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from errata.core.errors import MissingExtra, UserError, one_line
from errata.testing import zoo
from errata.testing.class_checks import ClassReport, editors_for, report


def examined(
    names: Sequence[str], editors: Sequence[str] | None = None
) -> Iterator[dict[str, Any]]:
    """A row per class, JSON-ready. editors: those to try; None: all that fit."""
    for name in names:
        model = zoo.ZOO[name]
        found = asdict(_report(name, editors))
        found["reason"] = _without_folder(found["reason"], name)
        found["editors"] = {e: _without_folder(why, name) for e, why in found["editors"].items()}
        yield {"name": name, "class": model.cls, "takes": model.kind, **found}


def _report(name: str, editors: Sequence[str] | None) -> ClassReport:
    try:
        bb = zoo.loaded(name)
    except (MissingExtra, ImportError, AttributeError) as e:  # not in this installation
        return ClassReport("absent", one_line(e))
    except UserError as e:
        return ClassReport("refused", str(e))
    fitting = editors_for(bb)
    chosen = [e for e in fitting if editors is None or e in editors]
    with tempfile.TemporaryDirectory() as folder:
        return report(bb, Path(folder), chosen)


def _without_folder(text: str, name: str) -> str:
    """A message with the name of the class in place of the folder, which is another every time."""
    return re.sub(rf"\S*errata-zoo-{re.escape(name)}-\w+", zoo.ZOO[name].cls, text)
