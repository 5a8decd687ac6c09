"""What must stay light: importing the package, listing names, and showing help."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "diffusers")


def _heavy_after(code: str) -> str:
    report = f"import sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return ran.stdout.splitlines()[-1].strip()


@pytest.mark.parametrize(
    "code",
    [
        "import errata; errata.__version__; dir(errata)",
        "import errata; errata.Prompt, errata.Edit, errata.Benchmark, errata.UserError",
        "import errata.cli",
        "from errata.core import registry\n"
        "[registry.summary(k, n) for k in registry.KINDS for n in registry.names(k)]",
        "from errata.core import registry\n"
        "[registry.load(k, n) for k in ('benchmarks', 'protocols', 'metrics')"
        " for n in registry.names(k)]",
        "import errata.core.analysis, errata.figures.plots, errata.report.sweeps",
        "import errata.report, errata.report.html",
        "import errata.evaluation.score, errata.evaluation.compare",
    ],
)
def test_no_model_library_is_loaded(code):
    assert _heavy_after(code) == ""


def test_help_loads_no_numbers_and_no_pictures():
    code = "import errata.cli, sys; print([m for m in ('numpy', 'PIL') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_help_costs_little_more_than_the_library_that_prints_it():
    """0.3 s of CPU on an ordinary machine; as a ratio, so that a slow one passes too."""

    def seconds(*command: str) -> float:
        """CPU time of a command: unlike the wall clock it does not depend on other tests."""
        before = os.times()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        after = os.times()
        spent = after.children_user + after.children_system
        return spent - before.children_user - before.children_system

    library = "import typer, typer.rich_utils, rich.markdown"
    ours = min(seconds("-m", "errata", "--help") for _ in range(5))
    assert ours < 2 * min(seconds("-c", library) for _ in range(5))


def test_every_public_name_is_there():
    import errata

    for name in errata.__all__:
        assert getattr(errata, name) is not None, name
    assert set(errata.__all__) == {*errata._HOME, "__version__", "editor", "scope"}
    with pytest.raises(AttributeError, match="nonsense"):
        _ = errata.nonsense
