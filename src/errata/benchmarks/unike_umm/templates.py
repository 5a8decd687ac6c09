"""Reasoning prompts for the nine published categories: the published structure, reworded.

Each prompt has a role and the task, three fields (what is drawn, the attribute, the image prompt),
five tagged steps, and ends with the tag of the first step. Only the first step asks for the fact
that an edit changes. No template contains an answer. The last step writes the caption to be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

RECALL, CAPTION = "Knowledge Recall", "Visual Caption"

ROLE = (
    "You plan pictures for an illustrator who draws exactly what a text says. Think step by step "
    "about the image prompt below, then describe the picture."
)
LAST = "Describe the finished picture in two or three sentences, with everything found above."


@dataclass(frozen=True, slots=True)
class Template:
    """`recall` asks for the fact of `s`; `steps` are the tags and tasks of steps 2 to 4."""

    field: str
    label: str
    recall: str
    steps: tuple[tuple[str, str], tuple[str, str], tuple[str, str]]


TEMPLATES: dict[str, Template] = {
    "color": Template(
        "Target object",
        "colour",
        "From what you know, say which colour {s} naturally has.",
        (
            ("Presence", "Say whether the prompt shows {s} itself or something derived from it."),
            ("Colouring", "Give that colour to every part that should have it."),
            ("Other Colours", "Choose colours for everything else, so that it stands out."),
        ),
    ),
    "material": Template(
        "Target object",
        "material",
        "From what you know, say what {s} is made of.",
        (
            ("Surface", "Describe how that material looks: gloss, grain, transparency."),
            ("Behaviour", "Say how it behaves in this scene: how it bends, flows, breaks, shines."),
            ("Contact", "Describe how it meets the things around it."),
        ),
    ),
    "pattern": Template(
        "Target object",
        "surface pattern",
        "From what you know, say which pattern the surface of {s} has.",
        (
            ("Geometry", "Take the pattern apart: its elements, their spacing and direction."),
            ("Mapping", "Lay it onto the object as it is seen here, in perspective."),
            ("Contrast", "Choose a background before which the pattern is clear."),
        ),
    ),
    "shape": Template(
        "Target object",
        "shape",
        "From what you know, say which shape {s} has.",
        (
            ("Outline", "Describe its silhouette and its edges."),
            ("Placement", "Say how an object of that shape stands, lies or hangs in this scene."),
            ("Proportion", "Compare its extent with what is around it."),
        ),
    ),
    "size": Template(
        "Target object",
        "size",
        "From what you know, say how large {s} usually is.",
        (
            ("Comparison", "Compare it with the other things in the scene."),
            ("Impression", "Choose a viewpoint from which this size is evident."),
            ("Detail", "Say which details are seen if it is tiny, or lost if it is a giant."),
        ),
    ),
    "occupation": Template(
        "Subject",
        "occupation",
        "From what you know, say what {s} does for a living.",
        (
            ("Signs", "List what makes that profession visible."),
            ("Setting", "Describe the place where such work is done."),
            ("Person", "Describe posture, dress and tools."),
        ),
    ),
    "location": Template(
        "Subject",
        "location",
        "From what you know, say which city, country or region {s} belongs to.",
        (
            ("Landmarks", "Name what one would recognise that place by."),
            ("Culture", "Add signs of its life: writing, dress, plants, vehicles."),
            ("Composition", "Fit both into the scene of the prompt."),
        ),
    ),
    "creator": Template(
        "Subject",
        "creator",
        "From what you know, say who created, developed or performed {s}.",
        (
            ("Identity", "Describe what that creator is recognised by."),
            ("Work", "Say how the work itself appears in the picture."),
            ("Relation", "Describe how both are shown together."),
        ),
    ),
    "affiliation": Template(
        "Subject",
        "affiliation",
        "From what you know, say which religion, sport or organisation {s} belongs to.",
        (
            ("Symbols", "Name its symbols."),
            ("Places", "Describe the surroundings that go with it."),
            ("Activity", "Say what those who belong to it are seen doing."),
        ),
    ),
}


def reasoning_prompt(category: str, subject: str, image_prompt: str) -> str:
    """The prompt that asks for a rationale; a single line for an unknown category."""
    template = TEMPLATES.get(category)
    if template is None:
        return (
            f"Think step by step about this image prompt, then describe the picture: {image_prompt}"
        )
    steps = [
        (RECALL, template.recall.format(s=subject)),
        *((tag, text.format(s=subject)) for tag, text in template.steps),
        (CAPTION, LAST),
    ]
    lines = [
        ROLE,
        "",
        f"{template.field}: {subject}",
        f"Attribute: {template.label}",
        f'Image prompt: "{image_prompt}"',
        "",
        "Write five steps, each behind its tag:",
        *(f"{i}. [{tag}] {text}" for i, (tag, text) in enumerate(steps, 1)),
        "",
        f"[{RECALL}]",
    ]
    return "\n".join(lines)


def stated_rationale(category: str, subject: str, target: str, image_prompt: str) -> str:
    """A short rationale with the same tags that states `target`."""
    label = TEMPLATES[category].label if category in TEMPLATES else category
    return (
        f"The {label} of {subject} is {target}.\n"
        f"[{CAPTION}] {image_prompt.rstrip('. ')}. The {label} of {subject} is clearly seen to be "
        f"{target}."
    )
