"""A patch is not written over other things, whichever way it is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import errata
from errata.core.errors import BadPatch
from errata.core.patch import Header
from errata.io.patch_place import holds_patch
from errata.patches.delta import Delta

HEAD = Header("hand", backbone="m", fingerprint="0" * 64)


def delta(number: float = 1.0) -> Delta:
    part = {"A": torch.full((1, 4), number), "B": torch.ones(4, 1)}
    return Delta({"text.1.mlp.down": part}).with_header(HEAD, []).requires_grad_(False)


@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("config.json", "no patch but a model"),
        ("adapter_config.json", "no patch but an adapter of peft"),
        ("state.json", "no patch but the state of an editor"),
        ("notes.txt", "is not empty and holds no patch. Choose"),
    ],
)
def test_other_things_are_kept(file: str, what: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    (tmp_path / "README.md").write_text("mine")
    for write in (errata.save_patch, lambda p, folder: p.save_pretrained(folder)):
        with pytest.raises(BadPatch, match=what) as e:
            write(delta(), tmp_path)
        assert "\n" not in str(e.value)
    left = sorted(f.name for f in tmp_path.iterdir() if not f.name.startswith("."))
    assert left == sorted(["README.md", file])
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_new_folder_an_empty_one_and_one_with_a_patch_are_written(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / ".gitattributes").write_text("")
    for folder in (tmp_path / "new", empty):
        assert not holds_patch(folder)
        errata.save_patch(delta(), folder)
        assert holds_patch(folder)
    (empty / "notes.txt").write_text("mine")
    errata.save_patch(delta(2.0), empty)
    assert (empty / "notes.txt").read_text() == "mine"
    _, tensors = errata.load_patch(empty).pack()
    assert [float(t.max()) for name, t in tensors.items() if name.endswith("/A")] == [2.0]
