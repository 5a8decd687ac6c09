"""What is read from the command line and from files of edits, and how each mistake is named."""

from __future__ import annotations

import json

import pytest
from PIL import Image as Pillow

from errata.benchmarks.facts.edits import read_edits
from errata.cli.edit import check_out
from errata.cli.prepare import training_spec
from errata.cli.shared.options import parse_settings
from errata.core.errors import BadEdit, BadImage, BadPatch, BadSpec


def test_settings_are_json_where_they_read_as_json():
    found = parse_settings(["lr=1e-3", "steps=5", "eos=false", "layers=[1, 2]", "scope=always"])
    assert found == {"lr": 1e-3, "steps": 5, "eos": False, "layers": [1, 2], "scope": "always"}


@pytest.mark.parametrize("pairs", [["steps"], ["=5"], ["a=1", "a=2"]])
def test_settings_that_cannot_be_read(pairs):
    with pytest.raises(BadSpec):
        parse_settings(pairs)


def _lines(tmp_path, *rows):
    path = tmp_path / "edits.jsonl"
    texts = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(texts) + "\n")
    return path


def test_edits_are_read_with_their_images_hashed(tmp_path):
    image = tmp_path / "a.png"
    Pillow.new("RGB", (8, 8)).save(image)
    path = _lines(
        tmp_path,
        {"prompt": "What is it?", "target": "a kite", "image": str(image), "subject": "it"},
        "",
        {"prompt": "Who made it?", "target": "Corvin", "id": "mine", "old": None},
    )
    first, second = read_edits(path)
    assert first.prompt.images[0].sha256 is not None
    assert (first.subject, first.id) == ("it", "0001")
    assert (second.prompt.images, second.id) == ((), "mine")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{nonsense", "not valid JSON"),
        ("[1]", "not an object"),
        ({"prompt": "p"}, "'target' is missing"),
        ({"prompt": "p", "target": "t", "tagret": "x"}, "unknown key 'tagret'"),
        ({"prompt": "p", "target": 3}, "'target' must be a text, not 3"),
        ({"prompt": "p", "target": None}, "'target' must be a text, not null"),
        ({"prompt": "p", "target": "  "}, "the target is empty"),
        ({"prompt": " ", "target": "t"}, "the prompt is empty"),
        ({"prompt": "p", "target": "t", "subject": "q"}, "the subject 'q' is not part"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, said):
    path = _lines(tmp_path, {"prompt": "p", "target": "t"}, row)
    with pytest.raises(BadEdit) as error:
        read_edits(path)
    assert f"{path}, line 2: " in str(error.value)
    assert said in str(error.value)


def test_a_missing_image_names_file_and_line(tmp_path):
    path = _lines(tmp_path, {"prompt": "p", "target": "t", "image": str(tmp_path / "no.png")})
    with pytest.raises(BadImage, match=r"line 1: .*there is no such file"):
        read_edits(path)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_files_without_edits(tmp_path, content):
    path = tmp_path / "edits.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadEdit):
        read_edits(path)


def test_a_foreign_folder_is_never_overwritten(tmp_path):
    check_out(tmp_path / "new", each=False)
    check_out(tmp_path, each=True)
    (tmp_path / "letter.txt").write_text("mine")
    for each in (False, True):
        with pytest.raises(BadPatch, match="not empty"):
            check_out(tmp_path, each=each)
    (tmp_path / "patch.json").write_text("{}")
    check_out(tmp_path, each=False, force=True)
    with pytest.raises(BadPatch, match="--force"):
        check_out(tmp_path, each=False)
    with pytest.raises(BadPatch, match="is a file"):
        check_out(tmp_path / "letter.txt", each=False)


def test_an_editor_is_never_prepared_on_eval():
    assert training_spec("microworld:vqa").split == "train"
    assert training_spec("microworld:vqa@dev").split == "dev"
    with pytest.raises(BadSpec, match="measured on"):
        training_spec("microworld:vqa@eval")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", "p"), "Give --prompt and --target"),
        (("--prompt", "p", "--target", ""), "the target is empty"),
        (("--edits", "no.jsonl"), "no.jsonl does not exist"),
        (("--edits", "no.jsonl", "--prompt", "p"), "Leave the others out"),
        (("--prompt", "p", "--target", "t", "--image", "no.png"), "there is no such file"),
    ],
)
def test_edit_reports_bad_input_before_it_loads_a_model(errata, tmp_path, arguments, said):
    ran = errata("edit", "no/model", "--editor", "ft_l", "--out", tmp_path / "out", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--editor", "tpatchr"), "Did you mean 'tpatcher'?"),
        (("--preset", "papr"), "has no preset 'papr'"),
        (("--set", "stesp=3"), "Did you mean 'steps'?"),
        (("--set", "steps=many"), "setting steps"),
        (("--state", "nowhere"), "no state in nowhere"),
        (("--state", "0123456789abcdef"), "no state with hash 0123456789abcdef"),
        (("--benchmark", "microwrld"), "Did you mean 'microworld'?"),
        (("--benchmark", "microworld:vqq"), "no task 'vqq'"),
        (("--protocol", "one_stp"), "Did you mean 'one_step'?"),
        (("--protocol", "sequential:x"), "x"),
        (("--metric", "exakt"), "Did you mean 'exact'?"),
        (("--style", "cooked"), "unknown --style"),
        (("--dtype", "int3"), "unknown --dtype"),
        (("--device", "abacus"), "unknown device 'abacus'"),
    ],
)
def test_bench_reports_a_wrong_option_before_it_loads_a_model(
    errata, tmp_path, monkeypatch, option, said
):
    monkeypatch.setenv("ERRATA_HOME", str(tmp_path / "home"))
    usual = {"--editor": "ft_l", "--benchmark": "microworld:vqa", "--protocol": "one_step"}
    usual |= {"--out": str(tmp_path / "run"), option[0]: option[1]}
    ran = errata("bench", "no/model", *(word for pair in usual.items() for word in pair))
    assert ran.code == 2
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prepare", "micro-vlm", "--editor", "mend", "--benchmark", "microworld:vqa",
          "--ray", "local"), "workers cannot share the preparation of 'mend'"),
        (("prepare", "micro-vlm", "--editor", "memit", "--benchmark", "microworld:vqa",
          "--workers", "2"), "Give --ray ADDRESS"),
        (("stats", "micro-vlm", "--add", "a", "--add", "b", "--out", "c", "--ray", "local"),
         "--ray shares out the collecting of a --corpus"),
    ],
)  # fmt: skip
def test_workers_that_would_have_nothing_to_do_are_refused(errata, arguments, said):
    refused = errata(*arguments)
    assert refused.code == 2 and said in refused.err and refused.err.count("\n") == 1
