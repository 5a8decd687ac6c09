"""The image of a request, by its URL: checked before the model sees it, and kept in memory only."""

from __future__ import annotations

import base64
import binascii
import io
import re
from dataclasses import dataclass

from PIL import Image as Pillow

from errata.core.types import Image
from errata.io.images import FORMATS, load_image
from errata.serve.failures import Refused
from errata.serve.fetch import Fetcher
from errata.serve.settings import Limits

_DATA = re.compile(r"data:(?:image/[\w.+-]+)?(?:;[\w=.-]+)*;base64,", re.IGNORECASE)


@dataclass(frozen=True)
class ImageReader:
    limits: Limits
    fetcher: Fetcher

    def read(self, url: str) -> Image:
        """The image behind a data: or https: URL, in memory. Raises Refused, BadImage."""
        head = _DATA.match(url)
        if head is not None:
            data = _decoded(url[head.end() :])
        elif url[:5].lower() == "data:":
            raise _bad("the image is no data: URL of the form data:image/png;base64,...")
        else:
            data = self.fetcher.fetch(url)
        return checked_image(data, self.limits)


def checked_image(data: bytes, limits: Limits) -> Image:
    """The image of a file's bytes, in memory. Raises Refused for one that is too large or broken,
    BadImage.
    """
    if not data or len(data) > limits.image:
        raise _bad(f"the image has {len(data):,} bytes, this server takes 1 to {limits.image:,}")
    _check_pixels(data, limits)
    image = Image.of(data)
    picture = load_image(image)  # a broken one is refused here, before it waits
    _check_size(picture.size, limits)
    return image


def _check_pixels(data: bytes, limits: Limits) -> None:
    """Reads the size only. What Pillow itself cannot open, `load_image` names."""
    try:
        with Pillow.open(io.BytesIO(data), formats=FORMATS) as picture:
            size = picture.size
    except Pillow.DecompressionBombError:
        raise _bad(f"the image has more than {limits.pixels:,} pixels") from None
    except Exception:
        # whatever damaged bytes lead a decoder to; `load_image` opens them again
        return
    _check_size(size, limits)


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.pixels:
        raise _bad(f"the image has {width} x {height} pixels, this server takes {limits.pixels:,}")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, ValueError):
        raise _bad("the image is not valid base64") from None


def _bad(what: str) -> Refused:
    return Refused(400, f"{what}. Give another image.", code="invalid_image", param="messages")
