"""Writes the pictures of the benchmark `pocket`: one sheet of flags for every source that it shows.

python -m tools.pocket_vlm.sheets work/pocket-vlm/drawings.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from errata.benchmarks.pocket import pictures


def sheet(tiles: np.ndarray) -> Image.Image:
    """RGBA bytes [countries, S, S, 4] on white, in rows of COLUMNS tiles."""
    side, rows = pictures.SIDE, -(-len(tiles) // pictures.COLUMNS)
    out = Image.new("RGB", (pictures.COLUMNS * side, rows * side), "white")
    for i, pixels in enumerate(tiles):
        tile = Image.fromarray(pixels)
        ground = Image.new("RGBA", tile.size, "white")
        ground.alpha_composite(tile)
        small = ground.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
        out.paste(small, (i % pictures.COLUMNS * side, i // pictures.COLUMNS * side))
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("drawings", type=Path)
    args = p.parse_args()
    stored = np.load(args.drawings)
    for source in pictures.SOURCES:
        sheet(stored[source]).save(pictures.sheet_file(source), optimize=True)
        print(source, pictures.sheet_file(source).stat().st_size)


if __name__ == "__main__":
    main()
