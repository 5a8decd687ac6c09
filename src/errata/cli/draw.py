"""`draw`: draw one picture, with or without patches and a rationale."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from errata.cli.shared import options, patches
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import print_json, say
from errata.core.errors import BadSpec
from errata.core.files import check_file, write_bytes

FORMATS = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}


@takes_model(without=("style",), draws=True)
def draw(
    model: ModelOptions,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to draw.")],
    out: Annotated[Path, typer.Option(metavar="F.png", help="The file to write.")],
    patch: patches.Applied = None,
    reason: Annotated[
        bool,
        typer.Option("--reason", help="Let the model write a rationale first and draw from it."),
    ] = False,
    about: Annotated[
        str, typer.Option(metavar="CATEGORY", help="The attribute that the rationale recalls.")
    ] = "colour",
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum length of the rationale, in tokens.")
    ] = 512,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Draw one picture from a prompt and write it to a file."""
    _check_out(out)
    given = patches.located(patch)
    bb = model.load()
    import torch

    from errata.core.model.generation import image_generator
    from errata.core.types import Prompt
    from errata.evaluation.answers import ask_prompts

    generator = image_generator(bb)
    rationale, drawn = "", Prompt.of(prompt)
    with bb.applied(*(p.load(bb) for p in given)):
        if reason:
            (answer,) = ask_prompts(bb, [generator.reasoning(drawn, about)], cap=max_tokens)
            rationale = answer.text.strip()
            if rationale:
                drawn = Prompt.of(f"{rationale}{generator.glue}{prompt}")
        ((picture,),) = generator.draw([drawn], [seed], rows=torch.zeros(1, dtype=torch.long))
    buffer = io.BytesIO()
    picture.save(buffer, FORMATS[out.suffix.lower()])
    write_bytes(out, buffer.getvalue())
    if as_json:
        facts = {"prompt": prompt, "drawn from": drawn.text, "seed": seed, "out": str(out)}
        print_json({**facts, "patches": patch or []})
        return
    if reason:
        say(rationale)
    say(f"{picture.width} x {picture.height} pixels in {out}")


def _check_out(out: Path) -> None:
    if out.suffix.lower() not in FORMATS:
        raise BadSpec(f"--out {out} is no picture's name. Write it with .png, .webp or .bmp.")
    if not out.parent.is_dir():
        raise BadSpec(f"there is no folder {out.parent} for --out. Make it first.")
    check_file(out)
