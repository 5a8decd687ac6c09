"""A patch folder: whole, or one clear line. Every part of it names its model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errata.cli import main
from errata.core.errors import BadPatch, FingerprintMismatch
from errata.core.patch import Header, Patch, parts_of
from errata.core.types import Edit, Prompt
from errata.io.patch_folder import load, read_edits, read_head, save
from errata.patches.context import Context, ContextSettings, Fact
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from tests import tiny

SITE = "text.1.mlp.down"
FILES = ("patch.json", "patch.safetensors", "edits.jsonl")


def header(backbone: tiny.HfVlm, /, **changed: Any) -> Header:
    dtype = str(backbone.dtype).removeprefix("torch.")
    return replace(
        Header("hand", backbone=backbone.name, fingerprint=backbone.fingerprint(), dtype=dtype),
        **changed,
    )


def delta(head: Header, answer: str = "red", rank: int = 2) -> Delta:
    rng = torch.Generator().manual_seed(rank)
    part = {
        "A": torch.randn(rank, 64, generator=rng),
        "B": torch.randn(32, rank, generator=rng),
    }
    edit = Edit(Prompt.of("Which colour?"), answer, id=answer)
    return Delta({SITE: part}).with_header(head, [edit]).requires_grad_(False)


def context(head: Header, question: str, answer: str) -> Context:
    fact = Fact(question, answer, ("New Fact: a b\n",))
    edit = Edit(Prompt.of(question), answer)
    return Context([fact], ContextSettings(), torch.eye(1, 8)).with_header(head, [edit])


@pytest.fixture(scope="module")
def backbone() -> tiny.HfVlm:
    return tiny.shared("llava")


@pytest.fixture(scope="module")
def whole(backbone: tiny.HfVlm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    head = header(backbone)
    folder = tmp_path_factory.mktemp("whole")
    save(Stack([delta(head), context(head, "Which?", "blue")]), folder)
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize("combine", [Rows, Stack])
def test_a_part_for_another_model_is_refused(
    combine: type[Rows] | type[Stack], backbone: tiny.HfVlm, tmp_path: Path
) -> None:
    own, other = header(backbone), header(backbone, backbone="other", fingerprint="0" * 64)
    for parts in ([own, other], [other, own], [Header(), other]):
        patch: Patch = combine([delta(h) for h in parts])
        with pytest.raises(FingerprintMismatch, match="made for other"), backbone.applied(patch):
            pass
        if Header() in parts:
            continue
        save(patch, tmp_path / "p")
        with pytest.raises(FingerprintMismatch, match="made for other"):
            load(tmp_path / "p", backbone)
        loaded = load(tmp_path / "p")
        assert [p.header for p in loaded.members()] == parts
        with pytest.raises(FingerprintMismatch), backbone.applied(loaded):
            pass
    assert not backbone.hooks.stack


def test_facts_for_another_model_are_not_joined(backbone: tiny.HfVlm) -> None:
    own, other = header(backbone), header(backbone, fingerprint="0" * 64)
    stack = Stack([context(own, "a", "b"), context(other, "c", "d")])
    with pytest.raises(FingerprintMismatch), backbone.applied(stack):
        pass


def test_a_patch_that_names_no_model_is_not_saved(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    named, nameless = delta(header(backbone)), delta(Header())
    for patch in (nameless, Rows([named, nameless]), Stack([nameless, named]), Stack([])):
        with pytest.raises(BadPatch, match="which model it was made for"):
            save(patch, tmp_path / "p")
        assert not (tmp_path / "p").exists()
    save(Rows([named, Stack([])]), tmp_path / "p")  # a row without an edit
    assert load(tmp_path / "p", backbone).edits == named.edits


def test_parts_come_back_with_their_headers_and_edits(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    one = delta(header(backbone, seed=1), "red")
    two = delta(header(backbone, seed=2), "blue", rank=3)
    save(Rows([Stack([one, two]), one]), tmp_path)
    loaded = load(tmp_path, backbone)
    assert isinstance(loaded, Rows) and loaded.header == one.header
    first, second = loaded.members()
    assert [p.header.seed for p in parts_of(first)] == [1, 2] and second.header.seed == 1
    assert [e.id for e in first.edits] == ["red", "blue"] and second.edits == one.edits


def test_one_patch_on_two_rows_is_saved(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    patch = delta(header(backbone))
    save(Rows([patch, patch]), tmp_path)
    for row in (load(tmp_path, backbone).members())[:2]:
        for a, b in zip(row.parameters(), patch.parameters(), strict=True):
            assert torch.equal(a, b)


def test_another_dtype_is_warned_of(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    save(delta(header(backbone, dtype="bfloat16")), tmp_path)
    with pytest.warns(UserWarning, match="in bfloat16, here it is in float32"):
        load(tmp_path, backbone)


def test_saving_again_replaces_the_edits(backbone: tiny.HfVlm, tmp_path: Path) -> None:
    for answer in ("red", "blue"):
        save(delta(header(backbone), answer), tmp_path)
    assert [e.target for e in read_edits(tmp_path, read_head(tmp_path))] == ["blue"]
    assert {f.name for f in tmp_path.iterdir()} == {*FILES, "README.md"}


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        head = json.loads((folder / "patch.json").read_text())
        changed = change(head)
        (folder / "patch.json").write_text(json.dumps(head if changed is None else changed))

    return run


def emptied(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "only a format": rewritten(lambda h: {"format": 1}),
    "a list": rewritten(lambda h: [1]),
    "another format": rewritten(lambda h: h.update(format=2)),
    "no header": rewritten(lambda h: h.pop("header") and None),
    "a header of text": rewritten(lambda h: h.update(header="ft_l")),
    "a seed of text": rewritten(lambda h: h["header"].update(seed="x")),
    "an edit's hash missing": rewritten(lambda h: h.pop("edits_sha256") and None),
    "settings of text": rewritten(lambda h: h.update(settings="x")),
    "no shape": rewritten(lambda h: h["settings"].pop("shape") and None),
    "an unknown shape": rewritten(lambda h: h["settings"].update(shape="nosuch")),
    "another shape": rewritten(lambda h: h["settings"].update(shape="delta")),
    "no parts": rewritten(lambda h: h["settings"].pop("parts") and None),
    "parts of text": rewritten(lambda h: h["settings"].update(parts=["a", "b"])),
    "a part without a header": rewritten(
        lambda h: h["settings"]["parts"][0].pop("header") and None
    ),
    "a part without a model": rewritten(lambda h: h["settings"]["parts"][0].update(header={})),
    "a part less": rewritten(lambda h: h["settings"]["parts"].pop(0) and None),
    "other sites": rewritten(lambda h: h.update(sites=["text.2.mlp.down"])),
    "no JSON": lambda f: (f / "patch.json").write_text("{"),
    "no text": lambda f: (f / "patch.json").write_bytes(b"\xff\xfe\x00"),
    "brackets": lambda f: (f / "patch.json").write_text("[" * 200_000),
    "no patch.json": lambda f: (f / "patch.json").unlink(),
    "no tensors": lambda f: (f / "patch.safetensors").unlink(),
    "no edits": lambda f: (f / "edits.jsonl").unlink(),
    "an edit changed": lambda f: (f / "edits.jsonl").write_text(
        (f / "edits.jsonl").read_text().replace("red", "ted")
    ),
    "an edit more": lambda f: (f / "edits.jsonl").write_text(
        (f / "edits.jsonl").read_text() + "{}\n"
    ),
    **{f"a folder {n}": lambda f, n=n: emptied(f, n) for n in FILES},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", DAMAGE)
def test_whatever_is_wrong_is_one_clear_line(
    name: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(whole, tmp_path / "p")
    DAMAGE[name](folder)
    with pytest.raises(BadPatch) as raised:
        load(folder)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(SystemExit) as ended:
        main(["patch", "verify", str(folder)])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("x")
    with pytest.raises(BadPatch, match="is not a patch"):
        load(tmp_path / "p")


@settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_damaged_bytes_load_or_are_refused(
    data: st.DataObject, whole: Path, tmp_path: Path
) -> None:
    """A byte of patch.json may be one of its notes; the other two files are as they were."""
    folder = copied(whole, tmp_path / "p")
    name = data.draw(st.sampled_from(FILES))
    old = (folder / name).read_bytes()
    at = data.draw(st.integers(0, len(old) - 1))
    cut = data.draw(st.booleans())
    new = (
        old[:at] if cut else old[:at] + data.draw(st.binary(min_size=1, max_size=3)) + old[at + 1 :]
    )
    (folder / name).write_bytes(new)
    try:
        load(folder)
    except BadPatch as e:
        assert "\n" not in str(e)
    else:
        assert name == "patch.json" or new == old
