"""Stand-ins for models whose code no package index has: OmniGen2, Ovis-U1, BLIP3o.

Written here, with random weights and the published names of classes, attributes and functions, so
that errata's files for these models run: path, tap, template, guidance and the drawing call. Each
is also saved as a folder in the published layout, beside a package that stands for the code of its
authors (`installed`). They say nothing about the published weights.
"""

from __future__ import annotations

import functools
import importlib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STANDINS = ("ovis_u1", "omnigen2", "blip3o")
#: name -> modules of its authors' package -> what errata takes from there. Ovis-U1's code is in
#: its folder.
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "omnigen2": {
        "omnigen2.pipelines.omnigen2.pipeline_omnigen2": "OmniGen2Pipeline",
        "omnigen2.models.transformers.transformer_omnigen2": "OmniGen2Transformer2DModel",
    },
    "blip3o": {
        "blip3o.model.builder": "load_pretrained_model",
        "blip3o.mm_utils": "get_model_name_from_path",
        "blip3o.conversation": "conv_templates",
    },
}


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


@functools.cache
def wrapped(name: str) -> Any:
    """The backbone of a stand-in in memory; one per process."""
    return _module(name).backbone()


@functools.cache
def folder_of(name: str) -> Path:
    """The folder of a saved stand-in; one per process."""
    folder = Path(tempfile.mkdtemp(prefix=f"errata-{name}-"))
    _module(name).save(folder)
    return folder


@contextmanager
def installed(name: str, folder: Path) -> Iterator[None]:
    """Inside, the code of the authors of a model can be imported. folder: to write it to."""
    for module, taken in _PACKAGES.get(name, {}).items():
        file = folder.joinpath(*module.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"from {__name__}.{name} import {taken}\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for module in [m for m in sys.modules if m.partition(".")[0] == name]:
            del sys.modules[module]
