"""Shared fixtures: images on disk, ragged prompts with and without images, tiny backbones."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import errata  # noqa: F401 (before a test imports transformers)

if TYPE_CHECKING:
    from errata.core.types import Case, Edit, Prompt


@pytest.fixture(scope="session", autouse=True)
def one_thread_and_a_home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import torch  # here, as xdist's controller loads this file too before it starts the workers

    torch.set_num_threads(1)
    os.environ["ERRATA_HOME"] = str(tmp_path_factory.mktemp("errata-home"))
    yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six different small pictures."""
    import numpy as np
    from PIL import Image as Pil

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(7)
    paths = []
    for i in range(6):
        path: Path = folder / f"{i}.png"
        Pil.fromarray(rng.integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


@pytest.fixture(scope="session")
def ragged(pictures: list[str]) -> list[Prompt]:
    """Five lengths, three with an image (one image twice)."""
    from errata.core.types import Prompt

    return [
        Prompt.of("What is the colour of the thing?", pictures[0]),
        Prompt.of("Which shape?"),
        Prompt.of("Is the thing red or blue or green, please tell me at once?", pictures[1]),
        Prompt.of("What shape is it?", pictures[0]),
        Prompt.of("New thing of the Fact"),
    ]


@pytest.fixture(scope="session")
def edits(pictures: list[str]) -> list[Edit]:
    """Four edits of different lengths with an image each, targets of 1 to 10 tokens."""
    from errata.core.types import Edit, Prompt
    from errata.io.images import hashed

    def asked(text: str, picture: str) -> Prompt:
        return hashed(Prompt.of(text, picture))

    return [
        Edit(asked("What is the colour of the thing?", pictures[0]), "green", id="e0"),
        Edit(asked("Which shape is it?", pictures[1]), "ring", id="e1"),
        Edit(asked("What is the thing, please?", pictures[2]), "blue thing", id="e2"),
        Edit(asked("Colour?", pictures[3]), "red ring of green", id="e3"),
    ]


@pytest.fixture(scope="session")
def cases(edits: list[Edit]) -> list[Case]:
    """A case for each of `edits`, with a probe of every role."""
    from errata.core.types import Case, Probe, Prompt

    return [
        Case(
            f"c{i}",
            e,
            (
                Probe("r", e.prompt, "reliability", reference=e.target),
                Probe("g", e.prompt.with_text("Please: x"), "t_generality", reference=e.target),
                Probe("l", Prompt.of(f"What is Fact {i}?"), "t_locality", reference="ring"),
                Probe("m", edits[(i + 1) % 4].prompt, "m_locality", reference="red"),
            ),
        )
        for i, e in enumerate(edits)
    ]
