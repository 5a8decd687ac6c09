"""The linear modules behind sites: path, size, and how their weight is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from errata.backbones._identity import core, own_name, tied_names
from errata.core.errors import BadBackbone, BadPatch
from errata.core.model.outline import ModelOutline


@dataclass(frozen=True)
class LinearModule:
    """A linear module of a model, y = x W^T + b with W [out, into].

    path: in the model's own class. paths: all paths, where the module stands in several places.
    transposed: its weight is stored as [into, out] (the Conv1D of GPT-2). shared: names of other
    modules' weights that are the same tensor, such as the embedding's for a tied head.
    """

    site: str
    path: str
    paths: tuple[str, ...]
    into: int
    out: int
    transposed: bool
    has_bias: bool
    stream: str
    shared: tuple[str, ...]


def linear_modules(outline: ModelOutline) -> dict[str, LinearModule]:
    """Site -> its linear module, for all sites that are one. Raises BadBackbone."""
    root = core(outline.model)
    adapted = next((p for p, m in root.named_modules() if _is_adapter(m)), None)
    if adapted is not None:
        raise BadBackbone(
            f"{outline.name} has an adapter of its own (PEFT, at {own_name(adapted)}): a patch of "
            "it is one of the model with that adapter. Merge the adapter into the model first, "
            "save it, and make the edit on that folder."
        )
    paths: dict[int, list[str]] = {}
    for path, part in root.named_modules(remove_duplicate=False):
        paths.setdefault(id(part), []).append(own_name(path))
    tied = {name: tuple(names) for names in tied_names(root) for name in names}
    found = {}
    for name, site in outline.sites.items():
        module: Any = site.first
        if site.first is site.last and _is_linear(module) and id(module) in paths:
            found[name] = _linear(name, module, tuple(paths[id(module)]), site.stream, tied)
    return found


def linear_at(modules: Mapping[str, LinearModule], site: str, name: str) -> LinearModule:
    """The linear module of a site. Raises BadPatch where there is none."""
    if site not in modules:
        similar = sorted(s for s in modules if s.rpartition(".")[0].startswith(site.split(".")[0]))
        near = ", ".join(s for s in similar if s.startswith(site)) or ", ".join(similar[:6])
        raise BadPatch(
            f"the patch acts at {site}, which is not one linear module of {name}. Those are: "
            f"{near or 'none'}; see errata doctor."
        )
    return modules[site]


def _linear(
    name: str, module: Any, paths: tuple[str, ...], stream: str, tied: Mapping[str, tuple[str, ...]]
) -> LinearModule:
    transposed = not isinstance(module, nn.Linear) and hasattr(module, "nf")
    if transposed:
        into, out = int(module.nx), int(module.nf)
    else:
        into, out = int(module.in_features), int(module.out_features)
    own = {f"{path}.weight" for path in paths}
    shared = tuple(n for n in tied.get(f"{paths[0]}.weight", ()) if n not in own)
    return LinearModule(
        site=name,
        path=paths[0],
        paths=paths,
        into=into,
        out=out,
        transposed=transposed,
        has_bias=getattr(module, "bias", None) is not None,
        stream=stream,
        shared=shared,
    )


def _is_linear(module: Any) -> bool:
    """Whether a module is a linear layer, also a quantised one, or GPT-2's Conv1D."""
    if isinstance(module, nn.Embedding) or not hasattr(module, "weight"):
        return False
    return hasattr(module, "in_features") or (hasattr(module, "nf") and hasattr(module, "nx"))


def _is_adapter(module: nn.Module) -> bool:
    return hasattr(module, "base_layer") and hasattr(module, "active_adapters")
