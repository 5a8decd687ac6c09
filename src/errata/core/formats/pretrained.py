"""How users of transformers save and share: `save_pretrained`, `from_pretrained`, `push_to_hub`."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any, Self


def _storage() -> Any:
    """The module that reads and writes patches. It is in a higher layer, so it is found by name."""
    return importlib.import_module("errata.io.patch_hub")


class Pretrained:
    """The methods of a patch by which it is saved, loaded and put on the Hugging Face Hub."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        with_images: bool = False,
        license: str | None = None,
        measured: Sequence[str] = (),
        **push_options: Any,
    ) -> str | None:
        """Writes the patch as a folder and, with `push_to_hub`, uploads it; returns its address.

        repo_id: its name on the hub, by default that of the folder. with_images: whether the
        pictures of the facts are saved too. license: an SPDX name for the card, such as `mit`.
        measured: lines for the card, what was measured about the patch. push_options: as in
        `push_to_hub`. Raises BadPatch, BadImage, BadSpec, BadEndpoint, BadOutput, DiskFull.
        """
        return _storage().save_pretrained(  # type: ignore[no-any-return]
            self, save_directory, push=push_to_hub, repo_id=repo_id, with_images=with_images,
            license=license, measured=measured, **push_options,
        )  # fmt: skip

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        backbone: Any = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """A patch from a folder or from the hub, as `errata.load_patch` reads it.

        Called on a shape of patches it takes that shape only. Raises BadPatch, BadEndpoint,
        BadSpec, and FingerprintMismatch for a patch of another model than `backbone`.
        """
        patch = _storage().load(
            name_or_path, backbone, revision=revision, token=token, cache_dir=cache_dir,
            local_files_only=local_files_only, force_download=force_download,
        )  # fmt: skip
        _storage().check_shape(patch, cls, name_or_path)
        return patch  # type: ignore[no-any-return]

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        with_images: bool = False,
        license: str | None = None,
        measured: Sequence[str] = (),
    ) -> str:
        """Uploads the patch with a card, in one commit; returns the address of the commit.

        The repository is made if there is none. revision: a branch, which is made if there is none.
        private: of a new repository. token: by default the one that `hf auth login` has saved.
        The other options are those of `save_pretrained`. Raises BadPatch, BadImage, BadSpec,
        BadEndpoint.
        """
        return _storage().push(  # type: ignore[no-any-return]
            self, repo_id, commit_message=commit_message, private=private, token=token,
            revision=revision, create_pr=create_pr, with_images=with_images, license=license,
            measured=measured,
        )  # fmt: skip
