"""`stats`: key covariance of the MLPs over a corpus, for locate-then-edit editors."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions, takes_model
from errata.cli.shared.printing import say
from errata.cli.shared.workers import Ray, Workers, pooled, workers_of
from errata.core.errors import BadData, BadSpec
from errata.core.files import is_file, read_text

if TYPE_CHECKING:
    from errata.algorithms.locate_then_edit.corpus import Corpus
    from errata.core.state import State


@takes_model(without=("style",), batches=True)
def stats(
    model: ModelOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the statistics.")],
    corpus: Annotated[
        str | None,
        typer.Option(metavar="F", help="A file with one document a line, or the id of a data set."),
    ] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Finished statistics to merge; repeatable."),
    ] = None,
    without: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Names, one a line; documents that hold one are skipped."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="For example 4,5,6. Default: all.")] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of documents.")
    ] = None,
    longest: Annotated[
        int, typer.Option(min=0, help="Maximum tokens of a document (0: the model's context).")
    ] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens per batch.")] = 4096,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    column: Annotated[str, typer.Option(help="Column of the data set.")] = "text",
    seed: options.Seed = 0,
    ray: Ray = None,
    workers: Workers = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Replace finished statistics that are in DIR already.")
    ] = False,
) -> None:
    """Collect key covariances of MLP layers over a corpus.

    Second moments of the inputs of `mlp.down`, for all layers in one pass. Repeat the same command
    to resume a killed pass. The folder is a state for `--state` of rome, memit, pmet and alphaedit.
    """
    from errata.io.states import check_out

    if corpus is None and (ray is not None or workers):
        raise BadSpec("--ray shares out the collecting of a --corpus. Leave --ray out to merge.")
    elsewhere = workers_of(model, ray, workers)
    chosen = parse_layers(layers)
    parts = [_added(folder) for folder in add or ()]
    if corpus is None and len(parts) < 2:
        raise BadSpec("nothing to collect. Give --corpus, or --add at least twice.")
    check_out(out, force=force)
    texts = _texts(corpus, without, documents, split, column, seed) if corpus is not None else None
    from errata.algorithms.locate_then_edit.layer_stats import merged
    from errata.core.locks import locked
    from errata.io.states import link

    started = time.monotonic()
    with locked(out), ExitStack() as stack:
        check_out(out, force=force)  # another command may have written it meanwhile
        if texts is not None:
            from errata.algorithms.locate_then_edit.layer_stats import StatsSettings, collect
            from errata.cli.shared.progress import reporting
            from errata.core.state import PrepareContext

            bb = model.load()
            pool = pooled(stack, elsewhere, bb)
            with reporting("stats") as progress:
                settings = StatsSettings(layers=chosen, tokens=tokens, longest=longest)
                parts.append(collect(bb, texts, settings, PrepareContext(out, progress, pool)))
        state = parts[0] if len(parts) == 1 else merged(parts)
        state.save(out)
        (out / "training.safetensors").unlink(missing_ok=True)
    digest = state.digest()
    link(out, digest)
    say(
        f"statistics {digest[:16]} of {state.meta['tokens']} tokens in {state.meta['documents']} "
        f"documents written to {out} in {time.monotonic() - started:.1f} s"
    )


def parse_layers(text: str | None) -> tuple[int, ...]:
    """Blocks from `4,5,6`. Raises BadSpec."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise BadSpec(f"cannot read --layers '{text}'. Write numbers: 4,5,6.") from None


def _added(folder: Path) -> State:
    from errata.algorithms.locate_then_edit.layer_stats import MOMENTS
    from errata.core.state import State

    state = State.load(folder)
    if state.editor != MOMENTS:
        raise BadData(f"{folder} holds a state of '{state.editor}', not statistics.")
    return state


def _texts(
    corpus: str,
    without: Path | None,
    documents: int | None,
    split: str,
    column: str,
    seed: int,
) -> Corpus:
    from errata.algorithms.locate_then_edit.corpus import from_dataset, from_file, leaving_out

    if is_file(Path(corpus)):
        documents_read = from_file(Path(corpus), most=documents)
    else:
        documents_read = from_dataset(corpus, split=split, column=column, most=documents, seed=seed)
    if without is None:
        return documents_read
    try:
        names = read_text(without, BadData).split("\n")
    except BadData as e:
        raise BadData(f"{e} --without takes a file with a name a line.") from None
    return leaving_out(documents_read, [n.strip() for n in names if n.strip()])
