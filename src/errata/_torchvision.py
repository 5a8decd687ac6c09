"""Makes a torchvision importable that was built for another torch.

Many processors of transformers need the Python part of torchvision. Where the package is the CUDA
build and torch the CPU build (or their versions differ), its compiled operators cannot be loaded.
Its import then fails on two operators for detection (`nms`, `qnms`), and with it the import of
every model of transformers. No processor uses them, so they are declared without a body, when
torchvision is looked for the first time after `import errata`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

_DETECTION = ("nms", "qnms")


@cache
def make_importable() -> Any:
    """Declares the two operators if torchvision is installed and its own cannot be loaded.

    Returns what keeps them declared, or None.
    """
    spec = None if "torchvision" in sys.modules else importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    import torch

    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            ctypes.CDLL(str(library))
            return None
        except OSError:
            pass
    made: Any = torch.library.Library
    operators = made("torchvision", "FRAGMENT")
    for name in _DETECTION:
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


class TorchvisionFinder:
    """Finds nothing; it notices that torchvision is looked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            make_importable()


def watch() -> None:
    """From now on torchvision can be imported, whoever does it."""
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())
