"""A chat template that writes no BOS: the prompt begins as that of the processor itself."""

from __future__ import annotations

from typing import Any

import pytest

import errata
from errata.core.types import Prompt
from errata.testing import zoo

BODY = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


@pytest.mark.parametrize("name", ["llava", "llava_next", "vipllava", "qwen2_5_vl"])
@pytest.mark.parametrize("bos", ["", "<s>"])
def test_a_prompt_in_chat_style_is_the_processors_own(name: str, bos: str) -> None:
    model, processor = zoo.ZOO[name].make()
    template = (bos + BODY).replace("<image>", str(getattr(processor, "image_token", "<image>")))
    processor.chat_template = template
    backbone: Any = errata.wrap(model, processor)
    assert backbone.style == "chat"
    message = [{"role": "user", "content": [{"type": "text", "text": "Which shape?"}]}]
    own = processor.apply_chat_template(
        message, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    prompt = Prompt.of("Which shape?")
    assert backbone.encode([prompt]).ids[0].tolist() == list(own["input_ids"][0])
    assert backbone.processed(prompt)["input_ids"][0].tolist() == list(own["input_ids"][0])
