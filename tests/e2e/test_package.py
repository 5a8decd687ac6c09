"""Wheel and sdist: what is in them, and that errata works from the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import errata

ROOT = Path(__file__).parents[2]
MB = 2**20

#: Asks, edits, verifies and takes back, with the bundled model.
SESSION = """
import pathlib, sys, errata
assert pathlib.Path(errata.__file__).is_relative_to(sys.argv[1]), errata.__file__
model = errata.load("micro-vlm")
edit = errata.Edit("Which colour is the thing?", "red")
before = errata.ask(model, [edit.prompt])[0].text
patch = errata.editor("ft_l").for_backbone(model).edit(model, edit).patch
with model.applied(patch):
    assert errata.ask(model, [edit.prompt])[0].text == "red"
assert errata.ask(model, [edit.prompt])[0].text == before != "red"
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, as an installer without a wheel does."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        file.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    subprocess.run([*build, "-t", "wheel"], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def run(words: Sequence[str], **variables: str) -> str:
    """What a program prints, outside the checkout. Its failure is shown whole."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        list(words), cwd="/", env={**kept, "HF_HUB_OFFLINE": "1", **variables},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_version_changelog_and_citation_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    version = errata.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    headings = [
        line
        for line in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("## ")
    ]
    assert any(line.startswith(f"## [{version}]") for line in headings[:2]), headings[:2]


@pytest.mark.slow
def test_what_is_in_wheel_and_sdist(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    assert wheel.stat().st_size <= 25 * MB
    assert {"errata/py.typed", "errata/assets/micro-vlm/model.safetensors"} <= names
    assert "errata/report/templates/report.html.jinja" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"errata", f"errata-{errata.__version__}.dist-info"}
    assert not [name for name in names if "/states/" in name or "__pycache__" in name]
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"docs/index.md", "mkdocs.yml", "tests/conftest.py", "CITATION.cff"} <= inside
    assert "src/errata/assets/micro-vlm/states/unike/state.safetensors" in inside


@pytest.mark.slow
@pytest.mark.trained
def test_errata_works_from_the_wheel(built, tmp_path):
    """Unpacked beside the packages of this environment, without the checkout."""
    with zipfile.ZipFile(built[1]) as file:
        file.extractall(tmp_path)
    run([sys.executable, "-c", SESSION, str(tmp_path)], PYTHONPATH=str(tmp_path))


@pytest.mark.package
@pytest.mark.timeout(900)
def test_the_wheel_is_all_that_an_empty_environment_needs(built, tmp_path):
    run([sys.executable, "-m", "venv", str(tmp_path / "env")])
    python = str(tmp_path / "env" / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    run([python, "-m", "pip", "install", "--quiet", "-c", constraints, str(built[1])])
    run([python, "-c", SESSION, str(tmp_path / "env")])
    command = str(tmp_path / "env" / "bin" / "errata")
    assert run([command, "--version"]).strip() == f"errata {errata.__version__}"
    assert "ft_l" in run([command, "list", "editors"])
    assert run([command, "ask", "micro-vlm", "Which colour is the thing?"]).strip()
    assert "No broken requirements" in run([python, "-m", "pip", "check"])
