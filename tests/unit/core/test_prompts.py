"""Prompts and edits from what people have in hand; anything else is refused in one line."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import errata
from errata import Edit, Image, Prompt, UserError
from errata.core.types import from_json, to_json
from errata.evaluation.answers import ask_prompts
from errata.io.images import hash_image, load_image
from errata.io.patch_folder import load, save
from tests import tiny

PIXELS = np.random.default_rng(0).integers(0, 255, (6, 9, 4), dtype=np.uint8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Pillow.fromarray(PIXELS[..., :3]).save(path)
    return path


GIVEN: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "pil": Pillow.open,
    "pil in memory": lambda path: Pillow.fromarray(PIXELS[..., :3]),
    "array": lambda path: PIXELS[..., :3],
    "array that is a view": lambda path: PIXELS[:, :, :3][::-1][::-1],
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "data uri": lambda path: (
        "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    ),
    "image": lambda path: Image(str(path)),
}


@pytest.mark.parametrize("how", GIVEN)
def test_an_image_is_the_same_however_it_is_given(how: str, file: Path) -> None:
    given = GIVEN[how](file)
    prompt = Prompt.of("What?", given)
    assert prompt == from_json(Prompt, to_json(prompt)) and hash(prompt)
    (image,) = prompt.images
    assert np.array_equal(np.asarray(load_image(image)), PIXELS[..., :3])
    assert image.sha256 in (None, hash_image(image))
    assert len(image.shown) < 200
    if not isinstance(given, str):  # a text would be one in front of "What?"
        assert Prompt([given, "What?"]) == prompt  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "PA", "HSV"]
)
def test_a_pil_image_of_any_mode_is_what_its_file_is(mode: str, tmp_path: Path) -> None:
    rgba = Pillow.fromarray(PIXELS)
    if mode == "I;16":
        picture = Pillow.fromarray(np.arange(54, dtype=np.uint16).reshape(6, 9) * 1000)
    else:
        picture = (rgba if mode in ("LA", "RGBA", "PA") else rgba.convert("RGB")).convert(mode)
    image = Image.of(picture)
    name = tmp_path / ("a.tif" if mode not in ("PA", "HSV", "YCbCr") else "a.png")
    (picture if name.suffix == ".tif" else picture.convert("RGB")).save(name)
    ours, files = (np.asarray(load_image(i), dtype=int) for i in (image, Image(str(name))))
    assert ours.shape == files.shape and abs(ours - files).max() <= 1


def test_a_photo_is_turned_as_its_file_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(PIXELS[..., :3]).save(path, exif=exif)
    with Pillow.open(path) as picture:
        image = Image.of(picture)
    assert load_image(image).size == load_image(Image(str(path))).size == (6, 9)


@pytest.mark.parametrize(
    "value",
    [
        5, True, ["a.png"], {"path": "a.png"}, object(), b"", bytearray(),
        PIXELS.astype(float), PIXELS[0, 0], PIXELS[:0], PIXELS[..., :2], PIXELS.astype(np.int64),
        Pillow.fromarray(PIXELS[..., 0].astype(np.float32)),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_no_image_is_refused_in_one_line(value: Any) -> None:
    for make in (lambda: Prompt.of("a", value), lambda: Image.of(value)):
        with pytest.raises(UserError, match=r"Give a path|Convert it") as e:
            make()
        assert "\n" not in str(e.value) and len(str(e.value)) < 300


def test_bytes_that_are_no_image_are_refused_when_they_are_opened() -> None:
    for value in (b"nonsense", "data:image/png;base64,!!!", "data:;base64,AAAA"):
        with pytest.raises(UserError) as e:
            load_image(Image.of(value))
        assert len(str(e.value)) < 300


WRONG: dict[str, Callable[[Any], Any]] = {
    "Prompt.of(None)": lambda bb: Prompt.of(None),  # type: ignore[arg-type]
    "Prompt.of(5)": lambda bb: Prompt.of(5),  # type: ignore[arg-type]
    "Prompt.of(bytes)": lambda bb: Prompt.of(b"a"),  # type: ignore[arg-type]
    "Prompt.of(half a pair)": lambda bb: Prompt.of("a\ud800"),
    "Prompt(text)": lambda bb: Prompt("a"),  # type: ignore[arg-type]
    "Prompt(None)": lambda bb: Prompt(None),  # type: ignore[arg-type]
    "Image(5)": lambda bb: Image(5),  # type: ignore[arg-type]
    "Edit(None)": lambda bb: Edit(None, "red"),  # type: ignore[arg-type]
    "Edit(dict)": lambda bb: Edit({"prompt": "a"}, "red"),  # type: ignore[arg-type]
    "Edit target": lambda bb: Edit(Prompt.of("a"), 5),  # type: ignore[arg-type]
    "Edit subject": lambda bb: Edit(Prompt.of("a"), "red", subject=5),  # type: ignore[arg-type]
    "Edit old": lambda bb: Edit(Prompt.of("a"), "red", old=["x"]),  # type: ignore[arg-type]
    "Edit id": lambda bb: Edit(Prompt.of("a"), "red", id=7),  # type: ignore[arg-type]
    "ask(None)": lambda bb: errata.ask(bb, None),  # type: ignore[arg-type]
    "ask([5])": lambda bb: errata.ask(bb, [5]),  # type: ignore[list-item]
    "ask(model)": lambda bb: errata.ask(bb.model, ["a"]),
    "ask(cap)": lambda bb: errata.ask(bb, ["a"], cap=0),
    "ask(cap text)": lambda bb: errata.ask(bb, ["a"], cap="8"),  # type: ignore[arg-type]
    "ask(lines)": lambda bb: errata.ask(bb, ["a"], lines=-1),
    "edit(text)": lambda bb: errata.editor("ft_l").edit(bb, ["a"]),  # type: ignore[list-item]
    "edit(None)": lambda bb: errata.editor("ft_l").edit(bb, None),  # type: ignore[arg-type]
    "edit([])": lambda bb: errata.editor("ft_l").edit(bb, []),
    "edit_rows(dict)": lambda bb: errata.editor("ft_l").edit_rows(bb, {"a": 1}),  # type: ignore[arg-type]
    "edit(model)": lambda bb: errata.editor("ft_l").edit(bb.model, [Edit("a", "b")]),  # type: ignore[arg-type]
    "edit(state)": lambda bb: errata.editor("mend").edit(bb, [Edit("a", "b")], "state"),  # type: ignore[arg-type]
    "edit(seed)": lambda bb: errata.editor("ft_l").edit(bb, [Edit("a", "b")], seed="x"),  # type: ignore[arg-type]
    "editor(5)": lambda bb: errata.editor(5),  # type: ignore[arg-type]
    "editor setting": lambda bb: errata.editor("ft_l", steps="many"),
    "bench(model)": lambda bb: errata.bench(bb.model, errata.editor("ft_l"), "x", "y", "z"),
    "bench(name)": lambda bb: errata.bench(bb, "ft_l", "microworld", "one_step", "z"),
    "bench(5)": lambda bb: errata.bench(bb, errata.editor("ft_l"), 5, "one_step", "z"),
    "bench(protocol)": lambda bb: errata.bench(bb, errata.editor("ft_l"), "microworld", 5, "z"),
    "bench(out)": lambda bb: errata.bench(
        bb, errata.editor("ft_l"), "microworld", "one_step", 5  # type: ignore[arg-type]
    ),
    "score_run(5)": lambda bb: errata.score_run(5),  # type: ignore[arg-type]
    "compare_runs(None)": lambda bb: errata.compare_runs(None, "b"),  # type: ignore[arg-type]
    "Probe(prompt)": lambda bb: errata.Probe("r", 5, "reliability"),  # type: ignore[arg-type]
    "Probe(reference)": lambda bb: errata.Probe("r", Prompt.of("a"), "reliability", reference=5),  # type: ignore[arg-type]
    "load(5)": lambda bb: errata.load(5),  # type: ignore[arg-type]
    "load_patch(5)": lambda bb: errata.load_patch(5),  # type: ignore[arg-type]
    "load_patch('')": lambda bb: errata.load_patch(""),
    "load_patch(model)": lambda bb: errata.load_patch("nowhere", bb.model),
    "save_patch(edit)": lambda bb: errata.save_patch(Edit("a", "b"), "x"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_types_are_refused_at_the_door(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as e:
        WRONG[what](tiny.shared("llava"))
    assert "\n" not in str(e.value) and len(str(e.value)) < 400
    assert not os.listdir(tmp_path)


def test_a_text_a_prompt_and_an_edit_stand_for_themselves(file: Path) -> None:
    bb, prompt = tiny.shared("llava"), Prompt.of("What?", file)
    assert Edit("What?", "red") == Edit(Prompt.of("What?"), "red")
    several = [a.ids for a in ask_prompts(bb, ["What?", prompt], cap=4)]
    assert [ask_prompts(bb, one, cap=4)[0].ids for one in ("What?", prompt)] == several
    editor = errata.editor("ft_l", steps=1)
    one = editor.edit(bb, Edit(prompt, "red")).patch
    assert one.edits == editor.edit(bb, [Edit(prompt, "red")]).patch.edits


def test_an_image_in_memory_is_saved_with_its_patch(tmp_path: Path) -> None:
    bb = tiny.shared("llava")
    edit = Edit(Prompt.of("What?", Pillow.fromarray(PIXELS[..., :3])), "red")
    patch = errata.editor("ft_l", steps=1).edit(bb, [edit]).patch
    save(patch, str(tmp_path / "patch"))
    loaded = load(str(tmp_path / "patch"), bb)
    assert loaded.edits == (edit,)
    (image,) = loaded.edits[0].prompt.images
    assert np.array_equal(np.asarray(load_image(image)), PIXELS[..., :3])


def test_array_and_file_object_are_no_paths() -> None:
    with pytest.raises(UserError, match="BytesIO"):
        Prompt.of("a", io.BytesIO(b"a"))
