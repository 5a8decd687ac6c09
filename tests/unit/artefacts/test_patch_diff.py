"""Two patches compared: the numbers against dense matrices, and every shape of patch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import errata
from errata.artefacts.patch_diff import diff_patches
from errata.cli import main
from errata.core import registry
from errata.core.errors import BadPatch
from errata.core.patch import Header, Patch, pack
from errata.core.state import State
from errata.core.types import Edit, Prompt
from errata.io.states import store
from errata.patches.delta import Delta
from errata.patches.neurons import Neurons
from errata.patches.route import Route
from errata.patches.rows import Rows
from errata.patches.stack import Stack
from errata.patches.two_ways import TwoWays
from tests import tiny

FIXTURES = Path(__file__).parents[2] / "fixtures" / "v0.1"
SAVED = sorted(f.name for f in (FIXTURES / "patches").iterdir())
SITE = "text.1.mlp.down"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Patch]]:
    """A patch of every editor that errata 0.1 had, with their states; newer shapes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_HOME", str(tmp_path_factory.mktemp("home")))
        for folder in (FIXTURES / "states").iterdir():
            store(State.load(folder))
        patches = {name: errata.load_patch(FIXTURES / "patches" / name) for name in SAVED}
        llava, edit = tiny.shared("llava"), Edit(Prompt.of("Which?"), "red")
        said = errata.editor("say").edit(llava, [edit]).patch
        scope = errata.scope("lookup").for_model(llava)
        route = Route(scope, scope.keys(llava, [edit]), [TwoWays(said, said)])
        two = route.requires_grad_(False).with_header(said.header, [edit])
        yield {**patches, "say": said, "two": two}


def patch(part: dict[str, Tensor], **about: Any) -> Delta:
    edit = Edit(Prompt.of(about.pop("question", "Which?")), about.pop("target", "red"))
    head = Header("hand", backbone="m", fingerprint="0" * 64, config=about)
    return Delta({SITE: part}).with_header(head, [edit]).requires_grad_(False)


def low(rank: int, seed: int, bias: bool = False) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    part = {
        "A": torch.randn(rank, 24, generator=rng),
        "B": torch.randn(16, rank, generator=rng),
        "bias": torch.randn(16, generator=rng),
    }
    return part if bias else {k: part[k] for k in "AB"}


def dense(seed: int) -> dict[str, Tensor]:
    return {"dense": torch.randn(16, 24, generator=torch.Generator().manual_seed(seed))}


def matrix(*parts: dict[str, Tensor]) -> Tensor:
    """[dW, bias] in float64."""
    total = torch.zeros(16, 25, dtype=torch.double)
    for p in parts:
        total[:, :24] += (p["dense"] if "dense" in p else p["B"] @ p["A"]).double()
        if "bias" in p:
            total[:, 24] += p["bias"].double()
    return total


PAIRS = {
    "low rank": ([low(2, 1)], [low(3, 2)]),
    "bias": ([low(2, 1, bias=True)], [low(3, 2)]),
    "dense": ([dense(1)], [dense(2)]),
    "mixed": ([dense(1)], [low(3, 2, bias=True)]),
    "sums": ([low(2, 1), low(1, 3)], [low(3, 2), dense(4)]),
    "full rank": ([low(20, 1)], [low(3, 2)]),
}


@pytest.mark.parametrize("name", PAIRS)
def test_changes_are_compared_as_dense_matrices_are(name: str) -> None:
    left, right = PAIRS[name]
    (site,) = diff_patches(*(Stack([patch(p) for p in side]) for side in PAIRS[name])).sites
    a, b = matrix(*left), matrix(*right)
    assert site.a is not None and site.b is not None and site.a.adds and site.b.adds
    assert (site.a.norm, site.b.norm) == pytest.approx((float(a.norm()), float(b.norm())), 1e-5)
    larger = max(a.norm(), b.norm())
    assert site.difference == pytest.approx(float((a - b).norm() / larger), 1e-5)
    assert site.cosine == pytest.approx(float((a * b).sum() / a.norm() / b.norm()), abs=1e-6)
    ranks = [sum(len(p["A"]) for p in side if "A" in p) for side in (left, right)]
    seen = [None if any("dense" in p for p in side) else r
            for side, r in zip((left, right), ranks, strict=True)]  # fmt: skip
    assert [site.a.rank, site.b.rank] == seen


def test_factors_of_one_change_are_told_from_another_change() -> None:
    """The same matrix in other factors: no difference, though no tensor is equal."""
    one = low(2, 1)
    mix = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    other = {"A": mix @ one["A"], "B": one["B"] @ torch.linalg.inv(mix)}
    found = diff_patches(patch(one), patch(other))
    assert not found.identical and found.sites[0].difference == pytest.approx(0, abs=1e-6)
    assert found.sites[0].cosine == pytest.approx(1)
    opposite = diff_patches(patch(one), patch({"A": one["A"], "B": -one["B"]})).sites[0]
    assert (opposite.difference, opposite.cosine) == pytest.approx((2, -1))


def test_no_large_matrix_is_formed_of_a_low_rank_change(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = [{"A": torch.randn(2, 300_000), "B": torch.randn(200_000, 2)} for _ in range(2)]
    (site,) = diff_patches(patch(wide[0]), patch(wide[1])).sites  # 480 GB as a dense matrix
    assert site.difference is not None and 1 < site.difference < 2


def test_facts_and_settings() -> None:
    a = patch(low(2, 1), question="Who made it?", target="Sol", lr=0.1, steps=5)
    b = patch(low(2, 1), question="Who made it?", target="sol.", lr=0.2)
    found = diff_patches(a, b)
    assert found.identical and found.same_model is True
    assert [(f.relation, f.same_target) for f in found.facts] == [("same question", True)]
    assert found.settings == {"editor.lr": (0.1, 0.2), "editor.steps": (5, None)}
    one, other = (
        patch(low(2, 1)).with_header(Header(fingerprint=name), [Edit(Prompt.of(q), t, "the dax")])
        for name, q, t in (("1", "Who made the dax?", "Sol"), ("2", "Where is the dax?", "Rome"))
    )
    found = diff_patches(one, other)
    assert [(f.relation, f.same_target) for f in found.facts] == [("same subject", False)]
    assert found.same_model is False
    assert diff_patches(one, Delta({SITE: low(1, 1)})).same_model is None


def test_the_same_words_in_other_pictures_name_no_subject_in_common(pictures: list[str]) -> None:
    one, other = (
        patch(low(1, 1)).with_header(Header(), [Edit(Prompt.of(q, p), "red", "the ring")])
        for q, p in (("What is the ring?", pictures[0]), ("Which is the ring?", pictures[1]))
    )
    assert diff_patches(one, other).facts == ()
    assert diff_patches(one, one).facts[0].relation == "same question"


def test_what_cannot_be_compared_says_why() -> None:
    neurons = {"key": torch.ones(24, 2), "key_bias": torch.ones(2), "value": torch.ones(2, 24)}
    other = {"A": torch.ones(1, 8), "B": torch.ones(8, 1)}
    cases = {
        "matrices of 16 x 24 and 8 x 8": (patch(low(1, 1)), patch(other)),
        "not comparable: other shapes of patches": (patch(low(1, 1)), Neurons({SITE: neurons})),
        "not comparable: tensors of other sizes": (
            Neurons({SITE: neurons}),
            Neurons({SITE: {k: torch.cat([v, v], -1) for k, v in neurons.items()}}),
        ),
    }
    for note, (a, b) in cases.items():
        (site,) = diff_patches(a, b).common
        assert (site.note, site.difference) == (note, None)
    with pytest.raises(BadPatch, match="two patches, not a str"):
        diff_patches(patch(low(1, 1)), "ring")  # type: ignore[arg-type]


def test_rows_are_no_sum() -> None:
    """Each row acts alone: two rows of one change do not make a change twice as large."""
    rows = Rows([patch(low(2, 1)), patch(low(2, 1))])
    (site,) = diff_patches(rows, rows).common
    assert site.a is not None and not site.a.adds and site.difference == 0


def test_every_shape_is_compared(saved: dict[str, Patch]) -> None:
    text = json.dumps([pack(p)[0] for p in saved.values()])
    shapes = set(re.findall(r'"shape": "(\w+)"', text))
    assert shapes == set(registry.names("patches"))
    for patch in saved.values():
        found = diff_patches(patch, patch)
        assert found.identical and not found.settings and found.same_model
        assert len(found.facts) >= len(patch.edits)
        assert {s.site for s in found.sites} >= patch.sites and found.common == found.sites
        for site in found.sites:
            assert site.difference is not None and site.difference < 1e-6, site
        json.dumps(found.to_dict())


@pytest.mark.parametrize("name", SAVED)
def test_any_two_patches_are_compared(name: str, saved: dict[str, Patch]) -> None:
    for other in saved.values():
        found, back = diff_patches(saved[name], other), diff_patches(other, saved[name])
        assert found.identical == (other is saved[name])
        assert [(s.site, s.difference) for s in found.sites] == [
            (s.site, pytest.approx(s.difference)) for s in back.sites
        ]
        for site in found.common:
            assert site.note or (site.difference is not None and 0 <= site.difference <= 2 + 1e-9)


def test_the_command(
    saved: dict[str, Patch], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["patch", "diff", *words])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    first, second = (str(FIXTURES / "patches" / n) for n in ("memit", "pmet"))
    code, out, _ = run(first, second, "--json")
    found = json.loads(out)
    assert code == 0 and found["patches"] == [first, second] and found["same_model"]
    assert found["sites"][0]["difference"] == diff_patches(
        saved["memit"], saved["pmet"]
    ).sites[0].difference  # fmt: skip
    code, out, _ = run(first, second)
    assert code == 0 and "in common: 3" in out and "editor: memit | pmet" in out
    for words in ((first, str(tmp_path)), (str(tmp_path / "no"), second)):
        code, out, err = run(*words)
        assert code == 2 and not out and len(err.splitlines()) == 1 and "no patch.json" in err
