"""Pictures that travel in a patch's folder: found after a move, and never outside of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pil

import errata
from errata.core.errors import BadImage, BadPatch, Notice
from errata.core.patch import Header, Patch, parts_of, same_prompt, settled
from errata.core.types import Edit, Image, Prompt
from errata.editors.ft_l import FtL
from errata.io.images import hash_image, load_image
from errata.io.patch_folder import read_edits, read_head, save
from errata.patches.context import Context, ContextSettings, Fact
from errata.patches.delta import Delta
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from tests import tiny

HEAD = Header("hand", backbone="m", fingerprint="0" * 64)
RENDERED = "microworld:shape=ring,colour=blue,pattern=striped,accent=black,size=small,"


def delta(picture: Any, answer: str = "red") -> Delta:
    edit = Edit(Prompt.of("Which colour?", picture), answer, id=answer)
    part = {"A": torch.ones(1, 4), "B": torch.ones(4, 1)}
    return Delta({"text.1.mlp.down": part}).with_header(HEAD, [edit]).requires_grad_(False)


@pytest.fixture
def picture(tmp_path: Path, pictures: list[str]) -> Path:
    """A picture that a test may delete."""
    return Path(shutil.copy(pictures[0], tmp_path / "mine.png"))


def images(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.glob("images/*"))


def moved(folder: Path, to: Path) -> Path:
    shutil.move(folder, to)
    return to


def shown(patch: Patch) -> list[Image]:
    return [i for e in patch.edits for i in e.prompt.images]


def test_a_moved_patch_has_its_pictures(picture: Path, tmp_path: Path) -> None:
    before = load_image(Image(str(picture))).tobytes()
    patch = delta(str(picture))
    save(patch, tmp_path / "p", with_images=True)
    assert str(tmp_path) not in (tmp_path / "p" / "edits.jsonl").read_text()
    picture.unlink()
    loaded = errata.load_patch(moved(tmp_path / "p", tmp_path / "q"))
    (image,) = shown(loaded)
    assert load_image(image).tobytes() == before
    assert images(tmp_path / "q") == [f"images/{image.sha256}.png"]
    assert loaded.origins == patch.origins
    assert shown(Stack([loaded])) == [image]


def test_without_the_option_no_picture_is_copied(picture: Path, tmp_path: Path) -> None:
    save(delta(str(picture)), tmp_path / "p")
    assert not images(tmp_path / "p") and "images" not in read_head(tmp_path / "p")
    named = Image(str(picture), hash_image(Image(str(picture))))
    assert shown(errata.load_patch(tmp_path / "p")) == [named]


def test_a_fact_saved_with_and_without_its_picture_is_one_fact(
    picture: Path, tmp_path: Path
) -> None:
    save(delta(str(picture)), tmp_path / "with", with_images=True)
    save(delta(str(picture), "blue"), tmp_path / "without")
    one, later = (errata.load_patch(tmp_path / name) for name in ("with", "without"))
    assert same_prompt(one.edits[0].prompt, later.edits[0].prompt)
    assert settled([one, later]) == [later], "the later answer to the same question counts"
    again = delta(str(picture))
    save(again, tmp_path / "again")
    loaded = errata.load_patch(tmp_path / "again")
    assert loaded.origins == again.origins == one.origins


def test_parts_name_their_pictures_too(picture: Path, tmp_path: Path) -> None:
    combined = Stack([delta(str(picture)), delta(str(picture), "blue")])
    save(combined, tmp_path / "p")
    loaded = errata.load_patch(tmp_path / "p")
    members = [m for m in loaded.members() or () if isinstance(m, Patch)]
    assert len(members) == 2
    assert all(i.sha256 == hash_image(i) for m in members for i in shown(m))
    assert loaded.origins == combined.origins


def test_a_picture_that_is_gone_has_no_hash(picture: Path, tmp_path: Path) -> None:
    patch = delta(str(picture))
    picture.unlink()
    save(patch, tmp_path / "p")
    assert shown(errata.load_patch(tmp_path / "p")) == [Image(str(picture))]


def test_an_edit_made_in_python_knows_its_picture(pictures: list[str]) -> None:
    bb = tiny.shared("llava")
    edit = Edit(Prompt.of("Which colour?", pictures[0]), "green")
    for result in (FtL(steps=1).edit(bb, edit), *FtL(steps=1).edit_rows(bb, [edit])):
        (image,) = shown(result.patch)
        assert image == Image(pictures[0], hash_image(image))


def test_the_format_is_the_one_that_older_errata_reads(picture: Path, tmp_path: Path) -> None:
    """It does not know the list of pictures, and takes their paths for ones of this disk."""
    patch = delta(str(picture))
    save(patch, tmp_path / "p", with_images=True)
    head = read_head(tmp_path / "p")
    assert head["format"] == 1
    (tmp_path / "p" / "patch.json").write_text(
        json.dumps({k: v for k, v in head.items() if k != "images"})
    )
    older = errata.load_patch(tmp_path / "p")
    assert older.origins == patch.origins
    with pytest.raises(BadImage, match=r"'images/[0-9a-f]{64}\.png': there is no such file"):
        load_image(shown(older)[0])


def test_parts_and_shown_facts_take_their_pictures_along(
    picture: Path, pictures: list[str], tmp_path: Path
) -> None:
    one, two = delta(str(picture)), delta(pictures[1], "blue")
    fact = Fact("Which colour?", "red", images=(Image(str(picture)),))
    context = Context([fact], ContextSettings(), torch.eye(1, 8)).with_header(HEAD, one.edits)
    for combined in (Stack([one, two, context]), Rows([Stack([one, two]), one])):
        save(combined, tmp_path / "p", with_images=True)
        loaded = errata.load_patch(moved(tmp_path / "p", tmp_path / "q"))
        assert loaded.origins == combined.origins and len(images(tmp_path / "q")) == 2
        members = loaded.members() or []
        parts = [p for m in members if isinstance(m, Patch) for p in parts_of(m)]
        assert {o for p in parts for o in p.origins} >= one.origins | two.origins
        seen = [i for p in parts for i in shown(p)]
        assert seen and all(i.uri.startswith(str(tmp_path / "q")) for i in seen)
        if isinstance(combined, Stack):
            (place,) = [i for p in parts if isinstance(p, Context) for i in p.facts[0].images]
            assert place.uri.startswith(str(tmp_path / "q"))
        shutil.rmtree(tmp_path / "q")


def test_what_is_no_file_stays_as_it_is(tmp_path: Path) -> None:
    in_memory = Image.of(Pil.new("RGB", (4, 4), "red"))
    for image in (Image(f"{RENDERED}position=centre,background=grey,seed=1"), in_memory):
        save(delta(image), tmp_path / "p", with_images=True)
        assert shown(errata.load_patch(tmp_path / "p")) == [image]
        assert not images(tmp_path / "p")


@pytest.mark.parametrize("ending", ["jpg", "webp", "bmp", "gif", "tif", "png"])
def test_the_bytes_of_every_format_are_kept(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    Pil.new("RGB", (8, 8), "red").save(path, {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending))
    save(delta(str(path)), tmp_path / "p", with_images=True)
    (name,) = images(tmp_path / "p")
    assert name.endswith(f".{ending}")
    assert (tmp_path / "p" / name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("ending", ["jpg", "png", "heic"])
def test_a_picture_that_tells_its_place_is_named(ending: str, tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Pil.Exif()
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 8.0, 0.0)})
    for named, about in (("home", exif), ("plain", Pil.Exif())):
        path = tmp_path / f"{named}.{ending}"
        Pil.new("RGB", (64, 64), "red").save(path, exif=about.tobytes())
    save(delta(str(tmp_path / f"plain.{ending}")), tmp_path / "p", with_images=True)
    with pytest.warns(Notice, match=f"home.{ending} says where it was taken"):
        save(delta(str(tmp_path / f"home.{ending}")), tmp_path / "q", with_images=True)


def test_a_picture_that_is_gone_or_changed_is_not_saved(picture: Path, tmp_path: Path) -> None:
    known = Image(str(picture), "0" * 64)
    with pytest.raises(BadImage, match="was recorded"):
        save(delta(known), tmp_path / "p", with_images=True)
    picture.write_text("no picture")
    with pytest.raises(BadImage, match="it is no image"):
        save(delta(str(picture)), tmp_path / "p", with_images=True)
    picture.unlink()
    with pytest.raises(BadImage, match="no such file"):
        save(delta(str(picture)), tmp_path / "p", with_images=True)
    assert not (tmp_path / "p").exists()


def test_saving_again_keeps_or_replaces_the_pictures(
    picture: Path, pictures: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "p"
    save(delta(str(picture)), folder, with_images=True)
    picture.unlink()
    first = images(folder)
    save(errata.load_patch(folder), folder)
    assert images(folder) == first and load_image(shown(errata.load_patch(folder))[0])
    save(errata.load_patch(folder), tmp_path / "q", with_images=True)
    (folder / "images" / "notes.txt").write_text("mine")
    save(delta(pictures[1]), folder, with_images=True)
    assert first[0] not in images(folder) and len(images(folder)) == 2
    (folder / "images" / f"{'0' * 64}.png").write_text("mine")
    save(delta(pictures[1]), folder)
    assert images(folder) == [f"images/{'0' * 64}.png", "images/notes.txt"]
    assert images(tmp_path / "q") == first


def test_replacing_a_patch_removes_nothing_outside_of_it(
    pictures: list[str], tmp_path: Path
) -> None:
    folder, outside = tmp_path / "p", tmp_path / "outside.png"
    for damage in (relisted("../../outside.png"), to_a_link, folder_to_a_link):
        damage(whole(folder, pictures[0]))
        outside.write_text("mine")
        save(delta(pictures[1]), folder)
        assert outside.read_text() == "mine"
        assert not (tmp_path / "elsewhere").exists() or list((tmp_path / "elsewhere").iterdir())
        shutil.rmtree(folder)


def whole(folder: Path, picture: str) -> Path:
    save(delta(picture), folder, with_images=True)
    return folder / images(folder)[0]


def relisted(name: str) -> Callable[[Path], Any]:
    def run(file: Path) -> None:
        head = file.parents[1] / "patch.json"
        head.write_text(json.dumps({**json.loads(head.read_text()), "images": [name]}))

    return run


def to_a_link(file: Path) -> None:
    file.rename(file.parents[2] / "outside.png")
    file.symlink_to(file.parents[2] / "outside.png")


def folder_to_a_link(file: Path) -> None:
    shutil.move(file.parent, file.parents[2] / "elsewhere")
    file.parent.symlink_to(file.parents[2] / "elsewhere")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a path upwards": relisted("../../outside.png"),
    "a path": relisted("/etc/hostname"),
    "a path in the name": relisted(f"{'0' * 64}.png/../../../outside.png"),
    "another name": relisted("ring.png"),
    "a picture that no fact names": relisted(f"{'0' * 64}.png"),
    "a link": to_a_link,
    "a loop of links": lambda f: (f.unlink(), f.symlink_to(f)),
    "the folder a link": folder_to_a_link,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_nothing_outside_of_the_folder_is_read(
    name: str, pictures: list[str], tmp_path: Path
) -> None:
    DAMAGE[name](whole(tmp_path / "p", pictures[0]))
    for read in (
        lambda: errata.load_patch(tmp_path / "p"),
        lambda: read_edits(tmp_path / "p", read_head(tmp_path / "p")),
    ):
        with pytest.raises(BadPatch) as raised:
            read()
        assert str(tmp_path / "p") in str(raised.value) and "\n" not in str(raised.value)


def test_another_picture_under_the_name_is_seen(pictures: list[str], tmp_path: Path) -> None:
    file = whole(tmp_path / "p", pictures[0])
    shutil.copy(pictures[1], file)
    with pytest.raises(BadImage, match="was recorded"):
        load_image(shown(errata.load_patch(tmp_path / "p"))[0])


def test_a_killed_save_is_finished_with_its_pictures(pictures: list[str], tmp_path: Path) -> None:
    file = whole(tmp_path / "p", pictures[0])
    folder, name = tmp_path / "p", file.relative_to(tmp_path / "p")
    ready = folder / ".ready"
    (ready / "images").mkdir(parents=True)
    shutil.move(file, ready / name)
    shutil.move(folder / "patch.json", ready / "patch.json")
    load_image(shown(errata.load_patch(folder))[0])
    assert not ready.exists()
    (ready / "images").mkdir(parents=True)
    (ready / "images" / "key").write_text("x")
    shutil.rmtree(folder / "images")
    (tmp_path / "elsewhere").mkdir()
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadPatch):
        errata.load_patch(folder)
    assert not list((tmp_path / "elsewhere").iterdir())
