"""A model in memory, styles of prompts, and arguments as a user writes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import errata
from errata.cli import main
from errata.core.errors import BadBackbone, BadEdit, BadPatch, BadSpec
from errata.core.state import State
from errata.core.types import Edit, Image, Prompt
from errata.patches.stack import Stack
from errata.testing import tiny_models as tiny

ALL = {**tiny.FAMILIES, **tiny.WINDOWED, **tiny.DRAWING}
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} ASSISTANT:"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with a chat template, saved."""
    path = tmp_path_factory.mktemp("chatty")
    model, processor = tiny.llava_parts()
    processor.chat_template = TEMPLATE
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.mark.parametrize("family", ALL)
def test_every_family_is_wrapped_from_memory(family: str) -> None:
    ready = ALL[family]()
    bb = errata.wrap(ready.model, getattr(ready, "processor", ready.tokenizer))
    assert type(bb) is type(ready)
    assert bb.fingerprint() == ready.fingerprint()
    assert type(ready.model).__name__ in repr(bb) and f"{ready.depth} text blocks" in repr(bb)


def test_a_model_in_memory_has_the_fingerprint_of_its_folder(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    loaded = errata.load(folder)
    processor: Any = AutoProcessor.from_pretrained(folder)
    for dtype in ("auto", "bfloat16"):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        bb = errata.wrap(model, processor)
        assert bb.fingerprint() == loaded.fingerprint()
        assert (bb.name, bb.style) == (str(folder), "chat")
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert errata.wrap(model, processor).fingerprint() != loaded.fingerprint()


def test_a_bundled_model_in_memory_keeps_its_name() -> None:
    bb = errata.load("micro-vlm")
    assert isinstance(bb, tiny.HfVlm)
    wrapped = errata.wrap(bb.model, bb.processor)
    assert (wrapped.name, wrapped.fingerprint()) == ("micro-vlm", bb.fingerprint())


@pytest.mark.parametrize(
    ("model", "processor", "says"),
    [
        ("some/model", None, "not 'some/model'.*errata.load"),
        (None, None, "not a NoneType"),
        (torch.nn.Linear(2, 2), None, "not a Linear"),
        ("tiny", None, "the model's processor, not a NoneType"),
        ("tiny", "some/model", "the model's processor, not 'some/model'"),
        ("tiny", "tokenizer", "takes images, but a .*Tokenizer.* does not"),
    ],
)
def test_what_cannot_be_wrapped_is_said(model: Any, processor: Any, says: str) -> None:
    bb = tiny.shared("llava")
    given = bb.model if model == "tiny" else model
    with pytest.raises(BadBackbone, match=says):
        errata.wrap(given, bb.tokenizer if processor == "tokenizer" else processor)


def test_a_model_is_named_by_a_text_or_a_path(folder: Path) -> None:
    assert errata.load(folder).name == str(folder)
    with pytest.raises(BadBackbone, match=r"not a LlavaForConditionalGeneration.*errata.wrap"):
        errata.load(tiny.shared("llava").model)


# -- styles ---------------------------------------------------------------------------------------


def test_the_chat_template_is_the_default_where_there_is_one(folder: Path) -> None:
    assert errata.load(folder).style == "chat"
    assert errata.load(folder, style="raw").style == "raw"
    assert errata.load("micro-vlm").style == "raw"


def test_an_unknown_style_is_refused(folder: Path) -> None:
    for name in (folder, "micro-vlm", "micro-umm"):
        with pytest.raises(BadSpec, match=r"unknown style 'nope'. Known: raw, easyedit, chat"):
            errata.load(name, style="nope")
    with pytest.raises(BadSpec, match="Did you mean 'chat'"):
        errata.wrap(*tiny.llava_parts(), style="chats")
    with pytest.raises(BadSpec, match="no chat template"):
        errata.load("micro-vlm", style="chat")


def test_a_patch_is_refused_in_another_style() -> None:
    """For every editor: tests/contract, holds_fingerprint."""
    bb = tiny.llava()
    patch = errata.editor("ft_l", steps=1).edit(bb, Edit(Prompt.of("Which?"), "red")).patch
    stack = Stack([patch, Stack([patch])])
    bb.style = "easyedit"
    for given in (patch, stack):
        with pytest.raises(BadSpec, match=r"a patch of 'ft_l'.* style 'raw'.* 'easyedit'"):
            bb.check_patch(given)
    bb.style = "raw"
    with bb.applied(stack):
        pass


def test_a_state_is_refused_in_another_style(tmp_path: Path) -> None:
    bb = tiny.llava()
    editor = errata.editor("mend")
    state = State("mend", {}, {}, fingerprint=bb.fingerprint(), style="chat")
    state.save(str(tmp_path))
    with pytest.raises(BadSpec, match=r"the state of 'mend' .* 'chat'"):
        editor._check_state(bb, State.load(str(tmp_path)))


def test_the_command_line_asks_in_the_style_of_the_patch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main([str(w) for w in words])
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out + said.err

    bb = errata.load(folder, style="easyedit")
    errata.save_patch(
        errata.editor("ft_l", steps=1).edit(bb, Edit(Prompt.of("Which?"), "red")).patch,
        str(tmp_path / "p"),
    )
    patched = ("--patch", tmp_path / "p")
    assert run("ask", folder, "Which?", *patched)[0] == 0
    edit = ("--editor", "ft_l", "--set", "steps=0", "--prompt", "Who?", "--target", "red")
    code, said = run("edit", folder, *edit, *patched, "--out", tmp_path / "q")
    assert code == 3 and errata.load_patch(tmp_path / "q").header.style == "easyedit", said
    code, said = run("analyze", "drift", folder, *patched, "--out", tmp_path / "d")
    assert code == 2 and "draws no pictures" in said, "it was asked in the style of the patch"
    code, said = run("patch", "verify", tmp_path / "p", "--backbone", folder)
    assert code == 3 and "made for" in said
    code, said = run("ask", folder, "Which?", "--patch", tmp_path / "p", "--style", "chat")
    assert code == 2 and "was made for prompts in the style 'easyedit'" in said
    bb.style = "chat"
    errata.save_patch(
        errata.editor("ft_l", steps=1).edit(bb, Edit(Prompt.of("Which?"), "red")).patch,
        tmp_path / "chat",
    )
    for other in ("micro-vlm", "micro-umm"):  # the model is what is wrong, not the style
        code, said = run("ask", other, "Which?", "--patch", tmp_path / "chat")
        assert code == 2 and "was made for" in said and "style" not in said, said
    code, said = run("doctor", folder)
    assert code == 0 and "chat" in next(line for line in said.splitlines() if "style" in line)


# -- what is meant --------------------------------------------------------------------------------


def test_one_question_or_one_edit_needs_no_list() -> None:
    bb = tiny.shared("llava")
    (want,) = errata.ask(bb, [Prompt.of("Which shape?")], cap=4)
    for given in ("Which shape?", ["Which shape?"], Prompt.of("Which shape?")):
        assert errata.ask(bb, given, cap=4) == [want]
    edit = Edit(Prompt.of("Which shape?"), "red")
    editor = errata.editor("ft_l", steps=1)
    one, many = editor.edit(bb, edit), editor.edit(bb, [edit])
    assert one.patch.edits == many.patch.edits == (edit,)
    assert [r.patch.edits for r in editor.edit_rows(bb, edit)] == [(edit,)]


@pytest.mark.parametrize("given", [3, None, [3], "text", ["text"], [], {"prompt": "a"}])
def test_what_is_no_edit_or_prompt_is_refused_in_one_line(given: Any) -> None:
    bb = tiny.shared("llava")
    with pytest.raises(BadEdit, match=r"errata\.Edit"):
        errata.editor("ft_l").edit(bb, given)
    if given not in ("text", ["text"], []):
        with pytest.raises(BadEdit, match=r"Prompt\.of\(text, image\)"):
            errata.ask(bb, given)


def test_the_preset_of_the_model_is_used() -> None:
    bb = errata.load("micro-vlm")
    edit = Edit(Prompt.of("What colour is the ring?"), "red")
    editor = errata.editor("ft_l", steps=1)
    header = editor.edit(bb, edit).patch.header
    assert header.arguments == {"preset": "micro-vlm", "steps": 1}
    chosen = next(p for p in editor.presets if p != "micro-vlm")
    named = errata.editor("ft_l", preset=chosen, steps=1)
    assert named.edit(bb, edit).patch.header.arguments["preset"] == chosen


def test_paths_are_texts_or_paths(tmp_path: Path) -> None:
    bb = tiny.llava()
    patch = errata.editor("ft_l", steps=1).edit(bb, Edit(Prompt.of("Which?"), "red")).patch
    for folder in (str(tmp_path / "a"), tmp_path / "b"):
        errata.save_patch(patch, folder)
        assert errata.load_patch(folder, bb).header == patch.header


def test_values_say_what_they_are() -> None:
    bb = tiny.shared("llava")
    edit = Edit(Prompt.of("Which shape?", "a.png"), "ring", subject="shape")
    assert repr(edit) == ("Edit(Prompt(Image('a.png'), 'Which shape?') -> 'ring', subject='shape')")
    assert repr(Image("a.png", "00")) == "Image('a.png')"
    text = replace(edit, prompt=Prompt.of("Which shape?"))
    result = errata.editor("ft_l", steps=2).edit(bb, text)
    for part in ("EditResult(Delta(editor 'ft_l'", "for 'tiny-llava'", "1 edit,", "steps 2"):
        assert part in repr(result)
    with bb.applied(result.patch):
        assert "style raw, 1 live" in repr(bb)


@pytest.mark.parametrize("given", ["folder", Path("folder"), ["patch"], 3])
def test_what_is_no_patch_cannot_be_applied(given: Any) -> None:
    bb = tiny.shared("llava")
    with pytest.raises(BadPatch, match=r"errata\.load_patch"), bb.applied(given):
        pass
    result = errata.editor("ft_l", steps=0).edit(bb, Edit(Prompt.of("Which?"), "red"))
    with pytest.raises(BadPatch, match=r"`\.patch` of a result"), bb.applied(result):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(
    "given", [{"limit": 0}, {"limit": -1}, {"rows": 0}, {"image_seeds": 0}, {"seed": "x"}]
)
def test_the_numbers_of_a_run_are_checked_first(tmp_path: Path, given: dict[str, Any]) -> None:
    words = ("microworld:vqa", "one_step", tmp_path / "run")
    with pytest.raises(BadSpec, match=rf"{next(iter(given))}=.* no whole number"):
        errata.bench(tiny.shared("llava"), errata.editor("ft_l"), *words, **given)
    assert not (tmp_path / "run").exists()


def test_a_dtype_is_a_name_or_one_of_torch_and_a_device_is_there() -> None:
    for dtype in (torch.bfloat16, "bfloat16"):
        assert errata.load("micro-vlm", dtype=dtype).dtype == torch.bfloat16
    for wrong in (torch.int8, "int8", "zeros", None):
        with pytest.raises(BadSpec, match="unknown dtype"):
            errata.load("micro-vlm", dtype=wrong)
    for device in ("xpu:9", "meta", "cuda:99"):
        with pytest.raises(BadSpec, match="no usable device"):
            errata.load("micro-vlm", device=device)


def test_a_wrapped_model_is_named_by_a_text_or_a_path() -> None:
    parts = tiny.llava_parts()
    assert errata.wrap(*parts, name=Path("a/b")).name == "a/b"  # type: ignore[arg-type]
    with pytest.raises(BadSpec, match="name of a model is a text, not a int"):
        errata.wrap(*parts, name=5)  # type: ignore[arg-type]
