"""`judge`: judge the pictures of a run."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from errata.cli.shared import options
from errata.cli.shared.printing import print_json, say
from errata.core import registry
from errata.core.errors import BadRun, BadSpec
from errata.core.formats.counts import counted

if TYPE_CHECKING:
    from errata.core.measure.judge import Judge


def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that `errata bench` wrote.")],
    name: Annotated[
        str | None,
        typer.Option("--judge", help="See `errata list judges`; default: the benchmark's judge."),
    ] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="An OpenAI-compatible server, such as http://localhost:8000/v1."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The vision model on that server.")] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="criterion: does the picture meet it? blind: answer the question only."),
    ] = None,
    key_env: Annotated[
        str | None,
        typer.Option("--key-env", help="Environment variable with the key (OPENAI_API_KEY)."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Judge the pictures of a run, then score the run again.

    Pictures that this judge has judged are skipped. The last judge's verdicts count.
    """
    passed = {"endpoint": endpoint, "model": model, "mode": mode, "key_env": key_env}
    settings = {k: v for k, v in passed.items() if v is not None}
    chosen = make_judge(name or ("openai" if endpoint else own_judge(run)), settings)
    from errata.cli.shared.progress import reporting
    from errata.evaluation.judging import judge_run
    from errata.evaluation.score import rescore

    with reporting() as progress:
        summary = judge_run(run, chosen, progress=progress)
    scores = rescore(run)
    if as_json:
        print_json(scores)
    else:
        judged = counted(summary.judged, "picture")
        say(f"{judged} judged by {chosen.identity}, {summary.kept} were already")
        for reason, count in summary.without.most_common():
            say(f"{count} cannot be judged: {reason}")
        say(f"scores written to {run / 'scores.json'}")
    if summary.waiting:
        (reason, _), *_ = summary.waiting.most_common(1)
        raise BadRun(
            f"{counted(sum(summary.waiting.values()), 'picture')} of {run} not judged yet, for "
            f"example: {reason.rstrip('.')}. They count as unscored until the same command is "
            "repeated."
        )


def make_judge(name: str, settings: dict[str, Any]) -> Judge:
    """The judge. Raises UnknownName, or BadSpec if it has no such setting."""
    cls = registry.load("judges", name)
    known = inspect.signature(cls).parameters
    for key in settings:
        if key not in known:
            raise BadSpec(
                f"judge '{name}' takes no --{key.replace('_', '-')}. Leave it out, or choose "
                "--judge openai."
            )
    return cls(**settings)  # type: ignore[no-any-return]


def own_judge(run: Path) -> str:
    """Name of the judge that the run's benchmark names. Raises BadSpec if there is none."""
    from errata.core.measure.benchmark import BenchmarkSpec
    from errata.evaluation import judging
    from errata.evaluation.run_folder import read_plan

    text = str(read_plan(run).get("benchmark"))
    spec = BenchmarkSpec.parse(text)
    name = judging.own_judge(spec, spec.tasks)
    if not name:
        raise BadSpec(
            f"benchmark {text} names no judge. Give --endpoint URL --model NAME of a "
            f"vision model, or --judge NAME; there are: {', '.join(registry.names('judges'))}."
        )
    return name
