"""The options of `errata serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Patches = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=DIR", help="A patch and what requests call it; repeatable."),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="A folder whose subfolders are patches; edits are saved there."
    ),
]
ServedName = Annotated[
    str | None, typer.Option(help="What requests call the model. Default: its own name.")
]
Host = Annotated[str, typer.Option(help="The address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")]
ImageHosts = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="A host that https: images may be fetched from; repeatable."),
]
Tokens = Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")]
PromptTokens = Annotated[
    int | None, typer.Option(min=1, help="Most tokens of a prompt. Default: the context.")
]
BodyMib = Annotated[int, typer.Option(min=1, help="Most MiB of a request.")]
Pixels = Annotated[int, typer.Option(min=1, help="Most pixels of an image.")]
Images = Annotated[int, typer.Option(min=0, help="Most images of a request.")]
Queue = Annotated[
    int, typer.Option(min=1, help="Most requests that wait; the next one gets a 429.")
]
BatchRows = Annotated[int, typer.Option(min=1, help="Most answers that grow at the same time.")]
ShareUnedited = Annotated[
    bool,
    typer.Option(
        "--share-unedited",
        help="Answer questions without a patch in the common batch too: faster, and then equal to "
        "the unpatched model up to rounding, not bit for bit.",
    ),
]
ForEdits = Annotated[
    str | None, typer.Option(help="Makes the edits of POST /v1/edits. Default: one that fits.")
]
Drain = Annotated[int, typer.Option(min=1, help="Seconds to finish answers in after SIGTERM.")]
LogPrompts = Annotated[
    bool, typer.Option("--log-prompts", help="Write questions and answers into the log.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Load everything, say what would be served, and end.")
]
