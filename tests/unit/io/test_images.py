"""Images from outside: what opens, and the one line that each failure gives."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from errata.core import registry
from errata.core.errors import BadImage, BadSpec
from errata.core.measure.benchmark import Benchmark, BenchmarkSpec, Loaded
from errata.core.types import Image
from errata.io import images
from errata.io.images import hash_image, load_image, split_uri, within_root


def encoded(picture: Pillow.Image, format: str, **more: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **more)
    return out.getvalue()


def gradient(mode: str = "RGB", size: tuple[int, int] = (7, 5)) -> Pillow.Image:
    values = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    return Pillow.fromarray(values).convert(mode)


def saved(path: Path, data: bytes) -> Image:
    path.write_bytes(data)
    return Image(str(path))


def refused(image: Image, *words: str) -> str:
    with pytest.raises(BadImage) as caught:
        load_image(image)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("cannot use image ") and message.endswith(".")
    for word in words:
        assert word in message, message
    return message


def test_file_opens_as_rgb(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", encoded(gradient(), "PNG"))
    assert np.array_equal(load_image(image), gradient())


@pytest.mark.parametrize("format", [*images.FORMATS, "MPO"])  # MPO: what some phones call JPEG
def test_every_listed_format_opens(tmp_path: Path, format: str) -> None:
    image = saved(tmp_path / "a.bin", encoded(gradient(), format))
    opened = load_image(image)
    assert (opened.mode, opened.size) == ("RGB", (7, 5))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    picture = gradient("L").convert(mode)
    format = "TIFF" if mode == "CMYK" else "PNG"
    assert load_image(saved(tmp_path / "a", encoded(picture, format))).mode == "RGB"


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    grey = Pillow.fromarray(np.array([[0, 256, 32896, 65535]], dtype=np.uint16))
    opened = load_image(saved(tmp_path / "a.png", encoded(grey, "PNG")))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_unbounded_grey_is_refused(tmp_path: Path) -> None:
    grey = Pillow.fromarray(np.array([[0.5, 7e9]], dtype=np.float32))
    refused(saved(tmp_path / "a.tif", encoded(grey, "TIFF")), "mode is 'F'", "8 bits")


def test_palette_with_transparent_entries_opens_without_a_warning(tmp_path: Path) -> None:
    picture = gradient().quantize(4)
    data = encoded(picture, "PNG", transparency=bytes([0, 255, 255, 255]))
    assert load_image(saved(tmp_path / "a.png", data)).mode == "RGB"


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    opened = load_image(saved(tmp_path / "a.jpg", encoded(gradient(), "JPEG", exif=exif)))
    assert opened.size == (5, 7)


def test_damaged_exif_costs_only_the_orientation(tmp_path: Path) -> None:
    data = encoded(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert load_image(saved(tmp_path / "a.jpg", data)).size == (7, 5)


def test_missing_file_and_hints() -> None:
    refused(Image("no/such.png"), "there is no such file", "relative")
    refused(Image("https://example.org/a.png"), "Nothing is downloaded")
    refused(Image("nosuchworld:spec"), "'nosuchworld'", ", ".join(registry.names("benchmarks")))


@pytest.mark.parametrize("uri", ["", "a\0b", "\ud800.png", "x" * 5000])
def test_names_that_no_file_can_have(uri: str) -> None:
    assert len(refused(Image(uri))) < 600


def test_folder_fifo_and_empty_file(tmp_path: Path) -> None:
    refused(Image(str(tmp_path)), "it is a folder")
    refused(saved(tmp_path / "empty.png", b""), "empty")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(Image(str(tmp_path / "pipe")), "not a regular file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_unreadable_file(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", encoded(gradient(), "PNG"))
    os.chmod(image.uri, 0)
    refused(image, "Permission denied")


def test_text_is_no_image(tmp_path: Path) -> None:
    refused(saved(tmp_path / "a.png", b"not a picture"), "no image of a known format", "PNG")


def phone_picture(kind: str, picture: Pillow.Image) -> bytes:
    if kind == "AVIF":
        return encoded(picture, "AVIF", quality=100)
    heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    heif.from_pillow(picture).save(out, quality=-1)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_pictures_of_phones_open(tmp_path: Path, kind: str) -> None:
    picture = Pillow.new("RGB", (40, 24), (200, 30, 60))
    image = saved(tmp_path / "IMG_0001.jpg", phone_picture(kind, picture))  # named by a chat app
    opened = load_image(image)
    assert (opened.mode, opened.size) == ("RGB", (40, 24))
    assert np.abs(np.asarray(opened, float) - np.asarray(picture, float)).max() < 6


@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_a_format_without_its_decoder_names_the_extra(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = saved(tmp_path / "a", phone_picture(kind, gradient(size=(40, 24))))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(images.features, "check", lambda name: False)
    refused(image, f"it is {kind}", "pip install 'errata[phone]'")


@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_damaged_pictures_of_phones_are_refused(tmp_path: Path, kind: str) -> None:
    data = phone_picture(kind, gradient(size=(40, 24)))
    for end in (12, 40, len(data) // 2, len(data) - 20):
        refused(saved(tmp_path / "a", data[:end]))


def test_a_turned_picture_of_a_phone_is_upright(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    picture = Pillow.new("RGB", (40, 24), (0, 0, 0))
    picture.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Pillow.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    out = io.BytesIO()
    heif.from_pillow(picture).save(out, quality=-1, exif=exif.tobytes())
    opened = load_image(saved(tmp_path / "a.heic", out.getvalue()))
    want = load_image(saved(tmp_path / "a.png", encoded(picture, "PNG", exif=exif)))
    assert opened.size == want.size == (24, 40)
    assert np.abs(np.asarray(opened, float) - np.asarray(want, float)).max() < 6


def test_postscript_is_never_started(tmp_path: Path) -> None:
    refused(
        saved(tmp_path / "a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "known"
    )


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP"])
def test_truncated_file(tmp_path: Path, format: str) -> None:
    data = encoded(gradient(size=(64, 64)), format)
    refused(saved(tmp_path / "a.bin", data[: len(data) * 2 // 3]))


def png(width: int, height: int) -> bytes:
    """A few bytes that claim to be an image of any size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8001, 10_000, 20_000, 60_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    # Above our limit, Pillow's warning and Pillow's error in turn: always the same kind of line.
    refused(saved(tmp_path / "a.png", png(side, side)), "pixels", "Scale it down")


def test_file_with_too_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    refused(saved(tmp_path / "a.png", encoded(gradient(), "PNG")), "more than 10 bytes")


def test_hash_is_that_of_the_bytes_and_is_verified(tmp_path: Path) -> None:
    data = encoded(gradient(), "PNG")
    image = saved(tmp_path / "a.png", data)
    digest = hash_image(image)
    assert digest == hashlib.sha256(data).hexdigest()
    assert load_image(Image(image.uri, digest)).size == (7, 5)
    refused(Image(image.uri, "0" * 64), digest[:12], "000000000000", "Restore")
    with pytest.raises(BadImage, match="no such file"):
        hash_image(Image(str(tmp_path / "b.png")))


PICTURES = tuple(
    encoded(gradient(size=(24, 16)), f) for f in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
)


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.sampled_from(PICTURES),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
def test_damaged_bytes_open_or_are_refused(
    data: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] = value
    try:
        opened = images._decode("a", bytes(damaged[: max(1, len(damaged) - cut % len(damaged))]))
    except BadImage as e:
        assert "\n" not in str(e)
    else:
        assert opened.mode == "RGB"


class Drawn(Benchmark):
    """Renders one colour."""

    name = "drawn"
    version = "1"
    tasks = ("vqa",)

    def load(self, spec: BenchmarkSpec, *, root: Path | None = None, seed: int = 0) -> Loaded:
        return Loaded(())

    def open_image(self, spec: str) -> Pillow.Image:
        if spec != "red":
            raise BadSpec(f"no colour '{spec}'.")
        return Pillow.new("RGB", (4, 4), spec)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_benchmark", lambda s: Drawn() if s == "drawn" else None)


@pytest.mark.usefixtures("drawn")
def test_rendered_image() -> None:
    image = Image("drawn:red", hash_image(Image("drawn:red")))
    assert image.sha256 == hashlib.sha256(b"red").hexdigest()
    assert load_image(image).getpixel((0, 0)) == (255, 0, 0)
    refused(Image("drawn:blue"), "no colour 'blue'", "./drawn:")
    refused(Image("drawn:red", "1" * 64), "was recorded")


def test_benchmark_that_renders_nothing() -> None:
    refused(Image("mmedit:x"), "renders no images")


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(
    "uri", ["C:\\a.png", "c:a.png", "other:a.png", "./drawn:a.png", "a/drawn:b", "drawn", ":a", ""]
)
def test_colon_in_a_path_is_no_scheme(uri: str) -> None:
    assert split_uri(uri) == (None, uri)


@pytest.mark.usefixtures("drawn")
def test_file_with_a_colon_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = encoded(gradient(), "PNG")
    for name in ("shot:1.png", "drawn:2.png"):
        Path(tmp_path, name).write_bytes(data)
    assert load_image(Image("shot:1.png")).size == (7, 5)
    assert load_image(Image("./drawn:2.png")).size == (7, 5)
    assert split_uri("drawn:2.png") == ("drawn", "2.png")


def test_within_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "in").symlink_to(root / "a")
    (root / "loop").symlink_to(root / "loop")
    assert within_root(root, "a/x.png") == root.resolve() / "a" / "x.png"
    assert within_root(root, "a/../b.png") == root.resolve() / "b.png"
    assert within_root(root, "in/x.png") == root.resolve() / "a" / "x.png"
    for bad in (
        "/etc/passwd",
        "C:\\x.png",
        "\\\\host\\x",
        "../secret/x",
        "a/../../x",
        "out/x",
        "out",
    ):
        with pytest.raises(BadImage, match=r"absolute|leaves its root"):
            within_root(root, bad)
    for bad in ("", "  ", "a\0b"):
        with pytest.raises(BadImage, match="not a path"):
            within_root(root, bad)
    link = tmp_path / "link"
    link.symlink_to(root)
    assert within_root(link, "a/x.png") == root.resolve() / "a" / "x.png"


def test_link_loop_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    try:
        path = within_root(tmp_path, "loop/x.png")
    except BadImage:
        return
    refused(Image(str(path)))  # newer Pythons resolve a loop to itself; opening it then fails


@settings(deadline=None, database=None)
@given(st.text(max_size=30))
def test_within_root_stays_within_or_refuses(text: str) -> None:
    root = Path(__file__).parent
    try:
        path = within_root(root, text)
    except BadImage:
        return
    assert path.is_relative_to(root.resolve())


def test_no_torch() -> None:
    code = "import sys, errata.io.images; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
