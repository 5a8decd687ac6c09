"""`judge`: have the pictures of a run looked at."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import options
from errata.core import registry
from errata.core.errors import BadRun, BadSpec

if TYPE_CHECKING:
    from errata.core.judge import Judge


def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `errata bench` wrote.")],
    name: Annotated[
        str | None,
        typer.Option("--judge", help="See `errata list judges`; by default the benchmark's own."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="An OpenAI-compatible server, up to the version."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The vision model that it serves.")] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="criterion: does the picture meet it? blind: answer the question."),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option("--key-env", help="The environment variable with the key, OPENAI_API_KEY."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Judge the pictures of a run, then score it again.

    Goes on where it stopped: a judge sees a picture once. The last judge's verdicts count.
    """
    settings = {"endpoint": endpoint, "model": model, "mode": mode, "key_env": key_env}
    given = {k: v for k, v in settings.items() if v is not None}
    made = make_judge(name or ("openai" if endpoint else own_judge(run)), given)
    from errata.cli.shared.progress import reporting
    from errata.evaluation.judging import judge_run
    from errata.evaluation.score import rescore

    with reporting() as progress:
        tally = judge_run(run, made, progress=progress)
    scores = rescore(run)
    if as_json:
        options.print_json(scores)
    else:
        print(f"{tally.judged} pictures judged by {made.identity}, {tally.kept} were already")
        for reason, count in tally.without.most_common():
            print(f"{count} cannot be judged: {reason}")
        print(f"scores written to {run / 'scores.json'}")
    if tally.waiting:
        (reason, _), *_ = tally.waiting.most_common(1)
        raise BadRun(
            f"{sum(tally.waiting.values())} pictures of {run} are not judged yet, for example: "
            f"{reason.rstrip('.')}. They count as unscored until the same command is repeated."
        )


def make_judge(name: str, given: dict[str, Any]) -> Judge:
    """Raises BadSpec where the judge does not take a setting, UnknownName."""
    cls = registry.load("judges", name)
    takes = inspect.signature(cls).parameters
    for key in given:
        if key not in takes:
            raise BadSpec(
                f"judge '{name}' takes no --{key.replace('_', '-')}. Leave it out, or choose "
                "--judge openai."
            )
    return cls(**given)  # type: ignore[no-any-return]


def own_judge(run: Path) -> str:
    """The judge that the run's benchmark names. Raises BadSpec."""
    from errata.core.benchmark import BenchmarkSpec
    from errata.evaluation import judging
    from errata.evaluation.run_folder import read_plan

    text = str(read_plan(run).get("benchmark"))
    spec = BenchmarkSpec.parse(text)
    name = judging.own_judge(spec, spec.tasks)
    if not name:
        raise BadSpec(
            f"benchmark {text} has no judge of its own. Give --endpoint URL --model NAME of a "
            f"vision model, or --judge NAME; there are: {', '.join(registry.names('judges'))}."
        )
    return name
