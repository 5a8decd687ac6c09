"""`stats`: second moments of a model's keys over texts, which locate-then-edit editors spare."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from errata.cli.shared import options
from errata.cli.shared.model import ModelOptions, takes_model
from errata.core.errors import BadData, BadSpec

if TYPE_CHECKING:
    from errata.algorithms.locate_then_edit.corpus import Corpus
    from errata.core.state import State


@takes_model(without=("style",))
def stats(
    model: ModelOptions,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the statistics are written.")],
    corpus: Annotated[
        str | None,
        typer.Option(metavar="F", help="A file with a document a line, or a data set's id."),
    ] = None,
    add: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Finished statistics to be added; repeatable."),
    ] = None,
    without: Annotated[
        Path | None,
        typer.Option(metavar="F", help="Names, one a line: documents with one are left out."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="For example 4,5,6. Default: all.")] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="Only so many documents.")] = None,
    longest: Annotated[
        int, typer.Option(min=0, help="Tokens of a document (0: the model's context).")
    ] = 0,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a batch.")] = 4096,
    split: Annotated[str, typer.Option(help="Of a data set.")] = "train",
    column: Annotated[str, typer.Option(help="Of a data set.")] = "text",
    seed: options.Seed = 0,
) -> None:
    """Collect second moments of a model's keys over texts.

    All layers in one pass. A killed pass goes on where it was when the command is repeated. The
    folder is a state that `--state` of rome, memit, pmet and alphaedit takes.
    """
    chosen = parse_layers(layers)
    parts = [_added(folder) for folder in add or ()]
    if corpus is None and len(parts) < 2:
        raise BadSpec("nothing to collect. Give --corpus, or --add at least twice.")
    texts = _texts(corpus, without, documents, split, column, seed) if corpus is not None else None
    from errata.algorithms.locate_then_edit.layer_stats import merged
    from errata.io.states import link

    started = time.monotonic()
    if texts is not None:
        from errata.algorithms.locate_then_edit.layer_stats import StatsSettings, collect
        from errata.cli.shared.progress import reporting
        from errata.core.editor import PrepareContext

        bb = model.load()
        with reporting("stats") as progress:
            settings = StatsSettings(layers=chosen, tokens=tokens, longest=longest)
            parts.append(collect(bb, texts, settings, PrepareContext(out, progress)))
    state = parts[0] if len(parts) == 1 else merged(parts)
    state.save(out)
    (out / "training.safetensors").unlink(missing_ok=True)
    digest = state.digest()
    link(out, digest)
    print(
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
        raise BadData(f"{folder} holds a state of '{state.editor}', no statistics.")
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

    if Path(corpus).is_file():
        found = from_file(Path(corpus), most=documents)
    else:
        found = from_dataset(corpus, split=split, column=column, most=documents, seed=seed)
    if without is None:
        return found
    try:
        names = without.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise BadData(f"cannot read {without}: {e}. Give a file with a name a line.") from None
    return leaving_out(found, [n.strip() for n in names if n.strip()])
