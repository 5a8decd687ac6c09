"""`convert minigpt4`: MiniGPT-4 from its published files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.shared.printing import say


def convert(
    vit: Annotated[
        Path, typer.Option(metavar="F", help="The vision tower of LAVIS: eva_vit_g.pth.")
    ],
    qformer: Annotated[
        Path,
        typer.Option(metavar="F", help="The Q-Former of LAVIS: blip2_pretrained_flant5xxl.pth."),
    ],
    checkpoint: Annotated[
        Path, typer.Option(metavar="F", help="The checkpoint of MiniGPT-4, with llama_proj.")
    ],
    vicuna: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The text model: Vicuna v0 of 7B or 13B, or Llama 2."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    dtype: Annotated[
        str,
        typer.Option(help="auto (the text model's), float32, float16 or bfloat16."),
    ] = "auto",
    vit_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Only for a tower of another width than the published."),
    ] = None,
    qformer_heads: Annotated[
        int | None, typer.Option(min=1, help="As --vit-heads, for the Q-Former.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a converted model that is in DIR already.")
    ] = False,
) -> None:
    """Write MiniGPT-4 as a folder for errata and transformers.

    Everything is checked by name and shape first; the folder is written whole or not at all.
    """
    from errata.backbones.minigpt4.convert import Published
    from errata.backbones.minigpt4.convert import convert as make
    from errata.cli.shared.progress import reporting

    parts = Published(vit, qformer, checkpoint, vicuna)
    with reporting("convert") as progress:
        done = make(
            parts, out, dtype=dtype, vit_heads=vit_heads, qformer_heads=qformer_heads,
            force=force, progress=progress,
        )  # fmt: skip
    tower, bridge, text = done.blocks
    say(
        f"MiniGPT-4 with {tower} + {bridge} + {text} blocks and {done.parameters:,} numbers in "
        f"{done.dtype} written to {done.folder}. Check it: errata doctor {done.folder}"
    )
