"""OmniGen2: Qwen2.5-VL (`mllm`) in front of blocks of Lumina 2, in its authors' own pipeline.

The package `omnigen2` is in no package index: its user installs it, and errata imports it. The
conditioning is the normed last hidden state of all tokens of a chat template with a system
sentence, at most 256, and of the negative prompt in the same template; both are measured, as for
any pipeline (`diffusers_t2i`). Tested on a stand-in with the published class and attribute names,
not on the published weights.

Source: Wu et al. 2025; VectorSpaceLab/OmniGen2 at 0f72fa9 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errata.backbones._drawing.installed import installed, open_around
from errata.backbones.diffusers_t2i import DiffusersT2I

HOW = (
    "Install it: git clone https://github.com/VectorSpaceLab/OmniGen2, then put that folder on the "
    "path (export PYTHONPATH=$PWD/OmniGen2)."
)


class OmniGen2(DiffusersT2I):
    """`OmniGen2Pipeline` of its authors; its transformer is loaded on its own, as they do."""

    @classmethod
    def accepts(cls, config: Mapping[str, Any]) -> bool:
        return config.get("_class_name") == "OmniGen2Pipeline"

    @classmethod
    def open(cls, name: str, pipelines: Any, options: Mapping[str, Any]) -> Any:
        trusted = bool(options["trust_remote_code"])
        code = [
            installed(f"omnigen2.{module}", model="OmniGen2", how=HOW, trusted=trusted)
            for module in (
                "pipelines.omnigen2.pipeline_omnigen2",
                "models.transformers.transformer_omnigen2",
            )
        ]
        of_parts = {k: v for k, v in options.items() if k != "trust_remote_code"}
        transformer = code[1].OmniGen2Transformer2DModel.from_pretrained(
            name, subfolder="transformer", **of_parts
        )
        own = {"transformer": transformer}
        return open_around(code[0].OmniGen2Pipeline, name, own, options)
