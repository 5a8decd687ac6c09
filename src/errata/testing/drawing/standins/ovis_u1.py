"""Stand-in of Ovis-U1: Qwen3, and a transformer with blocks of two streams and of one.

Shapes: B rows, T text tokens, N image tokens.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from errata.testing.drawing.pipelines import _sizes, _tokenizer, seeded
from errata.testing.drawing.standins.streams import SIDE, WIDTH, StreamBlock, picture_of
from errata.testing.tiny_models import randomise

#: the file with the code in the hub repository, and its classes
_FILE = "modeling_ovis_u1"


class YakBackbone(nn.Module):
    """Ovis-U1's generator: text refiner, blocks of two streams, blocks of one stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.txt_in = nn.ModuleDict({"input_embedder": nn.Linear(width, WIDTH)})
        self.img_in = nn.Linear(3, WIDTH)
        self.time_in = nn.Linear(1, WIDTH)
        self.double_blocks = nn.ModuleList(StreamBlock(False) for _ in range(2))
        self.single_blocks = nn.ModuleList(StreamBlock(True) for _ in range(2))
        self.final_layer = nn.Linear(WIDTH, 3)

    def forward(self, img: Tensor, txt: Tensor, timesteps: Tensor) -> Tensor:
        text, x, time = (
            self.txt_in["input_embedder"](txt),
            self.img_in(img),
            self.time_in(timesteps),
        )
        for block in self.double_blocks:
            x, text = block(x, text, time)
        joined = torch.cat([text, x], dim=1)
        for block in self.single_blocks:
            joined = block(joined, None, time)
        out: Tensor = self.final_layer(joined[:, text.shape[1] :])
        return out


class YakGenerator(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = YakBackbone(width)

    def process_image_aspectratio(self, image: Any, size: tuple[int, int]) -> Any:
        return image, torch.zeros(3, *size), torch.zeros(1, 4, 3)


class BlankTower(nn.Module):
    """Stands for the visual tokenizer: one token for the blank picture."""

    image_processor = SimpleNamespace(min_pixels=49)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))

    def smart_resize(self, height: int, width: int, max_pixels: int) -> tuple[int, int]:
        return height, width


class OvisU1Config(PretrainedConfig):
    """llm_config and visual_generator_config, as in the published config.json."""

    model_type = "ovis_u1"

    def __init__(
        self, llm_config: Any = None, visual_generator_config: Any = None, **kwargs: Any
    ) -> None:
        given = llm_config if isinstance(llm_config, dict) else {}
        self.llm_config = llm_config if llm_config and not given else Qwen3Config(**given)
        self.visual_generator_config = visual_generator_config or {}
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        return self.llm_config


class OvisU1ForCausalLM(PreTrainedModel):
    """`llm`, `visual_generator.backbone` and the functions that Ovis-U1's authors draw with."""

    config_class = OvisU1Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.llm_config.hidden_size
        self.llm = Qwen3ForCausalLM(config.llm_config)
        self.visual_tokenizer = BlankTower(width)
        self.visual_generator = YakGenerator(2 * width)
        self.words: Any = None
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """None: they are all loaded, or randomised."""

    def get_text_tokenizer(self) -> Any:
        if self.words is None:
            name = self.config.name_or_path
            self.words = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
        return self.words

    def get_visual_tokenizer(self) -> Any:
        return self.visual_tokenizer

    def preprocess_inputs(self, text: str, images: Any, **options: Any) -> Any:
        talk = [{"role": "user", "content": text}]
        words = self.get_text_tokenizer()
        written = words.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor(words(written)["input_ids"])
        return written, ids, torch.zeros(1, 3), torch.tensor([[1, 1, 1]])

    @torch.no_grad()
    def generate_condition(self, ids: Tensor, *, attention_mask: Tensor, **options: Any) -> Any:
        embeds = self.llm.get_input_embeddings()(ids)
        image = ids == self.get_text_tokenizer().convert_tokens_to_ids("<image>")
        embeds = torch.where(image[..., None], self.visual_tokenizer.token, embeds)
        states = self.llm(
            inputs_embeds=embeds, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
        return {"txt": torch.cat([states[-1], states[-2]], dim=-1)}

    @torch.no_grad()
    def generate_img(
        self, *, cond: Any, no_both_cond: Any, no_txt_cond: Any, num_steps: int, seed: int,
        txt_cfg: float, **options: Any,
    ) -> list[Any]:  # fmt: skip
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(1, SIDE * SIDE, 3, generator=rng)
        for k in range(num_steps):
            time = torch.full((1, 1), k / num_steps)
            own = self.visual_generator.backbone(img=x, txt=cond["txt"], timesteps=time)
            other = self.visual_generator.backbone(img=x, txt=no_both_cond["txt"], timesteps=time)
            x = x + (other + txt_cfg * (own - other)) / num_steps
        return [picture_of(x)]


@seeded
def model() -> Any:
    config = OvisU1Config(Qwen3Config(**_sizes(), tie_word_embeddings=True), {"depth": 2})
    made = randomise(OvisU1ForCausalLM(config))
    made.words = _tokenizer()
    return made


def save(folder: Path) -> None:
    """A folder in the layout of the hub repository: weights, tokenizer, and the code."""
    made = model()
    made.config.auto_map = {
        "AutoConfig": f"{_FILE}.OvisU1Config",
        "AutoModelForCausalLM": f"{_FILE}.OvisU1ForCausalLM",
    }
    made.save_pretrained(folder)
    made.words.save_pretrained(folder)
    (folder / f"{_FILE}.py").write_text(f"from {__name__} import OvisU1Config, OvisU1ForCausalLM\n")


def backbone() -> Any:
    from errata.backbones.ovis_u1 import OvisU1

    settings = {"steps": 3, "size": 28, "guidance": 2.0}
    return OvisU1(model(), name="tiny-ovis-u1", drawing=settings)
