"""Opens image files and rendered images; every failure is a `BadImage` of one line. No torch."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import ExifTags, ImageOps, UnidentifiedImageError, features
from PIL import Image as Pillow

from errata.core import registry
from errata.core.errors import BadData, BadImage, BadSpec, one_line
from errata.core.formats.pictures import data_of, data_uri, shown
from errata.core.measure.benchmark import Benchmark
from errata.core.types import Image, Prompt, Segment

#: Lower than Pillow's own warning (89 million), far above what any processor keeps.
MAX_PIXELS = 64_000_000
MAX_BYTES = 256 * 1024 * 1024

#: Formats that Pillow decodes itself: EPS, for example, would start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

#: brands in the first box of a file -> the format, which phones write and which needs a decoder
_PHONE = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}

#: One letter is a Windows drive, so a scheme has at least two.
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][\w-]+):(?P<spec>.*)", re.DOTALL)


def load_image(image: Image) -> Pillow.Image:
    """The pixels of `image`: mode RGB, upright, first frame, transparency dropped.

    Raises BadImage when it is missing, broken, too large, or not the one that `sha256` names.
    """
    scheme, rest = split_uri(image.uri)
    if scheme is not None:
        _check_hash(image, _hash_text(rest))
        return _render(image.uri, scheme, rest)
    return _decode(image.uri, image_bytes(image, checked=True))


def image_bytes(image: Image, *, checked: bool = False) -> bytes:
    """The bytes of an image file, or of an image in memory. Raises BadImage.

    checked: whether they must be those that `sha256` names.
    """
    data = data_of(image.uri)
    data = _read(image.uri) if data is None else data
    if checked:
        _check_hash(image, hashlib.sha256(data).hexdigest())
    return data


def file_ending(uri: str, data: bytes) -> str:
    """`png`, `jpg`, ...: how the name of an image file ends, by its content. Raises BadImage."""
    phone = _phone_format(data)
    if phone is not None:
        return phone.lower()
    try:
        with Pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            kind = picture.format or ""
    except Exception as e:
        # Only Pillow runs above, and its decoders raise whatever the damaged bytes lead them to.
        raise _bad(uri, f"it is no image ({one_line(e)})", "Get the file again") from e
    # MPO: a JPEG that holds further pictures
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(kind, kind.lower())


def tells_place(uri: str, data: bytes) -> bool:
    """Whether an image file says where on earth it was taken (the GPS block of its EXIF data).

    Of a file whose block cannot be read, whether there is one at all.
    """
    try:
        with _opened(uri, data) as picture:
            return bool(picture.getexif().get_ifd(ExifTags.IFD.GPSInfo))
    except Exception:
        # Damaged EXIF data, or no decoder for the format: only Pillow and its decoders run above.
        return b"Exif" in data


def embedded(image: Image) -> Image:
    """The image in memory, so that its file is needed no more; a rendered image is returned as is.

    Raises BadImage when the file cannot be read, or is not the one that `sha256` names.
    """
    if split_uri(image.uri)[0] is not None or data_of(image.uri) is not None:
        return image
    data = _read(image.uri)
    uri, sha256 = data_uri(data)
    _check_hash(image, sha256)
    return Image(uri, sha256)


def hash_image(image: Image) -> str:
    """sha256 of the file's bytes, or of the spec of a rendered image; `image.sha256` is not used.

    Raises BadImage when the file cannot be read. The file is not decoded.
    """
    scheme, rest = split_uri(image.uri)
    if scheme is not None:
        return _hash_text(rest)
    return hashlib.sha256(image_bytes(image)).hexdigest()


def hashed(prompt: Prompt) -> Prompt:
    """The prompt with the sha256 of each picture, so that two of them can be compared.

    Raises BadImage for a file that cannot be read.
    """
    if all(image.sha256 is not None for image in prompt.images):
        return prompt

    def known(segments: Sequence[Segment]) -> tuple[Segment, ...]:
        return tuple(
            replace(s, sha256=hash_image(s)) if isinstance(s, Image) and s.sha256 is None else s
            for s in segments
        )

    history = tuple(replace(t, segments=known(t.segments)) for t in prompt.history)
    return Prompt(known(prompt.segments), history)


def check_image(image: Image) -> None:
    """Raises BadImage when it is missing or not the one that `sha256` names; it is not decoded."""
    _check_hash(image, hash_image(image))


def split_uri(uri: str) -> tuple[str | None, str]:
    """(scheme, spec) when `uri` begins with a benchmark's name and a colon, else (None, uri).

    A file whose own name begins like that is given as `./name:rest`.
    """
    m = _SCHEME.fullmatch(uri)
    if m and _benchmark(m["scheme"]) is not None:
        return m["scheme"], m["spec"]
    return None, uri


def within_root(root: Path, relative: str | os.PathLike[str]) -> Path:
    """The real path of `relative` below `root`; it need not exist.

    Raises BadImage for an absolute path, and for one that leaves the root by `..` or a link.
    """
    text = os.fspath(relative)
    if not text.strip() or "\0" in text:
        raise _bad(text, "it is not a path", "Give the image's path relative to the root")
    if Path(text).is_absolute() or PureWindowsPath(text).is_absolute():
        raise _bad(text, "it is an absolute path", "Give the image's path relative to the root")
    try:
        base = root.resolve()
        path = (base / text).resolve()
    except (OSError, RuntimeError, ValueError) as e:  # RuntimeError: links in a loop
        raise _bad(text, f"it cannot be followed ({e})", "Correct the link or the path") from e
    if not path.is_relative_to(base):
        raise _bad(
            text,
            "it leaves its root folder (by .. or a symbolic link)",
            "Put the file itself below the root",
        )
    return path


def _bad(uri: str, wrong: str, advice: str) -> BadImage:
    uri = shown(uri)
    name = repr(uri if len(uri) <= 200 else f"{uri[:200]}...")
    return BadImage(f"cannot use image {name}: {wrong}. {advice}.")


@functools.cache
def _benchmark(scheme: str) -> Benchmark | None:
    # Benchmarks are stateless, and looking a name up among the entry points takes milliseconds.
    if scheme not in registry.names("benchmarks"):
        return None
    benchmark: Benchmark = registry.load("benchmarks", scheme)()
    return benchmark


def _render(uri: str, scheme: str, spec: str) -> Pillow.Image:
    benchmark = _benchmark(scheme)
    assert benchmark is not None, scheme
    try:
        picture = benchmark.open_image(spec)
    except (BadSpec, BadData) as e:
        advice = f"Write it as the benchmark's cases do; a file of that name is ./{scheme}:..."
        raise _bad(uri, str(e).rstrip("."), advice) from e
    assert isinstance(picture, Pillow.Image) and picture.mode == "RGB", f"{scheme}: not RGB"
    return picture


def _hash_text(spec: str) -> str:
    return hashlib.sha256(spec.encode("utf-8", "surrogatepass")).hexdigest()


def _check_hash(image: Image, actual: str) -> None:
    if image.sha256 is not None and image.sha256.lower() != actual:
        raise _bad(
            image.uri,
            f"its sha256 is {actual[:12]}... but {image.sha256[:12]}... was recorded",
            "Restore the original, or plan the run again with this one",
        )


def _read(uri: str) -> bytes:
    try:
        info = os.stat(uri)
        if stat.S_ISDIR(info.st_mode):
            raise _bad(uri, "it is a folder", "Name one image file")
        if not stat.S_ISREG(info.st_mode):
            raise _bad(uri, "it is not a regular file", "Save the image to a file first")
        with open(uri, "rb") as f:
            data = f.read(MAX_BYTES + 1)
    except FileNotFoundError as e:
        raise _bad(uri, "there is no such file", _missing_hint(uri)) from e
    except (OSError, ValueError) as e:  # ValueError: a NUL or a lone surrogate in the name
        why = getattr(e, "strerror", None) or str(e)
        raise _bad(uri, f"it cannot be read ({why})", "Check the path and its permissions") from e
    if len(data) > MAX_BYTES:
        raise _bad(uri, f"it has more than {MAX_BYTES:,} bytes", "Make it smaller")
    if not data:
        raise _bad(uri, "the file is empty", "Get the file again")
    return data


def _missing_hint(uri: str) -> str:
    if "://" in uri:
        return "Nothing is downloaded here: save the image and give the file's path"
    if m := _SCHEME.fullmatch(uri):
        known = ", ".join(registry.names("benchmarks")) or "none"
        return f"Check the path. If '{m['scheme']}' is a benchmark, the known ones are: {known}"
    return "Check the path; a relative one starts at the current folder"


def _decode(uri: str, data: bytes) -> Pillow.Image:
    smaller = f"Scale it down to at most {MAX_PIXELS:,} pixels"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata; only the pixels matter
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with _opened(uri, data) as picture:
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise _bad(uri, f"it has {width} x {height} pixels", smaller)
                picture.load()
                return _rgb(uri, _upright(picture))
    except BadImage:
        raise
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as e:
        raise _bad(uri, "it would unpack to far too many pixels", smaller) from e
    except UnidentifiedImageError as e:
        readable = ", ".join((*FORMATS, "HEIC", "AVIF"))
        raise _bad(uri, "it is no image of a known format", f"Readable: {readable}") from e
    except MemoryError as e:
        raise _bad(uri, "there is not enough memory to unpack it", smaller) from e
    except Exception as e:
        # Only Pillow runs above, and its decoders raise whatever the damaged bytes lead them to.
        advice = "Get the file again or re-save it as PNG"
        raise _bad(uri, f"it is broken or cut off ({one_line(e)})", advice) from e


def _opened(uri: str, data: bytes) -> Pillow.Image:
    """The picture, not decoded yet. HEIC needs the extra `phone`, AVIF a Pillow that reads it."""
    kind = _phone_format(data)
    if kind is None:
        return Pillow.open(io.BytesIO(data), formats=FORMATS)
    install = "Run pip install 'errata[phone]', or save the picture as JPEG"
    if kind == "AVIF":
        if not features.check("avif"):
            raise _bad(uri, "it is AVIF, which this Pillow does not read", install)
        return Pillow.open(io.BytesIO(data), formats=("AVIF",))
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise _bad(uri, "it is HEIC (what phones make), which needs pillow-heif", install) from None
    plugin: Any = HeifImageFile
    picture: Pillow.Image = plugin(io.BytesIO(data))
    return picture


def _phone_format(data: bytes) -> str | None:
    """HEIC or AVIF by the brands of the file's first box; None for any other file."""
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = (data[8:12], *(data[i : i + 4] for i in range(16, end, 4)))
    found = {_PHONE[b] for b in brands if b in _PHONE}
    if _PHONE.get(data[8:12]) == "AVIF" or found == {"HEIC", "AVIF"}:
        return "AVIF"
    return found.pop() if found else None


def _upright(picture: Pillow.Image) -> Pillow.Image:
    try:
        upright = ImageOps.exif_transpose(picture)
    except Exception:
        # The EXIF block is damaged, but the pixels were decoded.
        return picture
    return picture if upright is None else upright


def _rgb(uri: str, picture: Pillow.Image) -> Pillow.Image:
    if picture.mode in ("P", "PA", "LA", "La", "RGBa"):
        # "La" has no direct way to RGB, and palettes warn about transparency without this step.
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    if picture.mode.startswith(("I", "F")):
        # Pillow would clip these to 0..255: a 16-bit picture would come out white.
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            wrong = f"its mode is '{picture.mode}', which has no fixed range"
            raise _bad(uri, wrong, "Save it with 8 bits per channel")
        picture = Pillow.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    return picture.convert("RGB")
