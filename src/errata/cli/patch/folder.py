"""The arguments that the commands of patches share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="A folder with patch.json.")]
Folders = Annotated[
    list[Path], typer.Argument(metavar="DIR...", help="Folders with patch.json, in order.")
]
