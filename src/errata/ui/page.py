"""The page itself, in gradio: fields and buttons, and what each button calls."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Any

import gradio as gr

from errata.core.errors import BadEdit, UserError, one_line
from errata.serve.failures import Refused
from errata.ui import html
from errata.ui.fields import EXAMPLE, NOTHING_YET, TYPED, Fields
from errata.ui.workbench import Request, Session, Workbench

#: what a handler changes: component -> its new value or settings
Updates = dict[Any, Any]
#: a button's method: the session and the values of fields -> updates
Act = Callable[..., Updates]


def theme() -> Any:
    """Fonts of the reader's own system: nothing is fetched."""
    fonts = [gr.themes.Font(f) for f in ("system-ui", "-apple-system", "Segoe UI", "sans-serif")]
    mono = [gr.themes.Font(f) for f in ("ui-monospace", "monospace")]
    plain = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=mono)
    # gradio's own colour of this button has too little contrast
    return plain.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
    )


def page_of(workbench: Workbench) -> gr.Blocks:
    """The page of a workbench; `errata.ui.run` serves it."""
    title = f"errata: correct {workbench.bb.name}"
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(600, 600)) as page:
        Wiring(workbench, Fields(workbench), page)
    return page


class Wiring:
    """What each button does, for the session of whoever presses it."""

    def __init__(self, workbench: Workbench, fields: Fields, page: gr.Blocks) -> None:
        self.workbench, self.fields = workbench, fields
        f, on = fields, self._connect
        typed = [f.typed[name] for name in TYPED]
        on(page.load, self.opened, [])
        on(f.ask.click, self.ask, [f.question], f.answer)
        on(f.question.submit, self.ask, [f.question], f.answer)
        on(f.correct.click, self.correct, typed, f.outcome)
        on(f.target.submit, self.correct, typed, f.outcome)
        on(f.compare.click, self.compare, [*typed, f.other_method, f.other_reach], f.outcome)
        on(f.undo.click, self.undo, [f.question], f.answer)
        on(f.save.click, self.save, [f.name])
        on(f.load.click, self.load, [f.saved])
        on(f.in_use.input, self.use, [f.in_use])
        if workbench.sees:
            on(f.upload.upload, self.upload, [f.upload])
            on(f.remove.click, self.remove, [])
        if isinstance(f.examples, gr.Gallery):
            self._connect_gallery(f.examples)
        elif f.examples is not None:
            on(f.examples.input, self.choose, [f.examples])

        def left(request: gr.Request) -> None:
            workbench.forget(_visitor(request))

        page.unload(left)

    def _connect(self, event: Any, act: Act, inputs: list[Any], busy: Any = None) -> None:
        """busy: where it is shown that the model works."""

        def handler(request: gr.Request, *values: Any) -> Updates:
            return self._run(act, request, *values)

        self._listen(event, handler, inputs, busy)

    def _connect_gallery(self, gallery: gr.Gallery) -> None:
        def handler(request: gr.Request, event: gr.SelectData) -> Updates:
            return self._run(self.choose, request, event.index)

        self._listen(gallery.select, handler, [], None)

    def _listen(self, event: Any, handler: Any, inputs: list[Any], busy: Any) -> None:
        event(
            handler, inputs, self.fields.outputs, api_visibility="private", concurrency_limit=1,
            concurrency_id="model", show_progress="hidden" if busy is None else "full",
            show_progress_on=busy,
        )  # fmt: skip

    def _run(self, act: Act, request: gr.Request, *values: Any) -> Updates:
        """What changes in the page; of a mistake, one line that says what to do."""
        try:
            return {self.fields.line: "", **act(self._session(request), *values)}
        except Exception as error:
            return {self.fields.line: html.line_html(_said(error), "bad")}

    def _session(self, request: gr.Request) -> Session:
        return self.workbench.session(_visitor(request))

    # -- what the buttons do ------------------------------------------------------------------

    def opened(self, session: Session) -> Updates:
        updates = {**self._picture(session), **self._kept(session)}
        if self.fields.examples is not None:
            # shown last: gradio loses the answer to a click that comes while the page opens
            updates[self.fields.examples] = gr.update(visible=True)
        return updates

    def choose(self, session: Session, number: int | None) -> Updates:
        if number is None:
            return {}
        filled = session.choose(int(number))
        values = {
            self.fields.typed[n]: getattr(filled, n) for n in EXAMPLE if n in self.fields.typed
        }
        return {**values, **self._picture(session), self.fields.answer: ""}

    def upload(self, session: Session, data: bytes | None) -> Updates:
        if data is None:
            return {}
        session.upload(data)
        return {**self._picture(session), self.fields.answer: ""}

    def remove(self, session: Session) -> Updates:
        session.remove_picture()
        return {**self._picture(session), self.fields.answer: ""}

    def ask(self, session: Session, question: str) -> Updates:
        return {self.fields.answer: self._answer(session, question)}

    def correct(self, session: Session, *typed: Any) -> Updates:
        request = _request(typed)
        outcome = session.correct(request)
        return {
            self.fields.outcome: html.outcome_html(outcome),
            self.fields.answer: self._answer(session, request.question),
            **self._kept(session),
        }

    def compare(self, session: Session, *typed: Any) -> Updates:
        *first, method, reach = typed
        outcome = session.compare(_request(first), method, reach)
        line = html.line_html("Two ways compared. Neither is in use: choose one above.", "plain")
        return {self.fields.outcome: html.outcome_html(outcome), self.fields.line: line}

    def undo(self, session: Session, question: str) -> Updates:
        gone = session.undo()
        answer = self._answer(session, question) if question.strip() else ""
        return {
            self.fields.line: html.line_html(f"Taken back: {gone.words}", "good"),
            self.fields.outcome: html.line_html(NOTHING_YET, "plain"),
            self.fields.answer: answer,
            **self._kept(session),
        }

    def save(self, session: Session, name: str) -> Updates:
        saved = session.save(name)
        return {
            self.fields.line: html.line_html(f"Saved as {saved.saved}: {saved.words}", "good"),
            self.fields.name: "",
            **self._kept(session),
        }

    def load(self, session: Session, name: str | None) -> Updates:
        loaded = session.load(name or "")
        line = html.line_html(f"Loaded and in use: {loaded.words}", "good")
        return {self.fields.line: line, **self._kept(session)}

    def use(self, session: Session, numbers: list[int]) -> Updates:
        session.use([int(n) for n in numbers])
        return self._kept(session)

    # -- parts of the page --------------------------------------------------------------------

    def _answer(self, session: Session, question: str) -> str:
        said = session.ask(question)
        return html.answer_html(said, session.bb.name, len(session.live))

    def _picture(self, session: Session) -> Updates:
        if not self.workbench.sees:
            return {}
        return {self.fields.picture: html.picture_html(session.picture)}

    def _kept(self, session: Session) -> Updates:
        """The corrections of the session, and what is in the folder."""
        corrections = session.corrections
        lines = "".join(html.line_html(note, "bad") for note in session.notes())
        names = self.workbench.saved()
        return {
            self.fields.in_use: gr.CheckboxGroup(
                choices=[(c.label, c.number) for c in corrections],
                value=[c.number for c in corrections if c.on],
                visible=bool(corrections),
            ),
            self.fields.notes: lines,
            self.fields.undo: gr.Button(interactive=bool(corrections)),
            self.fields.saved: gr.Dropdown(choices=names, value=names[0] if names else None),
        }


def _request(typed: Any) -> Request:
    """From the values of the fields of TYPED. Raises BadEdit."""
    values = {n: "" if v is None else v for n, v in zip(TYPED, typed, strict=True)}
    seed = values.pop("seed") or 0
    if seed != int(seed) or not 0 <= seed < 2**63:
        raise BadEdit(f"the seed is {seed}. Give a whole number from 0 on.")
    return Request(seed=int(seed), **values)


def _visitor(request: gr.Request) -> str:
    return str(request.session_hash)


def _said(error: Exception) -> str:
    """One line for the reader; the place of a bug goes to the terminal."""
    if isinstance(error, Refused):
        return error.message
    if isinstance(error, UserError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    what = f"{type(error).__name__}: {one_line(error)}"
    return f"This is a bug of errata ({what}). The terminal says where."
