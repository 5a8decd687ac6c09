"""`ask`: ask one question, with or without patches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.benchmarks.facts.edits import referenced
from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import print_json, say


@takes_model()
def ask(
    model: ModelOptions,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question.")],
    patch: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="A patch to apply; repeatable, in order."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="F", help="An image in front of the question: a file or a microworld: string."
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Maximum length of the answer, in tokens.")
    ] = 32,
    as_json: options.AsJson = False,
) -> None:
    """Ask a model one question and print its greedy answer."""
    picture = referenced(image)
    from errata.io.patch_folder import load, read_head

    # a wrong folder is reported before a model is loaded
    bb = model.load([read_head(folder) for folder in patch or ()])
    from errata.core.types import Prompt
    from errata.evaluation.answers import ask_prompts

    patches = [load(folder, bb) for folder in patch or ()]
    with bb.applied(*patches):
        (answer,) = ask_prompts(bb, [Prompt.of(prompt, picture)], cap=max_tokens)
    if as_json:
        print_json(
            {
                "prompt": prompt,
                "image": image,
                "patches": [str(p) for p in patch or ()],
                "answer": answer.text,
                "stopped": answer.stopped,
            }
        )
        return
    say(answer.text)
    if not answer.stopped:
        say(f"(cut off after {max_tokens} tokens: --max-tokens)", err=True)
