"""The tokenizer of micro-vlm: a byte-fallback BPE with no unknown token.

Merges are learned from the words of the wordings, kept whole, and from *pieces* of names and values
(split at `|` below), so that most names and many values have 2 to 4 tokens and share first tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from errata.synthetic.objects import language, world

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
PIECES = (
    "red or|ange yell|ow gre|en cyan bl|ue pur|ple pink disc square tri|angle ring cross "
    "bow|tie plain stri|ped dott|ed che|cked rim|med white bl|ack br|own mint big small left "
    "right top bot|tom cen|tre gre|y na|vy bei|ge te|al pl|um Or|lin Tavish Bex|ley Quar|rin "
    "Hol|lin Pem|ber|ly Rusk Wen|do|ver Yar|row Ash|by Cor|vin Dun|more fern moss oat nut "
    "soup bread pie jam cake rice honey glass clay tin wool oak|wood bone silk bees|wax "
    "ir|on sand|stone Av|aria Bel|mark Cor|land Ost|land Est|mark Nov|aria Kel|land Sun|mark "
)
MARK = "\u2581"


def _corpus() -> list[str]:
    words = " ".join(language.TEMPLATES).replace("{n}", "").replace("{s}", "")
    for ch in "?.:,":
        words = words.replace(ch, " ")
    frames = [
        language.ask("caption", w, "")
        for g in (language.SEEN, "train", "dev", "eval")
        for w in language.wordings("caption", g)
    ]
    whole = [*words.split(), *(n for ns in language.NOUNS.values() for n in ns)]
    whole += " ".join((*language.POINTERS, *frames)).split()
    whole += "New Fact Prompt Describe in at on and the a an".split()
    pieces = [p for word in PIECES.split() for p in parts(word)]
    for first in (*world._FIRST, *world._TOWN):
        pieces += [first, MARK + first]
    pieces += [*world._LAST, *world._TOWN_END]
    return [w for w in sorted(set(whole)) for w in (w, MARK + w)] * 2 + sorted(set(pieces))


def parts(word: str) -> list[str]:
    head, *rest = word.split("|")
    return [MARK + head, *rest]


def build_tokenizer() -> PreTrainedTokenizerFast:
    return assemble(_corpus(), SPECIAL, length=1024)


def assemble(corpus: list[str], special: tuple[str, ...], length: int) -> PreTrainedTokenizerFast:
    """A BPE learned from the words of `corpus`; `special` holds <s>, </s>, <pad> and others."""
    alphabet = sorted({chr(c) for c in range(33, 127)} | {"\n", MARK})
    draft = Tokenizer(models.BPE())
    draft.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = BpeTrainer(
        vocab_size=5000,
        initial_alphabet=alphabet,
        special_tokens=list(special),
        show_progress=False,
    )
    draft.train_from_iterator(corpus, trainer)
    model = json.loads(draft.to_str())["model"]
    pieces = [t for t, _ in sorted(model["vocab"].items(), key=lambda kv: kv[1])]
    n = len(special)
    vocab = [*special, *(f"<0x{b:02X}>" for b in range(256)), *pieces[n:]]
    bpe = models.BPE(
        vocab={t: i for i, t in enumerate(vocab)},
        merges=[tuple(m) for m in model["merges"]],
        byte_fallback=True,
        fuse_unk=False,
    )
    tok = Tokenizer(bpe)
    tok.normalizer = normalizers.Replace(" ", MARK)
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|[?.:,!]"), "isolated"),
            pre_tokenizers.Metaspace(MARK, prepend_scheme="never", split=True),
        ]
    )
    tok.decoder = decoders.Sequence(
        [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocab.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[t for t in special if t not in ("<s>", "</s>", "<pad>")],
        model_max_length=length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": 40, "width": 40},
        do_center_crop=False,
        crop_size={"height": 40, "width": 40},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )


def save_processor(folder: Path) -> None:
    build_processor(build_tokenizer()).save_pretrained(folder)
