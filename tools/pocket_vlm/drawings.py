"""Collects the drawings of every flag from ten free sources as small pictures, `drawings.npz`.

    apt-get install fonts-noto-color-emoji librsvg2-bin
    npm pack flag-icons@7.5.0 ...            (one archive for every name in PACKAGES)
    python -m tools.pocket_vlm.drawings FOLDER_OF_THE_ARCHIVES --out work/pocket-vlm/drawings.npz

A drawing is [SIDE, SIDE, 4] bytes (RGBA): cut at its edges, centred, its proportions kept. Six
sources are trained on; four are held out whole, so that a held-out drawing of a known flag is by
another artist.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from errata.benchmarks._countries import COUNTRIES, Country

SIDE = 96
#: source -> (package of npm, version, licence of the drawings)
PACKAGES = {
    "flag-icons": ("flag-icons", "7.5.0", "MIT"),
    "twemoji": ("@twemoji/svg", "15.0.0", "CC-BY-4.0"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "CC-BY-4.0"),
    "flagpack": ("@iconify-json/flagpack", "1.2.8", "MIT"),
    "coreui": ("@iconify-json/cif", "1.2.7", "CC0-1.0"),
    "country-flag-icons": ("country-flag-icons", "1.6.20", "MIT"),
    "circle-flags": ("circle-flags", "2.8.3", "MIT"),
    "openmoji": ("openmoji", "17.0.0", "CC-BY-SA-4.0"),
    "emojione-v1": ("@iconify-json/emojione-v1", "1.2.3", "CC-BY-SA-4.0"),
}
HELD_OUT = ("noto", "circle-flags", "openmoji", "emojione-v1")
TRAINED = tuple(s for s in PACKAGES if s not in HELD_OUT)
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
#: names of two sets that do not follow from the country's
_SLUGS = {
    "cd": "congo-kinshasa",
    "cg": "congo-brazzaville",
    "ci": "cote-divoire",
    "cz": "czechia",
    "mk": "macedonia",
    "kn": "st-kitts-and-nevis",
    "lc": "st-lucia",
    "mm": "myanmar",
    "vc": "st-vincent-and-grenadines",
    "st": "sao-tome-and-principe",
    "sz": "swaziland",
    "tl": "timor-leste",
}


def slug(country: Country) -> str:
    plain = country.name.removeprefix("the ").lower()
    return _SLUGS.get(country.code, plain.replace(" ", "-"))


def points(code: str) -> list[str]:
    """The two regional indicators of a flag's emoji, in hexadecimal."""
    return [f"{0x1F1E6 + ord(c) - ord('a'):x}" for c in code]


class Sources:
    """The archives of npm in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cache  # noqa: B019
    def archive(self, source: str) -> tarfile.TarFile:
        package, version, _ = PACKAGES[source]
        name = package.removeprefix("@").replace("/", "-")
        return tarfile.open(self.folder / f"{name}-{version}.tgz")

    def file(self, source: str, path: str) -> bytes:
        stream = self.archive(source).extractfile(f"package/{path}")
        assert stream is not None
        return stream.read()

    @cache  # noqa: B019
    def icons(self, source: str) -> dict:
        return json.loads(self.file(source, "icons.json"))

    def iconify(self, source: str, name: str) -> bytes:
        icons = self.icons(source)
        icon = icons["icons"][name]
        box = [icon.get(k, icons.get(k, d)) for k, d in
               (("left", 0), ("top", 0), ("width", 16), ("height", 16))]  # fmt: skip
        view = " ".join(map(str, box))
        head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'<svg {head} viewBox="{view}">{icon["body"]}</svg>'.encode()

    def svg(self, source: str, country: Country) -> bytes:
        code = country.code
        ways: dict[str, Callable[[], bytes]] = {
            "flag-icons": lambda: self.file(source, f"flags/4x3/{code}.svg"),
            "twemoji": lambda: self.file(source, f"{'-'.join(points(code))}.svg"),
            "emojione": lambda: self.iconify(source, f"flag-for-{slug(country)}"),
            "emojione-v1": lambda: self.iconify(source, f"flag-for-{slug(country)}"),
            "flagpack": lambda: self.iconify(source, "gb-ukm" if code == "gb" else code),
            "coreui": lambda: self.iconify(source, code),
            "country-flag-icons": lambda: self.file(source, f"3x2/{code.upper()}.svg"),
            "circle-flags": lambda: self.file(source, f"flags/{code}.svg"),
            "openmoji": lambda: self.file(
                source, f"color/svg/{'-'.join(points(code)).upper()}.svg"
            ),
        }
        return ways[source]()


def rasterised(svg: bytes) -> Image.Image:
    size = str(SIDE * 3)
    command = ["rsvg-convert", "--width", size, "--height", size, "--keep-aspect-ratio"]
    done = subprocess.run(command, input=svg, capture_output=True, check=True)
    return Image.open(io.BytesIO(done.stdout)).convert("RGBA")


@cache
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(NOTO), 109)


def noto(country: Country) -> Image.Image:
    picture = Image.new("RGBA", (160, 160))
    text = "".join(chr(int(p, 16)) for p in points(country.code))
    ImageDraw.Draw(picture).text((10, 10), text, font=_font(), embedded_color=True)
    return picture


def tile(picture: Image.Image) -> NDArray[np.uint8]:
    """[SIDE, SIDE, 4]: cut at its edges, centred."""
    box = picture.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox()
    cut = picture.crop(box)
    cut.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = Image.new("RGBA", (SIDE, SIDE))
    out.paste(cut, ((SIDE - cut.width) // 2, (SIDE - cut.height) // 2))
    return np.asarray(out)


def collect(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """source -> [countries, SIDE, SIDE, 4]. A flag that a source does not have is transparent."""
    sources, out = Sources(folder), {}
    for source in (*TRAINED, *HELD_OUT):
        tiles = []
        for country in COUNTRIES:
            try:
                raw = noto(country) if source == "noto" else None
                tiles.append(tile(raw or rasterised(sources.svg(source, country))))
            except KeyError as e:
                print(f"{source} has no flag of {country.name} ({e})")
                tiles.append(np.zeros((SIDE, SIDE, 4), np.uint8))
        out[source] = np.stack(tiles)
        print(source, len(tiles), flush=True)
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("folder", type=Path)
    p.add_argument("--out", type=Path, default=Path("work/pocket-vlm/drawings.npz"))
    args = p.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **collect(args.folder))


if __name__ == "__main__":
    main()
