"""The kinds of probes: one table of headings, meanings and roles. No torch.

A benchmark may bring a kind of its own: it makes a `ProbeKind` and hands it to its probes
(`Probe(..., kind=MINE.name, custom_kind=MINE)`). The description is written with the probe, so a
run is scored and shown without the benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["target", "locality"]
"""`target`: the answer should become the edit's target. `locality`: it should stay as it was."""

Output = Literal["answer", "rationale", "image"]
"""What the model is asked for: a short answer, a free text, or a generated image."""

Family = Literal["", "edit", "generality", "far_locality", "near_locality"]
"""What the means and `joint` count; "" for kinds that they leave out."""


@dataclass(frozen=True, slots=True)
class ScoreColumn:
    """What a column of scores is called: in a report, in a terminal (`short`), in a sentence."""

    name: str
    heading: str
    meaning: str
    short: str = ""

    @property
    def short_heading(self) -> str:
        return self.short or self.heading


@dataclass(frozen=True, slots=True)
class MeanColumn(ScoreColumn):
    """The mean over some kinds, each with the same weight."""

    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeKind(ScoreColumn):
    """A kind of probe. `label` names it in figures; `groups` are (group, meaning) pairs."""

    label: str = ""
    side: Side = "target"
    output: Output = "answer"
    family: Family = ""
    main: bool = False
    """Asks the edit's own prompt."""
    groups: tuple[tuple[str, str], ...] = ()

    @property
    def drawn(self) -> bool:
        """Whether the model generates an image, which a judge then reads."""
        return self.output == "image"

    @property
    def expects_target(self) -> bool:
        """Whether the answer should be the probe's reference."""
        return self.output == "answer" and self.side == "target"

    @property
    def keeps_answer(self) -> bool:
        """Whether the answer should be the one that was given before the edit."""
        return self.output == "answer" and self.side == "locality"

    def group_meaning(self, group: str) -> str:
        """What a group of this kind is; the kind's meaning where that is not known."""
        return dict(self.groups).get(group, self.meaning)


_WORDINGS = (
    ("seen", "wordings that occur in the model's training data"),
    ("unseen", "wordings that were kept out of the training data"),
)
_REPHRASED = (
    *_WORDINGS,
    ("paraphrase", "the edited prompt behind an unrelated text"),
    ("generation", "other prompts about the subject, which need not ask for the edited fact"),
)
_SOURCES = (
    ("seen", "pictures from sources that the model was trained on"),
    ("unseen", "pictures from sources that were kept out of the training data"),
)
_FOLLOWS = tuple((x, f"the {x} of the new answer") for x in ("capital", "continent", "language"))
_SAME = (
    ("same_subject", "other facts about the edited thing"),
    ("same_attribute", "the edited attribute of other things"),
)
_STAGES = tuple(
    (f"stage{i}", f"about the edited thing in a scene of stage {i}") for i in (1, 2, 3, 4)
)
_FAR = (("far", "questions that share no image, relation or subject with the edit"),)

#: All kinds, in the order of the columns.
_TABLE = (
    ProbeKind(
        "reliability", "Reliability", "The edited question is answered with the target.", "rel",
        label="the edit", family="edit", main=True,
    ),
    ProbeKind(
        "t_generality", "T-generality", "Other wordings of it are answered with the target.",
        "T-gen", label="rephrase", family="generality", groups=_REPHRASED,
    ),
    ProbeKind(
        "m_generality", "M-generality",
        "The same question about other images of the same thing is answered with the target.",
        "M-gen", label="other image", family="generality", groups=_SOURCES,
    ),
    ProbeKind(
        "t_locality", "T-locality", "Unrelated text questions keep their answer.", "T-loc",
        label="far, text", side="locality", family="far_locality", groups=_FAR,
    ),
    ProbeKind(
        "m_locality", "M-locality", "Unrelated questions about images keep their answer.", "M-loc",
        label="far, image", side="locality", family="far_locality", groups=_FAR,
    ),
    ProbeKind(
        "near_locality", "Near locality", "Questions close to the edit keep their answer.", "near",
        label="near", side="locality", family="near_locality",
        groups=(
            ("near1", "the edited question about a thing that differs in one attribute"),
            ("near1_moved", "the same as near1, with another pose, size and light"),
            ("near2", "the edited question about a thing that differs in two attributes"),
            ("neighbour", "the same fact about other named things that look similar"),
            ("same_image", "other questions about the edited image"),
            ("same_answer", "the edited question where the right answer is the old one"),
            *_SAME,
        ),
    ),
    ProbeKind(
        "portability", "Portability", "Questions that follow from the new fact are answered by it.",
        "port", label="what follows", groups=_FOLLOWS,
    ),
    ProbeKind(
        "retention", "Retention", "A fixed panel of unrelated questions keeps its answers.",
        "retain", side="locality",
    ),
    ProbeKind(
        "efficacy", "Efficacy", "The edited prompt, as a completion, is continued by the target.",
        "eff", main=True, groups=(*_WORDINGS, *_STAGES),
    ),
    ProbeKind(
        "reasoning", "Reasoning", "The rationale before an image states the target.", "reason",
        output="rationale", groups=_STAGES,
    ),
    ProbeKind(
        "vqa", "VQA", "The generated image shows the target, as a judge reads it.", "VQA",
        output="image", groups=_STAGES,
    ),
    ProbeKind(
        "i_locality", "Image locality",
        "Generated images of other things show what they showed before.", "I-loc",
        side="locality", output="image",
        groups=(*_SAME, ("unrelated", "other attributes of other things")),
    ),
)  # fmt: skip

KINDS: Mapping[str, ProbeKind] = {kind.name: kind for kind in _TABLE}


def family(*families: Family) -> tuple[str, ...]:
    """The names of the kinds of some families, in the order of the columns."""
    return tuple(kind.name for kind in _TABLE if kind.family in families)


#: Short answers that should be the target; short answers that should stay; generated images.
TARGET_KINDS = frozenset(kind.name for kind in _TABLE if kind.expects_target)
LOCALITY_KINDS = frozenset(kind.name for kind in _TABLE if kind.keeps_answer)
DRAWN_KINDS = frozenset(kind.name for kind in _TABLE if kind.drawn)
#: Kinds that ask the edit's own prompt.
MAIN_KINDS = frozenset(kind.name for kind in _TABLE if kind.main)

_PAPER = family("edit", "generality", "far_locality")

#: Means over kinds, each kind with the same weight.
MEANS: Mapping[str, MeanColumn] = {
    mean.name: mean
    for mean in (
        MeanColumn("mean5", "Mean of 5",
            "Mean of reliability, both generalities and both localities: the papers' five columns.",
            "mean 5", _PAPER),
        MeanColumn(
            "mean6", "Mean of 6",
            "Mean of reliability, both generalities, both localities and near locality.", "mean 6",
            (*_PAPER, *family("near_locality")),
        ),
    )
}  # fmt: skip

JOINT = ScoreColumn(
    "joint",
    "All criteria",
    "Share of edits whose reliability, generality and locality probes are all right.",
    "all",
)


def _columns() -> Iterator[ScoreColumn]:
    """Kinds in the order of the table, a mean behind the last kind that it contains."""
    for kind in _TABLE:
        yield kind
        yield from (mean for mean in MEANS.values() if mean.kinds[-1] == kind.name)
    yield JOINT


#: Kinds, and the scores over several kinds, in the order of the columns.
COLUMNS: Mapping[str, ScoreColumn] = {column.name: column for column in _columns()}


def column_of(name: str, custom: Mapping[str, ProbeKind]) -> ScoreColumn:
    """The column called `name`; a name that nothing describes is its own heading.

    custom: kinds outside this table, by name.
    """
    plain = ScoreColumn(name, name.replace("_", " "), "")
    return COLUMNS.get(name) or custom.get(name) or plain


def label(kind: str, group: str) -> str:
    """What a kind, or one group of it, is called in a figure."""
    spec = KINDS.get(kind)
    word = (spec.label if spec is not None else "") or kind.replace("_", " ")
    group = group.replace("_", " ")
    if word.startswith(group):
        return word
    return group if group.startswith(word) else f"{word}: {group}"
