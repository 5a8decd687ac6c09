"""The tokenizer of micro-umm: a byte-fallback BPE with no unknown token.

Merges are learned from the words of the templates, kept whole, and from *pieces* of names and
values (split at `|` below), so that a third of them have 2 or 3 tokens and many share their first.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from errata.synthetic.shapes import language as lang
from errata.synthetic.shapes.objects import ATTRIBUTES, PARTS, SETTINGS, WHOLE
from tools.micro_vlm.tokenizer import MARK, assemble, parts

SPECIAL = ("<pad>", "<s>", "</s>")
PIECES = (
    "red or|ange yell|ow green cyan blue pur|ple pink disc square tri|angle ring cross bow|tie "
    "plain stri|ped dott|ed big small Nor|land Nor|dale Est|land Est|dale Avaria Quorra Tessaly "
    "Umber Or|lin Or|beck Har|lin Har|beck Tavish Wendover Pym Jask"
)


def _corpus() -> list[str]:
    text = " ".join((*lang.TEMPLATES, *lang.FRAMES, lang.INSTRUCT, lang.GLUE))
    text += " Target Attribute Prompt It shows shaped like a an from made by on beside of whose and"
    text += f" the of a is {lang.KNOWLEDGE} {lang.SETTING} {lang.CAPTION}"
    for mark in ("{n}", "{s}", "{v}", "{t}", "?", ".", ",", ":"):
        text = text.replace(mark, " ")
    words = [*text.split(), *(n for ns in lang.NOUNS.values() for n in ns), *lang.VIEWS]
    words += [s for stage in SETTINGS.values() for s in stage if s]
    words += list(WHOLE)
    pieces = [p for word in PIECES.split() for p in parts(word)]
    firsts, lasts, middle = PARTS
    pieces += [MARK + f for f in firsts] + [*lasts, middle]
    assert {w.replace("|", "") for w in PIECES.split()} == {
        v for vs in ATTRIBUTES.values() for v in vs
    }
    return [w for w in sorted(set(words)) for w in (w, MARK + w)] * 2 + sorted(set(pieces))


def build_tokenizer() -> PreTrainedTokenizerFast:
    return assemble(_corpus(), SPECIAL, length=256)
