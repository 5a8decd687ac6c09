"""A model's folder, checked before a library reads it: what it is, its JSON files, its weights.

`load_errors` turns whatever a library raises while it loads a model into one line.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

from safetensors import SafetensorError, safe_open

from errata.core import registry
from errata.core.errors import BadBackbone, MissingExtra, UserError
from errata.core.files import check_regular, read_bytes

#: file -> (what a folder with it, and without config.json, is; what to do)
_OTHER_FOLDERS: Mapping[str, tuple[str, str]] = {
    "adapter_config.json": (
        "an adapter (LoRA) alone, without its model{base}",
        "Load that model, put the adapter on it (peft.PeftModel.from_pretrained), and give both "
        "to errata.wrap",
    ),
    "patch.json": ("a patch of errata", "Apply it to its model: errata ask MODEL --patch {path}"),
    "state.json": ("the state of an editor", "Pass it with --state {path}, and name a model"),
    "plan.json": ("a run of errata bench", "Show it with errata results {path}"),
}
#: what a pipeline of diffusers has instead of config.json
PIPELINE = "model_index.json"
#: the JSON files that transformers reads
_JSON = (
    *("config", "generation_config", "preprocessor_config", "processor_config", "tokenizer"),
    *("tokenizer_config", "special_tokens_map", "added_tokens", "vocab", "chat_template"),
    "video_preprocessor_config",
)
#: file ending -> as above
_OTHER_FILES: Mapping[str, tuple[str, str]] = {
    ".gguf": (
        "weights in GGUF, the format of llama.cpp",
        "Name the file: errata ask {path}/{name} (errata.load: gguf_file='{name}')",
    ),
    ".safetensors": ("weights without a config.json", "Give the whole folder of the model"),
    ".bin": ("weights without a config.json", "Give the whole folder of the model"),
    ".pth": (
        "weights without a config.json",
        "Convert it to the format of transformers: errata convert does so for some models",
    ),
    ".pt": ("weights without a config.json", "Convert it to the format of transformers"),
    ".ckpt": ("a checkpoint of a training", "Convert it to the format of transformers"),
    ".onnx": ("a model in ONNX", "Give the folder or hub id of the model in PyTorch"),
}
#: where code of errata runs within a model's forward
_HOOKED = tuple(str(Path(__file__).parents[1] / name) for name in ("core/hooks", "patches"))
#: weight files by their usual names
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def check(path: Path) -> None:
    """Raises BadBackbone for a file or folder that is no whole model."""
    if not path.is_dir():
        if path.is_file():
            kind, advice = _OTHER_FILES.get(
                path.suffix.lower(), ("a file, not a folder", "Give the folder of the model")
            )
            advice = advice.format(path=path.parent, name=path.name)
            raise BadBackbone(f"'{path}' is {kind}. {advice}.")
        return
    for file in sorted(path.iterdir()):
        check_regular(file, BadBackbone)
    _check_kind(path)
    for file in (path / f"{name}.json" for name in _JSON):
        if file.exists():
            read_object(file)
    if not (path / PIPELINE).is_file():
        _check_config(path)


def pipeline_of(name: str, revision: str | None) -> dict[str, Any] | None:
    """The index of a pipeline of diffusers by its hub id; None if there is none."""
    from huggingface_hub import hf_hub_download

    try:
        return read_object(Path(hf_hub_download(name, PIPELINE, revision=revision)))
    except Exception:  # no such hub id, file or network
        return None


def _check_kind(path: Path) -> None:
    if (path / "config.json").is_file() or (path / PIPELINE).is_file():
        return
    names = sorted(f.name for f in path.iterdir())
    for file, (kind, advice) in _OTHER_FOLDERS.items():
        if file in names:
            base = _base_of(path / file) if file == "adapter_config.json" else ""
            raise BadBackbone(f"'{path}' is {kind.format(base=base)}. {advice.format(path=path)}.")
    analysis = next((a for a in registry.names("analyses") if f"{a}.json" in names), None)
    if analysis is not None:
        raise BadBackbone(
            f"'{path}' is an analysis of errata ({analysis}). Name the model that was analysed."
        )
    for name in names:
        if (suffix := Path(name).suffix.lower()) in _OTHER_FILES:
            kind, advice = _OTHER_FILES[suffix]
            advice = advice.format(path=path, name=name)
            raise BadBackbone(f"'{path}' holds {kind} ({name}). {advice}.")
    models = [f.name for f in sorted(path.iterdir()) if (f / "config.json").is_file()]
    hint = f" It holds models: {', '.join(models[:4])}." if models else ""
    raise BadBackbone(f"'{path}' has no config.json.{hint} Give the folder or hub id of a model.")


def _base_of(file: Path) -> str:
    try:
        base = json.loads(read_bytes(file)).get("base_model_name_or_path")
    except (UserError, ValueError, AttributeError, RecursionError):
        return ""
    return f" '{base}'" if isinstance(base, str) and base else ""


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file of a model. Raises BadBackbone if it is damaged or no object."""
    try:
        value = json.loads(read_bytes(file, BadBackbone).decode("utf-8"))
    except UnicodeDecodeError:
        raise _damaged(file, "it is not UTF-8") from None
    except RecursionError:
        raise _damaged(file, "it is nested too deeply") from None
    except ValueError as e:
        raise _damaged(file, f"it is not valid JSON: {e}") from None
    if not isinstance(value, dict):
        what = "null" if value is None else f"a {type(value).__name__}"
        raise _damaged(file, f"it holds {what}, not an object")
    return value


def _damaged(file: Path, why: str) -> BadBackbone:
    return BadBackbone(f"{file} is damaged ({why}). Restore it from a copy, or download it again.")


def _check_config(path: Path) -> None:
    config = read_object(path / "config.json")
    if not isinstance(config.get("model_type", ""), str):
        raise _damaged(path / "config.json", "its model_type is not a text")
    for key in ("text_config", "vision_config"):
        if key in config and not isinstance(config[key], dict):
            raise _damaged(path / "config.json", f"its {key} is not an object")


def check_weights(path: Path) -> None:
    """Raises BadBackbone for weight files that are not whole.

    Headers and sizes are looked at, not the values; a path that is no folder is a hub id.
    """
    if not path.is_dir():
        return None
    for single in _WEIGHTS:
        index = path / f"{single}.index.json"
        if (path / single).exists():
            return _check_file(path / single)
        if index.is_file():
            weights = read_object(index).get("weight_map")
            if not isinstance(weights, dict) or not all(
                isinstance(v, str) for v in weights.values()
            ):
                raise _damaged(index, "it has no weight_map")
            for name in sorted(set(weights.values())):
                if not (path / name).is_file():
                    raise BadBackbone(
                        f"'{path}' has no {name}, which {index.name} names. Download the model "
                        "again."
                    )
                _check_file(path / name)
            return None
    others = sorted(path.glob("*.safetensors")) + sorted(path.glob("*.bin"))
    if not others:
        raise BadBackbone(
            f"'{path}' has no weights ({', '.join(_WEIGHTS)}). Download the whole model, or save "
            "it with save_pretrained."
        )
    for file in others:
        _check_file(file)
    return None


def _check_file(file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as f:
                f.keys()
            return
        with file.open("rb") as stream:
            # a zip archive, or the pickle of old versions of torch
            whole = zipfile.is_zipfile(stream) or stream.seek(0) or stream.read(1) == b"\x80"
    except OSError as e:
        raise BadBackbone(f"{file} cannot be read ({e.strerror or type(e).__name__}).") from None
    except SafetensorError:
        whole = False
    if not whole:
        size = file.stat().st_size
        raise BadBackbone(
            f"{file} is damaged: it is no whole weight file ({size:,} bytes). Download it again."
        )


@contextmanager
def load_errors(name: str, kind: str, part: str = "it") -> Iterator[None]:
    """Whatever is raised inside becomes BadBackbone or MissingExtra; errors of ours pass.

    name, kind: `name` is loaded as a `kind`. part: what is read inside, for the message.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except MemoryError:
        raise BadBackbone(
            f"there is not enough memory to load '{name}'. Load it with --dtype bfloat16, or "
            "spread it with --device-map auto."
        ) from None
    except Exception as e:  # libraries raise whatever a damaged file leads them to
        if package := missing_package(e):
            raise MissingExtra(
                f"'{name}' needs the package {package}, which is not installed: pip install "
                f"{package}."
            ) from e
        raise BadBackbone(
            f"cannot load '{name}' as a {kind}: {part} cannot be used ({reason(e)}). Download it "
            "again, or give another model; --debug shows what the library says."
        ) from e


@contextmanager
def forward_errors(name: str) -> Iterator[None]:
    """What the model's own code raises on what its processor made becomes BadBackbone.

    An error under a hook or a patch of errata passes, and so does one of memory.
    """
    try:
        yield
    except (ValueError, IndexError, RuntimeError) as e:
        below = {str(Path(f.f_code.co_filename).parent) for f, _ in walk_tb(e.__traceback__)}
        hooked = any(folder.startswith(_HOOKED) for folder in below)
        if hooked or type(e).__name__ == "OutOfMemoryError":
            raise
        raise BadBackbone(
            f"the model '{name}' cannot read what its own processor made ({reason(e)}): files of "
            "the model do not fit together. Download it again; --debug shows what the library says."
        ) from e


def missing_package(e: BaseException) -> str:
    """The package that a library says it lacks, "" for another error."""
    text = " ".join(str(e).split())
    if isinstance(e, ImportError):
        if isinstance(e, ModuleNotFoundError) and e.name and "No module named" in text:
            return "" if e.name.startswith("transformers") else e.name.partition(".")[0]
        for pattern in (r"pip install ([\w-]+)", r"requires the (\w+) library"):
            if found := re.search(pattern, text):
                return found[1].lower()
    return "torchvision" * (isinstance(e, (ImportError, ValueError)) and "torchvision" in text)


def reason(e: BaseException) -> str:
    """An error of a library in brackets: its first sentences that are short; else only its kind."""
    # a sentence goes on in the next line, unless that is indented
    whole = re.split(r"(?<=[.:;!?])[ \t]*\n|\n\s+", str(e).strip(), maxsplit=1)[0]
    text = "".join(c if c.isprintable() else " " for c in " ".join(whole.split()))
    while len(text) > 160 and ". " in text:
        text = text.rpartition(". ")[0]
    text = text.strip().rstrip(".:")
    return f"{type(e).__name__}: {text}" if 0 < len(text) <= 160 else type(e).__name__


def missing_weights(name: str, keys: Iterable[str]) -> None:
    """Raises BadBackbone if the files of a model lack some of its weights."""
    missing = sorted(keys)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadBackbone(
            f"the files of '{name}' lack weights of the model ({missing[0]}{more}), which would be "
            "random numbers. Download the whole model again."
        )
