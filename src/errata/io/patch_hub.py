"""Patches from a folder or from the Hugging Face Hub, and patches put there.

A repository holds the files of a patch folder; its card is the README of the folder.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errata.core.errors import BadPatch, BadSpec, FingerprintMismatch, Notice, UserError
from errata.core.files import FilePath, read_bytes
from errata.core.formats.validation import path_of
from errata.core.model.backbone import Backbone, check_backbone
from errata.core.patch import Patch, shape_of
from errata.io import hub, patch_folder, patch_images
from errata.io.hub import HubAccess, HubName, Upload
from errata.io.patch_card import MARK, check_license

MARKER = "patch.json"
#: file of a repository without patch.json -> (what the repository is, what to do)
_OTHERS = {
    "adapter_config.json": (
        "a LoRA adapter of peft",
        "Make a patch of it: errata patch import-peft",
    ),
    "config.json": ("a model", "Name it in the place of the model, and the patch behind it"),
    "state.json": ("the state of an editor", "Pass it with --state"),
}


def load(
    name_or_path: FilePath,
    backbone: Backbone | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: FilePath | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Patch:
    """A patch from a folder, or from the hub: `user/name`, `user/name@revision`, `hf://user/name`.

    Bit for bit as it was saved. With a backbone, refuses one made for another model. The other
    arguments are those of `huggingface_hub`; without a network an earlier download is taken.
    Raises BadPatch for what is no patch, FingerprintMismatch, BadSpec, and BadEndpoint for what the
    hub, the network or the token refuses.
    """
    if backbone is not None:
        check_backbone(backbone)  # before something is downloaded
    access = HubAccess(token, cache_dir, local_files_only, force_download)
    return located(name_or_path, revision, access).load(backbone)


@dataclass(frozen=True, slots=True)
class Located:
    """A patch on this disk; `name` is its name on the hub if it was downloaded."""

    folder: Path
    name: HubName | None = None

    def __str__(self) -> str:
        return str(self.name or self.folder)

    def head(self) -> dict[str, Any]:
        """The content of `patch.json`. Raises BadPatch."""
        return patch_folder.read_head(self.folder)

    def load(self, backbone: Backbone | None = None) -> Patch:
        """As `load` of this module; the errors name the repository."""
        try:
            return patch_folder.load(self.folder, backbone)
        except FingerprintMismatch as e:
            raise FingerprintMismatch(str(e).replace(str(self.folder), str(self))) from None
        except BadPatch as e:
            raise e if self.name is None else _in_cache(self.name, self.folder, e) from None


def located(
    name_or_path: FilePath, revision: str | None = None, access: HubAccess | None = None
) -> Located:
    """Where a patch is on this disk; one on the hub is downloaded. Raises as `load`."""
    path = path_of(name_or_path, "the folder of a patch")
    name = hub.hub_name(name_or_path, revision)
    if name is None:
        return Located(path)
    return Located(_downloaded(name, access or HubAccess()), name)


def _downloaded(name: HubName, access: HubAccess) -> Path:
    """The folder of the cache with all files of a patch, of one commit. Raises BadPatch, ..."""
    try:
        folder = hub.fetch(name, MARKER, access, BadPatch).parent
    except BadPatch as e:
        raise _no_patch(name, access) or e from None
    try:
        head = patch_folder.read_head(folder)
        for image in head.get("images", ()):
            patch_images.check_inside(folder, image)
    except BadPatch as e:
        raise _in_cache(name, folder, e) from None
    commit = replace(name, revision=folder.name)
    pictures = [f"{patch_images.FOLDER}/{image}" for image in head.get("images", ())]
    for file in ("patch.safetensors", "edits.jsonl", *pictures):
        hub.fetch(commit, file, access, BadPatch)
    return folder


def _no_patch(name: HubName, access: HubAccess) -> UserError | None:
    """What a repository without patch.json is; None if it cannot be looked into."""
    if access.local_files_only:
        return None
    try:
        files = hub.files_of(name, access.token, BadPatch)
    except UserError:
        return None
    kinds = [(kind, advice) for file, (kind, advice) in _OTHERS.items() if file in files]
    kind, advice = (
        kinds[0] if kinds else ("no patch", "`errata patch push DIR USER/NAME` makes one")
    )
    return BadPatch(f"{name} on the Hub has no {MARKER}: it is {kind}. {advice}.")


def _in_cache(name: HubName, folder: Path, error: BadPatch) -> BadPatch:
    said = re.sub(r" Restore it from a copy[^.]*\.", "", str(error))
    if said == str(error):  # it is whole, but nothing that can be used
        return BadPatch(f"{name}, downloaded from the Hub: {said}")
    return BadPatch(
        f"{name}, downloaded from the Hub: {said} Delete {folder.parents[1]} to download it again; "
        "if that does not help, it was damaged before it was uploaded."
    )


def check_shape(patch: Patch, cls: type, source: FilePath) -> None:
    """Raises BadPatch for a patch of another shape than `cls`."""
    if not isinstance(patch, cls):
        raise BadPatch(
            f"{os.fspath(source)} is a patch of the shape '{shape_of(patch)}', not a "
            f"{cls.__name__}. Load it with errata.load_patch."
        )


def save_pretrained(
    patch: Patch,
    folder: FilePath,
    *,
    push: bool,
    repo_id: str | None,
    with_images: bool,
    license: str | None,
    measured: Sequence[str],
    **options: Any,
) -> str | None:
    """`Patch.save_pretrained`."""
    if not push and (repo_id is not None or options):
        given = ", ".join(["repo_id"] * (repo_id is not None) + sorted(options))
        raise BadSpec(f"{given} says how a patch is uploaded. Give push_to_hub=True too.")
    path = path_of(folder, "the folder of a patch")
    about: dict[str, Any] = {"with_images": with_images, "license": license, "measured": measured}
    to = _upload(repo_id or path.name, options)
    if push:
        hub.check_upload(to)
    patch_folder.save(patch, path, **about)
    return _uploaded(patch, to, **about) if push else None


def push(
    patch: Patch,
    repo_id: str,
    *,
    with_images: bool,
    license: str | None,
    measured: Sequence[str],
    **options: Any,
) -> str:
    """`Patch.push_to_hub`."""
    return _uploaded(
        patch, _upload(repo_id, options), with_images=with_images, license=license,
        measured=measured,
    )  # fmt: skip


def _upload(repo_id: str, options: dict[str, Any]) -> Upload:
    try:
        return Upload(repo_id, **options)
    except TypeError as e:
        raise BadSpec(f"a patch is uploaded without this option: {e}.") from None


def _uploaded(patch: Patch, to: Upload, **about: Any) -> str:
    to = hub.checked_upload(to)
    contents = patch_folder.packed(patch, to.repo, what=to.repo, **about)
    _warn_of_state(patch)
    return hub.upload(contents, to, patch_images.PATH, MARKER)


def _warn_of_state(patch: Patch) -> None:
    state = patch_folder.state_of(patch)
    if state:
        warnings.warn(
            f"the patch needs the prepared state {state[:16]}, which is not uploaded with it: "
            "others have to make it with `errata prepare`.",
            Notice,
            stacklevel=4,
        )


def push_folder(
    folder: FilePath, to: Upload, *, license: str | None = None, measured: Sequence[str] = ()
) -> str:
    """Uploads a saved patch, its files as they are, and returns the address of the commit.

    The card is written anew, for its place on the hub, unless somebody has written another one.
    Raises as `Patch.push_to_hub`.
    """
    to = hub.checked_upload(to)
    path = path_of(folder, "the folder of a patch")
    patch = patch_folder.load(path)
    contents = files_of(path)
    card = contents.get("README.md", b"").decode(errors="replace")
    own = card.startswith("---\n") and MARK not in card
    if own and (check_license(license) or measured):
        raise BadSpec(
            f"{path}/README.md is not a card of errata, and is uploaded as it is. Write the "
            "license and what was measured into it, or delete it."
        )
    if not own:
        pictures = sum(name.startswith(patch_images.FOLDER) for name in contents)
        text = patch_folder.card_of(
            patch, to.repo, pictures=pictures, license=license, measured=measured
        )
        contents["README.md"] = text.encode()
    _warn_of_state(patch)
    return hub.upload(contents, to, patch_images.PATH, MARKER)


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a patch folder by name, and nothing else that is in it. Raises BadPatch."""
    head = patch_folder.read_head(folder)
    contents = {n: read_bytes(folder / n, BadPatch) for n in patch_folder.FILES}
    for name in head.get("images", ()):
        if not patch_images.unchanged(folder, name):
            raise BadPatch(
                f"{folder}/{patch_images.FOLDER}/{name} is not there, or is another picture now. "
                "Restore it from a copy."
            )
        file = patch_images.check_inside(folder, name)
        contents[f"{patch_images.FOLDER}/{name}"] = read_bytes(file, BadPatch)
    card = folder / "README.md"
    if card.is_file() and not card.is_symlink():
        contents["README.md"] = read_bytes(card, BadPatch)
    return contents
