"""The patches that a request can name, alone or stacked: `MODEL+PATCH+PATCH`.

A name is only compared with the names that are there: it is never made a path. Patches come from
folders that were named at the start, and from edits.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.core.errors import BadSpec, UserError
from errata.core.files import visible
from errata.core.patch import Patch
from errata.io.patch_folder import load, save
from errata.patches.stack import stacked
from errata.serve.failures import Refused
from errata.serve.settings import Limits

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> str:
    """The name of a patch. Raises BadSpec."""
    if not NAME.fullmatch(name):
        raise BadSpec(
            f"{name[:80]!r} is no name of a patch. Use up to 64 letters, digits, '-', '_' and '.', "
            "of them a letter or digit first."
        )
    return name


def patches_in(folder: Path | None) -> dict[str, Path]:
    """Name -> place of the patches whose folders lie in a folder."""
    if folder is None or not folder.is_dir():
        return {}
    inside = [folder / n for n in visible(folder) if NAME.fullmatch(n)]
    return {f.name: f for f in inside if (f / "patch.json").is_file()}


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """What a request is answered by: the names of the patches, and all of them as one patch."""

    names: tuple[str, ...]
    patch: Patch | None


class PatchCatalogue:
    """name: of the unedited model. given: name -> folder of patches. folder: whose subfolders are
    patches too, and where those of edits are saved.
    """

    def __init__(
        self, bb: Backbone, name: str, limits: Limits, *, given: Mapping[str, Path],
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        self.bb, self.name, self.limits = bb, name, limits
        self.given, self.folder = dict(given), folder
        self.loaded: dict[str, Patch] = {}
        self.stacks: dict[tuple[str, ...], Patch] = {}
        self.lock = threading.RLock()

    def places(self) -> dict[str, Path]:
        """Name -> folder of the patches that can be loaded, as they are now on the disk."""
        return {**patches_in(self.folder), **self.given}

    def load_all(self) -> dict[str, str]:
        """Loads everything; the reasons of those in the folder that cannot be loaded.

        Raises UserError for a patch that was named at the start.
        """
        failed: dict[str, str] = {}
        for name in sorted(self.places()):
            try:
                self.load(name)
            except UserError as e:
                if name in self.given:
                    raise
                failed[name] = str(e)
        return failed

    # -- by name ------------------------------------------------------------------------------

    def resolve(self, model: str) -> ChosenModel:
        """The patches that a model name stands for. Raises Refused."""
        if model == self.name:
            return ChosenModel((), None)
        front = f"{self.name}+"
        names = tuple(model.removeprefix(front).split("+")) if model.startswith(front) else ()
        if len(names) > self.limits.stack:
            raise Refused(
                400,
                f"the model names {len(names)} patches, this server stacks {self.limits.stack}.",
                param="model",
                code="too_many_patches",
            )
        with self.lock:
            unknown = [n for n in names if n not in self.loaded]
            if not names or unknown:
                what = f"the patch {unknown[0][:80]!r}" if unknown else f"the model {model[:80]!r}"
                raise Refused(
                    404,
                    f"{what} is not here. Write {self.name} or {self.name}+PATCH; GET /v1/models "
                    "lists them.",
                    param="model",
                    code="model_not_found",
                )
            if len(names) == 1:
                return ChosenModel(names, self.loaded[names[0]])
            if names not in self.stacks:
                if len(self.stacks) >= self.limits.patches:
                    self.stacks.pop(next(iter(self.stacks)))
                stack = stacked(*(self.loaded[n] for n in names))
                self.stacks[names] = self.bb.place(stack)
            return ChosenModel(names, self.stacks[names])

    def models(self) -> list[str]:
        with self.lock:
            return [self.name, *(f"{self.name}+{n}" for n in self.loaded)]

    def listed(self) -> list[dict[str, Any]]:
        """Every patch, loaded or not, with what is known of it."""
        with self.lock:
            loaded = dict(self.loaded)
        places = self.places()
        names = sorted(places.keys() | loaded.keys())
        return [
            {
                "name": n,
                "loaded": n in loaded,
                "saved": n in places,
                "editor": loaded[n].header.editor if n in loaded else None,
                "edits": len(loaded[n].edits) if n in loaded else None,
            }
            for n in names
        ]

    # -- changing -----------------------------------------------------------------------------

    def load(self, name: str) -> list[Patch]:
        """Reads a patch, again if it is loaded; returns what it replaced, as `unload` does.

        Raises Refused for a name that is not there, UserError for a patch that cannot be read.
        """
        place = self.places().get(name)
        if place is None:
            raise Refused(404, f"there is no patch {name[:80]!r} to load.", code="patch_not_found")
        return self._keep(name, load(place, self.bb))

    def add(self, name: str, patch: Patch) -> bool:
        """A new patch, loaded; whether it was saved too. Raises Refused, UserError."""
        self.check_free(name)
        if self.folder is not None:
            save(patch, self.folder / check_name(name))
        self._keep(name, self.bb.place(patch))
        return self.folder is not None

    def check_free(self, name: str) -> None:
        """Raises Refused if there is a patch with this name, or no room for another one."""
        with self.lock:
            # on some disks two names are one
            if name.casefold() in {n.casefold() for n in (*self.loaded, *self.places())}:
                raise Refused(
                    409, f"there is a patch {name!r} already. Choose another name.",
                    param="name", code="name_taken",
                )  # fmt: skip
            self._check_room()

    def unload(self, name: str) -> list[Patch]:
        """Forgets a patch, with the stacks it is in; what was forgotten. Raises Refused."""
        with self.lock:
            if name not in self.loaded:
                raise Refused(
                    404, f"the patch {name[:80]!r} is not loaded.", code="patch_not_found"
                )
            gone = [self.loaded.pop(name)]
            for names in [names for names in self.stacks if name in names]:
                gone.append(self.stacks.pop(names))
            return gone

    def _keep(self, name: str, patch: Patch) -> list[Patch]:
        with self.lock:
            replaced = self.unload(name) if name in self.loaded else []
            self._check_room()
            self.loaded[name] = patch
            return replaced

    def _check_room(self) -> None:
        if len(self.loaded) >= self.limits.patches:
            raise Refused(
                409, f"{len(self.loaded)} patches are loaded, which is the most. Unload one.",
                code="too_many_patches",
            )  # fmt: skip
