"""`ask`: ask one question, with or without patches."""

from __future__ import annotations

from typing import Annotated

import typer

from errata.cli.shared import options, patches
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import print_json, say


@takes_model(batches=True)
def ask(
    model: ModelOptions,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The question.")],
    patch: patches.Applied = None,
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
    from errata.benchmarks.facts.edits import referenced

    picture = referenced(image)
    given = patches.located(patch)
    bb = model.load([p.head() for p in given])
    from errata.core.types import Prompt
    from errata.evaluation.answers import ask_prompts

    with bb.applied(*(p.load(bb) for p in given)):
        (answer,) = ask_prompts(bb, [Prompt.of(prompt, picture)], cap=max_tokens)
    if as_json:
        print_json(
            {
                "prompt": prompt,
                "image": image,
                "patches": patch or [],
                "answer": answer.text,
                "stopped": answer.stopped,
            }
        )
        return
    say(answer.text)
    if not answer.stopped:
        say(f"(cut off after {max_tokens} tokens: --max-tokens)", err=True)
