"""Every editor's patch becomes an adapter, weights and part of a joint patch, or says why not.

None of the three ways may give other answers than the patch.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

import errata
from errata.artefacts.linear import linear_modules
from errata.artefacts.peft_import import import_peft
from errata.contract import editors as contract
from errata.core import registry
from errata.core.errors import BadBackbone, BadPatch, Notice
from errata.core.model.backbone import Backbone
from errata.core.patch import Patch, parts_of
from errata.patches.delta import Delta
from errata.testing import class_checks as classes
from errata.testing import zoo
from tests.contract.test_editors import drawing, world  # noqa: F401
from tests.fast import FAST
from tests.leaving import apart, asked, delta, with_load_adapter, with_peft

#: what these editors make is a change of weights
ADDITIVE = {"alphaedit", "bridge", "ft_l", "ft_v", "ke", "lora", "memit", "mend", "pmet", "rome"}
#: and these change a bias with it, which a LoRA does not hold
BIASED = {"ft_v"}


@pytest.mark.parametrize("editor", registry.names("editors"))
def test_every_editor_leaves_or_says_why_not(
    editor: str,
    world: contract.World,  # noqa: F811
    drawing: contract.World,  # noqa: F811
    tmp_path: Path,
) -> None:
    made = registry.load("editors", editor)(**FAST.get(editor, {}))
    own = world if made.requires <= world.backbone.capabilities else drawing
    patch: Patch = contract._edit(made, own, own.edits[:2]).patch
    bb = own.backbone
    additive = all(type(p) is Delta for p in parts_of(patch))
    assert additive == (editor in ADDITIVE)
    if not additive:
        for leave in (
            lambda: errata.export_peft(patch, tmp_path / "a", backbone=bb),
            lambda: errata.squash_patches([patch]),
            lambda: errata.merge_patches(bb.name, patch, tmp_path / "m"),
        ):
            with pytest.raises(BadPatch, match=r"it is no change of weights alone") as caught:
                leave()
            assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())
        return
    wanted = asked(bb, patch, prompts=own.prompts)
    assert apart(wanted, asked(bb, prompts=own.prompts)) > 1e-4
    joint = errata.squash_patches([patch])
    assert apart(asked(bb, joint, prompts=own.prompts), wanted) <= 1e-5
    if editor in BIASED:
        with pytest.raises(BadPatch, match="changes a bias"):
            errata.export_peft(patch, tmp_path / "a", backbone=bb)
        return
    adapter = errata.export_peft(patch, tmp_path / "a", backbone=bb)
    assert adapter.loss < 1e-6
    again = import_peft(tmp_path / "a", bb)
    assert apart(asked(bb, again, prompts=own.prompts), wanted) <= 1e-5
    if bb is drawing.backbone:
        return  # no class of transformers
    base = asked(bb, prompts=own.prompts)
    for load in (with_peft, with_load_adapter):
        model, named = load(bb, tmp_path / "a")
        assert apart(asked(named, prompts=own.prompts), wanted) <= 1e-5, load.__name__
        if load is with_peft:
            with model.disable_adapter():
                assert torch.equal(asked(named, prompts=own.prompts), base)


def test_every_shape_is_additive_or_refused() -> None:
    """A new shape of patch must be thought of here: it is refused unless it is a delta."""
    from errata.artefacts.changes import deltas

    for name in registry.names("patches"):
        cls = registry.load("patches", name)
        bare = cls.__new__(cls)
        Patch.__init__(bare)
        bare.rows = None
        bare.patches = torch.nn.ModuleList()
        if name == "delta":
            assert list(deltas([bare], "an adapter")) == [bare]
        elif bare.members() is None:
            with pytest.raises(BadPatch, match=f"has the shape '{name}'"):
                list(deltas([bare], "an adapter"))
        else:  # what holds others is judged by them
            assert name in ("stack", "rows")


LOADED = [name for name, model in zoo.ZOO.items() if not model.refused]


@pytest.mark.parametrize("name", LOADED)
def test_every_class_is_exported_imported_and_merged(name: str, tmp_path: Path) -> None:
    """A change at several linear sites, in PEFT, through load_adapter, and in merged weights."""
    try:
        bb = zoo.loaded(name)
    except BadBackbone as e:  # tests/contract/test_classes.py is about these
        pytest.skip(str(e))
    sites = linear_sites(bb)
    patch = delta(bb, sites, rank=2)
    prompts = classes.prompts(bb, tmp_path / "pictures")
    base, wanted = asked(bb, prompts=prompts), asked(bb, patch, prompts=prompts)
    written = wanted.abs().where(wanted > -1e30, 0.0)  # some tokens are never written
    close = 2e-5 * max(1.0, float(written.max()))
    assert apart(base, wanted) > 100 * close
    try:
        adapter = errata.export_peft(patch, tmp_path / "a")  # by the name of the model: no weights
    except BadPatch as e:  # peft would put it elsewhere
        assert "has experts" in str(e) and any(p.dim() == 3 for p in bb.model.parameters())
    else:
        assert adapter.loss == 0.0 and not adapter.remarks
        for load in (with_peft, with_load_adapter):
            _, named = load(bb, tmp_path / "a")
            assert apart(asked(named, prompts=prompts), wanted) <= close, load.__name__
        again = import_peft(tmp_path / "a", bb)
        assert again.sites == patch.sites
    with warnings.catch_warnings():  # experts are joined while they are loaded
        warnings.filterwarnings("ignore", "whether the patch .* cannot be told", Notice)
        try:
            made = errata.merge_patches(zoo.folder_of(name), patch, tmp_path / "m")
        except BadBackbone as e:  # not the weights that are in the files
            assert "joined or split while the model is loaded" in str(e)
            return
    assert made.loss < 1e-5
    merged = errata.load(tmp_path / "m", dtype="float32")
    assert apart(asked(merged, prompts=prompts), wanted) <= close


def linear_sites(bb: Backbone) -> list[str]:
    """Linear sites of two text blocks and, where there are any, of the vision tower."""
    there = linear_modules(bb.outlined())
    found = [s for s in there if s.startswith(("text.1.", "text.2.mlp", "vision.0.attn"))]
    assert found
    return found
