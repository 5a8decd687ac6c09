"""The card of a patch: README.md with the metadata that the Hugging Face Hub reads.

Everything that comes from facts or a model's name is written so that it can neither end the
metadata nor become Markdown or HTML.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errata.core.errors import BadSpec
from errata.core.formats.counts import counted
from errata.core.patch import Patch, shape_of
from errata.core.types import Edit

#: the last line of a card of errata; a card without it was written by somebody
MARK = "<!-- Written by errata. Without this line, `errata patch push` keeps the card as it is. -->"
SHOWN = 50
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a card says beside the patch itself.

    place: the folder or repository that the examples load. numbers: how many the patch holds.
    pictures: how many travel with it. state: hash of a prepared state that it needs beside it.
    license: an SPDX name; "" for none. measured: lines about what was measured.
    """

    place: str
    numbers: int
    pictures: int = 0
    state: str = ""
    license: str = ""
    measured: Sequence[str] = ()


def check_license(license: str | None) -> str:
    """The license, or "" for None. Raises BadSpec for what is no SPDX name."""
    if license is None or license == "":
        return ""
    if not isinstance(license, str) or not _LICENSE.fullmatch(license.lower()):
        raise BadSpec(
            f"{str(license)[:100]!r} is not the name of a license. Give its SPDX name, such as "
            "apache-2.0, mit or cc-by-4.0."
        )
    return license.lower()


def code(text: str, most: int = 300) -> str:
    """Any text as a Markdown code span that shows it, quoted as in JSON: one line, no HTML."""
    if len(text) > most:
        text = f"{text[:most]} ..."
    quoted = "".join(_visible(c) for c in json.dumps(text, ensure_ascii=False))
    longest = max(map(len, re.findall("`+", quoted)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence}{quoted}{fence}"


def _visible(c: str) -> str:
    # controls, direction overrides, halves of surrogate pairs, separators of lines and paragraphs
    return f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c


def card(patch: Patch, facts: CardFacts) -> str:
    """The text of README.md."""
    parts = [_about(patch, facts), _facts(patch.edits), _use(patch, facts), _limits(patch, facts)]
    if facts.measured:
        lines = "\n".join(f"- {code(line, 500)}" for line in facts.measured)
        parts.append(f"## Measured\n\n{lines}")
    return "\n\n".join([_metadata(patch, facts), *parts, MARK]) + "\n"


def _metadata(patch: Patch, facts: CardFacts) -> str:
    """The YAML block. Only names of a checked form and fixed words stand in it."""
    base = base_model(patch)
    lines: dict[str, Any] = {
        **({"base_model": base, "base_model_relation": "adapter"} if base else {}),
        "library_name": "errata",
        **({"license": facts.license} if facts.license else {}),
        "pipeline_tag": "image-text-to-text" if _pictured(patch) else "text-generation",
    }
    # JSON texts are YAML too
    text = "".join(f"{k}: {json.dumps(v)}\n" for k, v in lines.items())
    return f"---\n{text}tags:\n- errata\n- knowledge-editing\n---"


def base_model(patch: Patch) -> str:
    """The hub id of the model that the patch is for; "" for a bundled model or a folder."""
    name = patch.header.backbone
    is_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII)
    return name if is_id and not Path(name).exists() else ""


def _model(patch: Patch) -> str:
    """The model's name; of a folder the last part only, since the rest is of somebody's disk."""
    return base_model(patch) or Path(patch.header.backbone).name or "a model without a name"


def _pictured(patch: Patch) -> bool:
    return any(e.prompt.images for e in patch.edits)


def _about(patch: Patch, facts: CardFacts) -> str:
    h, many = patch.header, len(patch.edits) != 1
    below = ", ".join(f"`{re.sub('[^a-z0-9]', '', o)}`" for o in sorted(patch.on_top_of))
    model = [
        f"- model: {code(_model(patch))}{f', revision {code(h.revision)}' if h.revision else ''}",
        f"- fingerprint of the model: `{h.fingerprint}`{f', in {h.dtype}' if h.dtype else ''}",
        f"- editor: {code(h.editor)}, shape of the patch: `{shape_of(patch)}`, seed {h.seed}",
        f"- size: {facts.numbers:,} numbers at {counted(len(patch.sites), 'site')}",
        f"- made: {code(h.created)} with {code(', '.join(_versions(h.versions)))}",
    ]
    if below:
        model.append(f"- Found on top of the patch {below}: apply that one first.")
    if facts.state:
        model.append(
            f"- It needs the prepared state `{facts.state}`, which is not part of it: `errata "
            "prepare` makes one."
        )
    return (
        f"# {counted(len(patch.edits), 'corrected fact')}\n\n"
        f"A patch of errata (`pip install errata`). While it is applied, the model gives the "
        f"answer{'s' * many} below; the model's weights stay as they are, and without the patch it "
        "answers as before. It belongs to one model, and is refused by any other:\n\n"
        + "\n".join(model)
    )


def _versions(versions: Mapping[str, str]) -> list[str]:
    return [f"{name} {number}" for name, number in sorted(versions.items())]


def _facts(edits: Sequence[Edit]) -> str:
    lines = []
    for e in edits[:SHOWN]:
        pictures = len(e.prompt.images)
        with_ = f" ({counted(pictures, 'picture')})" if pictures else ""
        old = f", instead of {code(e.old)}" if e.old else ""
        lines.append(f"- {code(e.prompt.text)}{with_} is answered {code(e.target)}{old}")
    if len(edits) > SHOWN:
        lines.append(f"- and {len(edits) - SHOWN} more (edits.jsonl)")
    return "## Facts\n\n" + "\n".join(lines)


def _use(patch: Patch, facts: CardFacts) -> str:
    """How it is applied, asked and undone. The question is not put into code that is run."""
    name, place = _word(_model(patch), "MODEL"), _word(facts.place, "FOLDER")
    picture = ', "picture.png"' if _pictured(patch) else ""
    option = " --image picture.png" if picture else ""
    asked = f'errata.Prompt.of("your question"{picture})'
    return f"""## Use

```python
import errata

model = errata.load("{name}")
patch = errata.load_patch("{place}", model)
with model.applied(patch):
    print(errata.ask(model, [{asked}])[0].text)
```

```
errata ask {name} "your question"{option} --patch {place}
errata patch verify {name} {place}
```

## Undo

Leave the `with` block, or leave out `--patch`: the model answers as before, bit for bit."""


def _word(text: str, otherwise: str) -> str:
    """A text that can stand in a command as it is, or a word in its place."""
    return text if re.fullmatch(r"[\w./@-]+", text, re.ASCII) else otherwise


def _limits(patch: Patch, facts: CardFacts) -> str:
    lines = [
        "It is meant for the questions above, and for other wordings of them as far as its editor "
        "carries over. Other answers may change too: measure it before you rely on it.",
        "A fact is the claim of whoever made the patch. The model still holds what it learned: a "
        "patch corrects answers, it does not delete knowledge and is no protection.",
    ]
    if _pictured(patch):
        there = f"{facts.pictures} of them are in `images/`" if facts.pictures else (
            "they are not part of the patch"
        )  # fmt: skip
        lines.append(f"Facts are about pictures; {there}.")
    return "## Scope and limits\n\n" + "\n".join(f"- {line}" for line in lines)
