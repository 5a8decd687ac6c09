"""What families' own processors make of prompts, and how errata follows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from errata.core.errors import BadImage
from errata.core.types import Image, Prompt
from errata.io.images import load_image
from errata.testing import zoo
from errata.testing.class_checks import pictures

JOINED = ("pixtral", "mistral3", "idefics2", "gemma4", "instructblip")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("name", JOINED)
def test_questions_that_share_a_picture(name: str, shown: list[str]) -> None:
    """Repeated pictures and their sizes, masks and positions stay together."""
    bb = zoo.loaded(name)
    asked = [
        Prompt.of("What colour?", shown[2]),
        Prompt.of("Which shape is the ring?", shown[2]),
        Prompt.of("What colour?", shown[1]),
        Prompt.of("It", shown[2]),
    ]
    alone = torch.cat([bb.logits(bb.encode([p])) for p in asked])
    for order in ([0, 1], [0, 1, 2, 3], [2, 1, 0, 1]):
        batch = bb.encode([asked[i] for i in order])
        torch.testing.assert_close(bb.logits(batch), alone[order], atol=1e-4, rtol=1e-4)
        again = bb.resume(bb.enter(batch, -1), None)
        torch.testing.assert_close(again, alone[order], atol=1e-4, rtol=1e-4)


def test_features_that_depend_on_the_question_are_not_shared(shown: list[str]) -> None:
    """InstructBLIP's Q-Former reads the prompt: image columns of two questions differ."""
    bb = zoo.loaded("instructblip")
    asked = [Prompt.of(t, shown[0]) for t in ("What colour?", "Which shape is it?")]
    batch = bb.encode(asked, ["red", "blue"])
    state = bb.enter(batch, 2)
    image = batch.vision[0].nonzero().flatten()
    assert not torch.allclose(state.stream[0, image], state.stream[1, image], atol=1e-3)
    rows = bb.split(state)
    joined = bb.concat(rows, torch.zeros(2, dtype=torch.long))
    assert joined.same is None
    torch.testing.assert_close(bb.resume(joined, None), bb.logits(batch), atol=1e-4, rtol=1e-4)
    llava = zoo.loaded("llava")  # here they are equal, and computed once
    state = llava.enter(llava.encode(asked), 2)
    assert llava.concat(llava.split(state), torch.zeros(2, dtype=torch.long)).same is not None


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_a_prompt_is_read_in_both_directions_and_a_target_in_one(
    name: str, shown: list[str]
) -> None:
    """As the processor marks them for training, where the answer is called a suffix."""
    bb = zoo.loaded(name)
    prompt, target = Prompt.of("What colour is the thing?", shown[0]), "green ring"
    own = bb.processor(
        text=[f"{bb.image_token}{prompt.text}"],
        images=[load_image(prompt.images[0])],
        suffix=[target],
        return_tensors="pt",
    )
    batch = bb.encode([prompt], [target])
    size = int(batch.lengths[0])
    assert own["input_ids"][0, size : batch.ids.shape[1]].tolist() == list(batch.targets[0])
    assert batch.inputs["token_type_ids"][0].tolist() == [0] * size + [1] * len(batch.targets[0])
    with torch.no_grad():
        theirs = bb.model(**{k: v for k, v in own.items() if k != "labels"}).logits
        ours = bb.logits(batch)[0]
    want = theirs[0, size - 1 : size - 1 + len(ours)]
    torch.testing.assert_close(ours, want, atol=1e-4, rtol=1e-4)
    plain = bb.model(**{**batch.inputs, "token_type_ids": None}).logits[0, size - 1]
    assert not torch.allclose(plain, ours[0], atol=1e-2)  # the marks have an effect


@pytest.mark.parametrize(
    "name", ["paligemma", "kosmos2", "idefics3", "smolvlm", "instructblip", "gemma4", "pixtral"]
)
def test_the_last_token_of_a_subject_is_found(name: str, shown: list[str]) -> None:
    bb = zoo.loaded(name)
    prompt = Prompt.of("The ring of the thing is", shown[1])
    column = bb.last_column(prompt, "thing")
    ids = bb.encode([prompt]).ids[0].tolist()
    assert bb.tokenizer.decode(ids[: column + 1]).endswith("the thing")


@pytest.mark.parametrize("name", ["blip2", "instructblip", "kosmos2"])
def test_two_pictures_where_the_processor_takes_one(name: str, shown: list[str]) -> None:
    both = Prompt((Image.of(shown[0]), Image.of(shown[1]), "Which?"))
    with pytest.raises(BadImage, match="takes one image in a prompt, and 2 were given"):
        zoo.loaded(name).encode([both])


_WITHOUT = """
import importlib.util, sys, warnings
warnings.simplefilter("ignore")
gone, folder = sys.argv[1:]
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split(".")[0] == gone else find(name, *a)
sys.modules[gone] = None
import errata
try:
    errata.load(folder)
except errata.UserError as e:
    print(type(e).__name__, e)
"""


@pytest.mark.parametrize(
    ("name", "package"),
    [("qwen2_5_vl", "torchvision"), ("cohere2_vision", "torchvision"), ("smolvlm", "num2words")],
)
def test_a_package_that_a_processor_needs_is_named(name: str, package: str) -> None:
    """In one whole line, with the command that installs it."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, package, str(zoo.folder_of(name))],
        capture_output=True, text=True, check=True, env={"PYTHONPATH": str(_source())},
    )  # fmt: skip
    (said,) = done.stdout.strip().splitlines()
    assert said.startswith("MissingExtra ")
    assert said.endswith(
        f"needs the package {package}, which is not installed: pip install {package}."
    )


def _source() -> Path:
    import errata

    return Path(errata.__file__).parents[1]
