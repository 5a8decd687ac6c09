"""The fields and buttons of the page, from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from errata.io.images import load_image
from errata.ui import html
from errata.ui.choices import AUTOMATIC, Choice
from errata.ui.workbench import ANSWER, Workbench

NOTHING_YET = "Nothing to see yet. After a correction, all answers before and after stand here."
#: fields of a `Request`, in the order in which the page passes them
TYPED = (
    "question", "target", "rephrase", "near", "unrelated", "method", "reach", "subject", "drawing",
    "oracle", "seed",
)  # fmt: skip
#: those that an example fills in
EXAMPLE = ("question", "target", "rephrase", "near", "unrelated", "drawing", "oracle")


class Fields:
    """outputs: whatever a button may change. typed: name of a field of `Request` -> the field."""

    def __init__(self, workbench: Workbench) -> None:
        self.workbench = workbench
        self.examples: Any = None
        gr.HTML(html.head_html(workbench.bb.name))
        with gr.Row(elem_classes="sides"):
            with gr.Column(min_width=300):
                self._asking()
                self._correcting()
            with gr.Column(min_width=300):
                self._seeing()
                self._keeping()
        self.typed = {
            "question": self.question, "target": self.target, "rephrase": self.rephrase,
            "near": self.near, "unrelated": self.unrelated, "method": self.method,
            "reach": self.reach, "subject": self.subject, "drawing": self.drawing,
            "oracle": self.oracle, "seed": self.seed,
        }  # fmt: skip
        seen = [self.picture] if workbench.sees else []
        chosen: list[Any] = [] if self.examples is None else [self.examples]
        self.outputs = [
            *chosen, *seen, *(self.typed[n] for n in EXAMPLE), self.answer, self.line, self.outcome,
            self.in_use, self.notes, self.undo, self.name, self.saved,
        ]  # fmt: skip

    def _asking(self) -> None:
        gr.HTML("<h2>1. Ask</h2>")
        examples = self.workbench.examples
        if examples and all(e.picture is not None for e in examples):
            gr.HTML('<p class="hint">Choose an example, or upload a picture of yours.</p>')
            shown = [load_image(e.picture).resize((120, 120), 0) for e in examples if e.picture]
            self.examples = gr.Gallery(
                shown, label="Examples", show_label=False, format="png", columns=len(shown),
                height="auto", allow_preview=False, buttons=[], interactive=False,
                elem_id="examples", visible=False,
            )  # fmt: skip
        elif examples:
            self.examples = gr.Radio(
                [(e.question, i) for i, e in enumerate(examples)], label="Examples: choose one",
                elem_id="examples", visible=False,
            )  # fmt: skip
        if self.workbench.sees:
            self.picture = gr.HTML(html.picture_html(None), elem_id="picture")
            with gr.Row(elem_classes="tight"):
                self.upload = gr.UploadButton(
                    "Upload a picture", file_types=["image"], type="binary", size="sm",
                    elem_id="upload",
                )  # fmt: skip
                self.remove = gr.Button("Remove the picture", size="sm", elem_id="remove")
        self.question = gr.Textbox(
            label="Question", placeholder="Ask the model something", elem_id="question", max_lines=4
        )
        self.ask = gr.Button("Ask", elem_id="ask")
        self.answer = gr.HTML(elem_id="answer")

    def _correcting(self) -> None:
        gr.HTML("<h2>2. Correct</h2>")
        self.target = gr.Textbox(
            label="The right answer", placeholder="What it should say", elem_id="target",
            max_lines=4,
        )  # fmt: skip
        self.correct = gr.Button("Correct it", variant="primary", elem_id="correct")
        with gr.Accordion("How it is done (you can leave this alone)", open=False):
            self.method = _menu(
                "Method: how the model is changed", self.workbench.methods, "method"
            )
            self.reach = _menu(
                "Reach: which questions it is about", self.workbench.reaches, "reach"
            )
            self.subject = gr.Textbox(
                label="Subject: the name in the question that the fact is about",
                info="Some methods (rome, memit, pmet, alphaedit) need it.", elem_id="subject",
            )  # fmt: skip
        with gr.Accordion("What is asked to see what changed", open=False):
            self.rephrase = gr.Textbox(label="The question in other words", elem_id="rephrase")
            self.near = gr.Textbox(
                label="Nearby questions, which should keep their answer (one a line)", lines=2,
                elem_id="near",
            )  # fmt: skip
            self.unrelated = gr.Textbox(
                label="Unrelated questions (one a line)", lines=2, elem_id="unrelated"
            )
        draws = self.workbench.draws
        with gr.Accordion("What is drawn to see it in a picture", open=draws, visible=draws):
            self.drawing = gr.Textbox(label="Draw", elem_id="drawing")
            self.oracle = gr.Textbox(
                label="The same with the fact stated",
                info=f"{ANSWER} stands for the right answer. This picture is the unedited model's.",
                elem_id="oracle",
            )
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")

    def _seeing(self) -> None:
        gr.HTML("<h2>3. See what changed</h2>")
        self.line = gr.HTML(elem_id="line")
        self.outcome = gr.HTML(html.line_html(NOTHING_YET, "plain"), elem_id="result")
        with gr.Accordion("Compare with another way", open=False):
            self.other_method = _menu("Other method", self.workbench.methods, "other-method")
            self.other_reach = _menu("Other reach", self.workbench.reaches, "other-reach", 1)
            self.compare = gr.Button("Compare the two", elem_id="compare")

    def _keeping(self) -> None:
        gr.HTML("<h2>4. Take it back, or keep it</h2>")
        self.in_use = gr.CheckboxGroup(
            [], label="Corrections (the ticked ones are in use)", visible=False, elem_id="in-use"
        )
        self.notes = gr.HTML(elem_id="notes")
        self.undo = gr.Button("Take the last one back", interactive=False, elem_id="undo")
        keeps = self.workbench.folder is not None
        if not keeps:
            words = "To save and load, start errata ui with --patches FOLDER."
            gr.HTML(html.line_html(words, "plain"))
        with gr.Row(visible=keeps, elem_classes="tight"):
            self.name = gr.Textbox(
                label="Save the last one as", placeholder="a name", elem_id="name"
            )
            self.save = gr.Button("Save", elem_id="save")
        with gr.Row(visible=keeps, elem_classes="tight"):
            self.saved = gr.Dropdown(label="Saved ones", choices=[], elem_id="saved")
            self.load = gr.Button("Load", elem_id="load")


def _menu(label: str, choices: Sequence[Choice], name: str, at: int = 0) -> gr.Dropdown:
    pairs = [(c.label, c.name) for c in choices]
    value = choices[at].name if choices else AUTOMATIC
    return gr.Dropdown(pairs, value=value, label=label, filterable=False, elem_id=name)
