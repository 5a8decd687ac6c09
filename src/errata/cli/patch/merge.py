"""`patch merge`: writes patches into the weights of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.shared import patches
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.options import quiet
from errata.cli.shared.printing import say

SHOWN = 20


@takes_model(without=("style", "dtype", "device", "device_map", "gguf_file", "draw_with"))
def merge(
    model: ModelOptions,
    given: patches.Several,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the model is written.")],
    force: Annotated[
        bool, typer.Option("--force", help="Replace a merged model that is in DIR already.")
    ] = False,
) -> None:
    """Write a model with patches in its weights: an ordinary checkpoint of transformers.

    Only changes of weights can be merged (shape delta). W + dW is rounded once, to the dtype that
    the weights are stored in. The model is read and written a piece at a time.
    """
    from errata.artefacts import merge as merging
    from errata.artefacts.changes import ASK_AGAIN, LARGE_LOSS

    quiet()
    merging.check_out(out, force=force)
    merged = merging.merge(
        model.backbone,
        [p.load() for p in patches.located(given)],
        out,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        force=force,
    )
    for t in merged.tensors[:SHOWN]:
        say(f"{t.key}: {t.dtype}, loss {t.loss:.2e}")
    if len(merged.tensors) > SHOWN:
        say(f"and {len(merged.tensors) - SHOWN} more weights")
    say(
        f"{out}: {model.backbone} with {len(merged.tensors)} changed weights; rounding lost "
        f"{merged.loss:.2e} of the change, at most {merged.worst.loss:.2e} of a weight's "
        f"({merged.worst.key})"
    )
    if merged.worst.loss > LARGE_LOSS:
        say(ASK_AGAIN)
