"""`data`: check the files of a benchmark, and build the records of `unike_umm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from errata.cli.shared import options
from errata.cli.shared.printing import print_json, say
from errata.core import registry
from errata.core.errors import BadData, BadSpec

app = typer.Typer(
    help="Check or build benchmark data.", no_args_is_help=True, rich_markup_mode=None
)
Name = Annotated[str, typer.Argument(metavar="BENCHMARK", help="See `errata list benchmarks`.")]


def _benchmark(name: str, root: Path | None) -> tuple[Any, Path | None]:
    """The benchmark, and where its files are. Raises UnknownName, BadSpec."""
    from errata.core.measure.benchmark import BenchmarkSpec

    benchmark = registry.load("benchmarks", name.partition(":")[0])()
    if benchmark.source and (source := BenchmarkSpec.parse(name).source):
        root = (root or Path()) / source
    return benchmark, root


@app.command("audit")
def audit(name: Name, root: options.Root = None, as_json: options.AsJson = False) -> None:
    """Print what train and eval share, and unclean rows."""
    benchmark, root = _benchmark(name, root)
    facts = benchmark.audit(root=root)
    print_json(facts) if as_json else options.print_facts(facts)


@app.command("verify")
def verify(name: Name, root: options.Root = None, as_json: options.AsJson = False) -> None:
    """Check the files; exit with 2 if one is missing or damaged."""
    benchmark, root = _benchmark(name, root)
    facts = benchmark.verify(root=root)
    print_json(facts) if as_json else options.print_facts(facts)
    if facts.get("ok") is False:
        raise BadData(
            f"{name}: some files are missing or damaged (above). Get them again, then repeat."
            if not benchmark.source or benchmark.source_tasks
            else f"{name}: some rows are wrong (above). Correct them, then repeat."
        )


@app.command("example")
def example(
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")],
) -> None:
    """Write an example of own facts: facts.jsonl, its images, and the JSON Schema of a row."""
    from importlib.resources import as_file, files

    from errata.core.files import check_folder, write_bytes

    check_folder(out, BadData)
    with as_file(files("errata.benchmarks.facts")) as package:
        paths = [p for p in (package / "example").rglob("*") if p.is_file()]
        contents = {p.relative_to(package / "example"): p.read_bytes() for p in sorted(paths)}
        contents[Path("schema.json")] = (package / "schema.json").read_bytes()
    there = [p for p in out.rglob("*") if not p.is_dir()]  # those of a killed command are kept
    for path in there:
        if not path.is_file() or contents.get(path.relative_to(out)) != path.read_bytes():
            raise BadData(f"{out} holds other files, such as {path}. Choose another --out.")
    if len(there) == len(contents):
        raise BadData(f"{out} holds the example already. Use it, or choose another --out.")
    for name, data in contents.items():
        write_bytes(out / name, data)
    say(f"example written to {out}: errata data verify facts:{out / 'facts.jsonl'}")


@app.command("build-umm")
def build_umm(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for UniKE.json.")],
    rows: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Rows of CounterFact or MQuAKE; repeatable."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible server that proposes attributes."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model on that server.")] = None,
    category: Annotated[
        list[str] | None,
        typer.Option(help="A category of attributes; repeatable; default: all five."),
    ] = None,
    count: Annotated[int, typer.Option(help="Records per category of attributes.")] = 20,
    key_env: Annotated[
        str, typer.Option(help="The environment variable that holds the server's key.")
    ] = "OPENAI_API_KEY",
    as_json: options.AsJson = False,
) -> None:
    """Build records of unike_umm.

    From rows of CounterFact and MQuAKE, and from attributes that a model proposes. Repeat the same
    command to resume. Rejected rows are written to rejected.jsonl.
    """
    from errata.benchmarks.unike_umm.build.folder import Attributes
    from errata.benchmarks.unike_umm.build.folder import build_umm as build
    from errata.benchmarks.unike_umm.build.instruct import CATEGORIES
    from errata.cli.shared.progress import reporting
    from errata.io.chat_client import Endpoint

    if (endpoint is None) != (model is None):
        raise BadSpec("--endpoint and --model go together. Give both, or neither.")
    attributes = None
    if endpoint is not None and model is not None:
        server = Endpoint(endpoint, model, key_env=key_env)
        attributes = Attributes(server, tuple(category or CATEGORIES), count)
    elif category:
        raise BadSpec(
            "--category needs a model that proposes attributes. Give --endpoint and --model."
        )
    with reporting() as progress:
        facts = build(out, rows or [], attributes, progress)
    print_json(facts) if as_json else options.print_facts(facts)
