"""The zoo: a tiny model of every class of transformers that errata is tried on.

Each is made from a tiny configuration of the real class with random weights, and has the real
processor or tokenizer class with a small vocabulary. `folder_of` saves both, so that they are
loaded as a user loads a model: `errata.load(folder)`.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from errata.testing.zoo import language, vision


@dataclass(frozen=True)
class ZooModel:
    """cls: name of the class in transformers. make: (model, processor or tokenizer).

    kind: what the model takes. refused: words of the line with which `errata.load` refuses the
    class, "" if it is loaded. unfit: editor -> words of the line with which it refuses the class.
    """

    name: str
    cls: str
    make: Callable[[], tuple[Any, Any]]
    kind: Literal["image-text", "text"]
    refused: str = ""
    unfit: Mapping[str, str] = field(default_factory=dict)


def _all() -> Mapping[str, ZooModel]:
    models: dict[str, ZooModel] = {}
    for kind, module in (("image-text", vision), ("text", language)):
        for name, (cls, make, *more) in module.MODELS.items():
            models[name] = ZooModel(name, cls, make, kind, *more)  # type: ignore[arg-type]
    return models


#: name -> model, by the name of its type in transformers where that tells it apart
ZOO = _all()


@functools.cache
def folder_of(name: str) -> Path:
    """The folder of a saved zoo model; one per process."""
    folder = Path(tempfile.mkdtemp(prefix=f"errata-zoo-{name}-"))
    model, processor = ZOO[name].make()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@functools.cache
def loaded(name: str) -> Any:
    """The backbone of a zoo model, loaded from its folder; one per process."""
    from errata.backbones import load

    return load(folder_of(name), dtype="float32")
