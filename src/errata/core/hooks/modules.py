"""Whether the modules that hold the sites are still part of the model.

Resized embeddings, added or merged adapters, quantisation and compiled blocks replace modules. A
hook on a module that is no longer called would have no effect, without a word.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from errata.core.errors import BadBackbone


class ModuleTree:
    """The links from the root of a model down to its `modules`."""

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module]) -> None:
        wanted = {id(m) for m in modules}
        self.name = type(model).__name__
        self.links: list[tuple[dict[str, Any], str, nn.Module, str]] = []
        self._walk(model, "", wanted)

    def _walk(self, parent: nn.Module, path: str, wanted: set[int]) -> bool:
        """Keeps the links below `parent` that lead to a wanted module; whether there are any."""
        leads = id(parent) in wanted
        children: dict[str, Any] = parent._modules
        for key, child in children.items():
            if child is None:
                continue
            at = f"{path}.{key}" if path else key
            if self._walk(child, at, wanted):
                self.links.append((children, key, child, at))
                leads = True
        return leads

    def intact(self) -> bool:
        return all(children.get(key) is child for children, key, child, _ in self.links)

    def check(self) -> None:
        """Raises BadBackbone, naming the first module that was replaced."""
        for children, key, child, path in self.links:
            if children.get(key) is not child:
                raise BadBackbone(
                    f"the module '{path}' of {self.name} was replaced after the model was wrapped "
                    "(resized embeddings, adapters, quantised or compiled modules). Patches would "
                    "have no effect there. Wrap the model again: errata.wrap(model, processor)."
                )
