"""Attribution of modules and image tokens, by hand and against the model run directly."""

from __future__ import annotations

import io
import math
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow

from errata.algorithms.attribution import noise_influence
from errata.analyses.attribution import (
    AttributionAnalysis,
    grid_of,
    module_attribution,
    module_scores,
    picture,
    visual_attribution,
    windows,
)
from errata.core.analysis import Subject
from errata.core.errors import BadImage, BadSpec
from errata.core.figure import Heat
from errata.core.types import Case, Edit, Image, Prompt
from errata.training.optimise import generator
from tests import tiny


def test_scores_by_hand() -> None:
    value = torch.tensor([[4.0, -1.0, 0.0]])
    chance = torch.tensor([[0.25, 0.64, 0.5]])
    wanted = [math.sqrt(0.25), -math.sqrt(0.25 * 0.64), 0.0]
    assert module_scores(value, chance)[0].tolist() == pytest.approx(wanted)


def outputs(
    backbone: tiny.HfVlm, prompt: Prompt
) -> tuple[dict[tuple[int, int], torch.Tensor], int]:
    """What every module says at the last token, and the token that the model says."""
    seen: dict[tuple[int, int], torch.Tensor] = {}

    def keep(at: tuple[int, int], out: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        seen[at] = (out[0] if isinstance(out, tuple) else out)[0, -1]

    handles = [
        module.register_forward_hook(lambda _, x, out, at=(i, m): keep(at, out))
        for i, block in enumerate(backbone.blocks)
        for m, module in enumerate((block.self_attn, block.mlp))
    ]
    with torch.no_grad():
        logits = backbone.model(**backbone.encode([prompt]).inputs).logits
    for handle in handles:
        handle.remove()
    return seen, int(logits[0, -1].argmax())


def test_modules_are_read_as_the_model_reads_its_stream(ragged: list[Prompt]) -> None:
    """Against hooks on the model's own modules, one question at a time."""
    backbone = tiny.shared("llava")
    found = module_attribution(backbone, ragged)
    assert found.shape == (len(ragged), backbone.depth, 2)
    norm, head = backbone.site("final_norm").first, backbone.site("head").first
    for p, prompt in enumerate(ragged):
        seen, token = outputs(backbone, prompt)
        with torch.no_grad():
            logits = {at: head(norm(x[None]))[0] for at, x in seen.items()}
        largest = max(abs(float(v[token])) for v in logits.values())
        for (i, m), v in logits.items():
            share, chance = float(v[token]) / largest, float(v.softmax(-1)[token])
            wanted = math.copysign(math.sqrt(abs(share) * chance), share)
            assert float(found[p, i, m]) == pytest.approx(wanted, abs=2e-4)


def test_windows_stop_at_the_border() -> None:
    found = windows((2, 3), 1)
    assert [w.tolist() for w in found] == [
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [1, 2, 4, 5],
        [0, 1, 3, 4],
        [0, 1, 2, 3, 4, 5],
        [1, 2, 4, 5],
    ]
    assert [w.tolist() for w in windows((2, 2), 0)] == [[0], [1], [2], [3]]


def test_a_map_over_the_image(pictures: list[str]) -> None:
    backbone = tiny.shared("llava")
    prompt = Prompt.of("Which shape?", pictures[0])
    one = visual_attribution(backbone, prompt, [0, -1], radius=0, draws=2)
    assert one.shape == (2, 2, 2) and bool((one > 0).all())
    columns = backbone.encode([prompt]).vision[0].nonzero()
    wanted = noise_influence(
        backbone, backbone.encode([prompt]), list(columns), layers=[0, 3], sigma=0.7, draws=2,
        rng=generator(0, "attribution", 0),
    )  # fmt: skip
    torch.testing.assert_close(one.flatten(1), torch.stack([wanted[0], wanted[3]]))
    again = visual_attribution(backbone, prompt, [0, -1], radius=0, draws=2)
    assert torch.equal(one, again)
    everything = visual_attribution(backbone, prompt, [0], radius=1, draws=20)
    assert float(everything.std() / everything.mean()) < 0.5  # every window is the whole picture


def test_what_cannot_be_mapped_is_refused(pictures: list[str]) -> None:
    backbone = tiny.shared("llava")
    with pytest.raises(BadSpec, match="one image"):
        visual_attribution(backbone, Prompt.of("Which?"), [0])
    with pytest.raises(BadSpec, match="does not fit 4"):
        visual_attribution(backbone, Prompt.of("Which?", pictures[0]), [0], grid=(2, 3))
    assert grid_of(576) == (24, 24)
    with pytest.raises(BadSpec, match="no square"):
        grid_of(32)


def cases(edits: list[Edit]) -> tuple[Case, ...]:
    return tuple(Case(e.id, e, ()) for e in edits)


def test_means_and_maps_of_cases(edits: list[Edit]) -> None:
    backbone = tiny.shared("llava")
    look = AttributionAnalysis(maps=2, layers=(1, -1), drawn=1, draws=1)
    found = look.look(Subject(backbone, cases(edits), "made:up", seed=5))
    scores = module_attribution(backbone, [e.prompt for e in edits])
    (panel,) = found.figures[0].panels
    assert isinstance(panel, Heat) and panel.middle == 0.0
    for k in range(2):
        assert panel.values[k] == pytest.approx(scores[:, :, k].mean(0).tolist(), abs=2e-6)
    assert [f.name for f in found.figures] == ["attribution", "attribution-images"]
    pictures = found.figures[1].panels
    assert len(pictures) == 2 * 3 and found.figures[1].columns == 3
    one = visual_attribution(backbone, edits[0].prompt, [1, 3], draws=1, seed=5)
    blank, mean, block = pictures[:3]
    assert isinstance(blank, Heat) and isinstance(mean, Heat) and isinstance(block, Heat)
    assert math.isnan(blank.values[0][0]) and blank.image is not None
    assert [v for row in mean.values for v in row] == pytest.approx(one.mean(0).flatten().tolist())
    assert block.title == "block 3" and block.values[0][0] == pytest.approx(float(one[1, 0, 0]))
    rows = [r for r in found.tables[1].rows if r[0] == "e0" and r[1] == 1]
    assert [r[4] for r in rows] == pytest.approx(one[0].flatten().tolist(), abs=1e-6)
    assert "a first look" in found.said[-1]


def test_one_question(pictures: list[str]) -> None:
    look = AttributionAnalysis(image=pictures[0], prompt="Which shape?", layers=(0,), draws=1)
    assert look.default == "" and AttributionAnalysis().default.startswith("microworld")
    found = look.look(Subject(tiny.shared("llava")))
    assert found.facts["mapped"] == ["question"] and not any("first look" in s for s in found.said)
    no_maps = AttributionAnalysis(image=pictures[0], prompt="Which shape?", maps=0)
    assert len(no_maps.look(Subject(tiny.shared("llava"))).figures) == 1


def test_half_a_question_and_two_subjects_are_refused(
    edits: list[Edit], pictures: list[str]
) -> None:
    backbone = tiny.shared("llava")
    with pytest.raises(BadSpec, match="go together"):
        AttributionAnalysis(image=pictures[0]).look(Subject(backbone))
    with pytest.raises(BadSpec, match="one image each"):
        AttributionAnalysis().look(Subject(backbone))
    with pytest.raises(BadSpec, match="two subjects"):
        AttributionAnalysis(image=pictures[0], prompt="x").look(Subject(backbone, cases(edits)))
    with pytest.raises(BadImage):
        AttributionAnalysis(image="nowhere.png", prompt="x").look(Subject(backbone))


def test_the_picture_is_the_middle_that_the_model_sees(tmp_path: Path) -> None:
    wide = Pillow.new("RGB", (60, 20), "red")
    wide.paste("blue", (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    seen = Pillow.open(io.BytesIO(picture(Image(str(tmp_path / "wide.png")), (2, 2))))
    assert seen.size == (20, 20) and seen.getcolors() == [(400, (0, 0, 255))]
    whole = Pillow.open(io.BytesIO(picture(Image(str(tmp_path / "wide.png")), (1, 3))))
    assert whole.size == (60, 20)
