"""Checks a stage of a record: it is complete, and it does not give away the tested answer."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

#: The published keys of one stage.
KEYS = (
    "question",
    "prompt",
    "gt",
    "gt_target",
    "image_prompt",
    "visual_target",
    "vqa_question",
)
LONGEST = 300  # characters of a field: a sentence or two

#: Answers that look the same: no picture can show the difference.
SAME_LOOK: tuple[frozenset[str], ...] = tuple(
    frozenset(line.split(", "))
    for line in (
        "soccer, football, association football",
        "goalkeeper, goaltender, goalie",
        "christianity, catholicism, catholic church, roman catholicism",
        "grey, gray, silver",
        "purple, violet",
        "red, crimson, scarlet",
        "gold, golden",
        "small, tiny, little, miniature, minuscule, petite",
        "large, big, huge, giant, gigantic, enormous, massive, immense, vast, colossal",
        "round, circular",
        "striped, stripes, stripy",
        "dotted, spotted, polka dots, polka dot",
        "wood, wooden",
    )
)
#: Words of one stem that the rule of endings does not find.
IRREGULAR: tuple[frozenset[str], ...] = tuple(
    frozenset(line.split())
    for line in (
        "france french frenchman",
        "spain spanish spaniard",
        "netherlands holland dutch",
        "greece greek",
        "denmark danish dane",
        "norway norwegian",
        "poland polish pole",
        "switzerland swiss",
        "wales welsh",
        "ireland irish",
        "scotland scottish scots",
        "england english",
        "britain british uk",
        "portugal portuguese",
        "finland finnish finn",
        "iceland icelandic",
        "thailand thai",
        "philippines filipino philippine",
        "cyprus cypriot",
        "islam islamic muslim",
        "judaism jewish jew",
        "usa us america american americas",
        "wool woollen woolly",
        "red reddish redder",
        "tan tanned",
    )
)
_ENDINGS = frozenset(
    "s es ed ing er ers or ors ist ists ism ian ians an n ean ese ish i ic y a o e ia ine en ey "
    "ity ly wise like al ali ani vian".split()
) | {""}
#: Words of a longer value that do not give it away.
_SMALL = frozenset(
    "a an the of and in on at to for by with from de la le el st saint company corporation inc "
    "broadcasting broadcaster city county state states united republic kingdom university college "
    "international national group association union".split()
)


@functools.cache
def words(text: str) -> tuple[str, ...]:
    """Lower-case words, without possessive 's and without dots in abbreviations."""
    plain = re.sub(r"(?<=\w)[’']s\b|(?<=\b\w)\.(?=\w\b)", "", text.casefold())
    return tuple(re.findall(r"[^\W_]+", plain))


@functools.cache
def related(a: str, b: str) -> bool:
    """Whether two lower-case words are forms of one: `italy` and `italian`, `stripe` and `striped`.

    Rule: the same first letters (at least four) and two known endings; or both in the table.
    """
    if a == b or any(a in group and b in group for group in IRREGULAR):
        return True
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    same = min(len(a), len(b)) if same is None else same
    return any(a[i:] in _ENDINGS and b[i:] in _ENDINGS for i in range(4, same + 1))


def names(text: str, value: str) -> bool:
    """Whether `text` names `value`: a word of it in any form, its initials, or an equal look.

    Every word of a value counts (`York` names `New York`) except those that many values have: a
    doubtful text is rejected.
    """
    text_words = words(text)
    if any(
        any(related(w, v) for w in text_words)
        for v in words(value)
        if v not in _SMALL or len(words(value)) == 1
    ):
        return True
    initials = "".join(w[0] for w in re.findall(r"[^\W_]+", value) if w[0].isupper()).casefold()
    if len(initials) > 2 and initials in text_words:
        return True
    line = f" {' '.join(text_words)} "
    return any(f" {' '.join(words(alike))} " in line for alike in looks(value))


def looks(value: str) -> frozenset[str]:
    """Values that look like `value`, including itself."""
    key = " ".join(words(value))
    return next((group for group in SAME_LOOK if key in group), frozenset({key}))


def same_look(a: str, b: str) -> bool:
    """Whether no picture can show the difference between `a` and `b`."""
    return bool(looks(a) & looks(b)) or " ".join(words(a)) == " ".join(words(b))


def holds(text: str, subject: str) -> bool:
    """Whether `text` holds the subject, ignoring upper and lower case."""
    return re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", text, re.IGNORECASE) is not None


def shape_problem(stage: Any) -> str | None:
    """Why this is no stage of the schema; None if it is one."""
    if not isinstance(stage, Mapping):
        return "the stage is no JSON object"
    missing, foreign = set(KEYS) - set(stage), set(stage) - set(KEYS)
    if missing or foreign:
        parts = [("lacks", missing), ("has the unknown", foreign)]
        why = " and ".join(f"{what} {', '.join(sorted(some))}" for what, some in parts if some)
        return f"the stage {why}"
    for key in KEYS:
        value = stage[key]
        if not isinstance(value, str):
            return f"{key} is no text"
        if not value.strip() or len(value.splitlines()) != 1 or len(value) > LONGEST:
            return f"{key} is not one line of 1 to {LONGEST} characters"
    return None


def problem(stage: Any, subject: str) -> str | None:
    """Why a stage cannot test an edit of `subject`; None if it can.

    Questions and prompts must hold the subject and must not name an answer in any form.
    """
    if wrong := shape_problem(stage):
        return wrong
    old, target = stage["gt"], stage["gt_target"]
    if same_look(old, target):
        return "old answer and target look the same"
    for key in ("question", "prompt", "image_prompt"):
        if not holds(stage[key], subject):
            return f"{key} does not name the subject"
    for key in ("image_prompt", "prompt", "question", "vqa_question"):
        for what, value in (("target", target), ("old answer", old)):
            if names(stage[key], value):
                return f"{key} names the {what}"
    if re.search(r"[.?!:]\s*$", stage["prompt"]):
        return "prompt is not the beginning of a sentence"
    if "{" in stage["prompt"] or "}" in stage["prompt"]:
        return "prompt has braces"
    for key in ("question", "vqa_question"):
        if not stage[key].rstrip().endswith("?"):
            return f"{key} is no question"
    if not names(stage["visual_target"], target) or "must" not in words(stage["visual_target"]):
        return "visual_target does not say that the target must be seen"
    return None
