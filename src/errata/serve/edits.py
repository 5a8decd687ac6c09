"""Makes an edit that was asked for, and says whether it holds and what else it changed.

One edit at a time, in a thread of its own; questions are answered meanwhile.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.core.editor import Editor
from errata.core.errors import UserError
from errata.core.patch import Patch
from errata.core.state import State
from errata.core.types import Edit, Prompt
from errata.editors import choose
from errata.evaluation.answers import ask_prompts
from errata.evaluation.verify import EditCheck, verify_edits
from errata.serve.catalogue import PatchCatalogue
from errata.serve.failures import Refused

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone
    from errata.core.model.scope import Scope

    #: makes the state of an editor or a scope
    Collect = Callable[[Editor | Scope], State | None]

#: asked before and after an edit, where the request names no other questions
UNRELATED = (
    "What is the capital of France?",
    "How many legs has a spider?",
    "Which colour has snow?",
)
CAP = 64  # most tokens of an answer that is compared


@dataclass(frozen=True)
class WantedEdit:
    """below: the patches that it is made on top of. rephrase: the question in other words. editor:
    None = the one that the server was started with, or one that fits.
    """

    edit: Edit
    below: Patch | None
    rephrase: Prompt
    unrelated: tuple[Prompt, ...]
    editor: str | None = None
    scope: str | None = None
    name: str | None = None
    seed: int = 0

    @property
    def questions(self) -> tuple[Prompt, ...]:
        """What is asked before and after."""
        return (self.edit.prompt, self.rephrase, *self.unrelated)


@dataclass(frozen=True)
class TriedEdit:
    """A patch that is not kept yet. check: whether it holds. before, after: the answers to
    `WantedEdit.questions`.
    """

    patch: Patch
    editor: str
    why: str
    check: EditCheck
    before: tuple[str, ...]
    after: tuple[str, ...]


class EditMaker:
    """editor, state: what edits are made with that name no editor of their own. collect: makes the
    state of an editor or a scope that is cheap to make; without it these are refused.
    """

    def __init__(
        self, bb: Backbone, catalogue: PatchCatalogue, *, editor: Editor | None = None,
        state: State | None = None, most: int = 4, cap: int = CAP, collect: Collect | None = None,
    ) -> None:  # fmt: skip
        self.bb, self.catalogue, self.editor, self.state = bb, catalogue, editor, state
        self.collect = collect
        self.most, self.open, self.cap = most, 0, min(cap, CAP)
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="errata-edit")

    def enter(self) -> None:
        """Counts one more edit. Raises Refused if too many wait."""
        with self.lock:
            if self.open >= self.most:
                raise Refused(
                    429, f"{self.open} edits wait already. Send this one again in 10 s.",
                    code="queue_full", retry_after=10,
                )  # fmt: skip
            self.open += 1

    def leave(self) -> None:
        with self.lock:
            self.open -= 1

    def make(self, wanted: WantedEdit) -> dict[str, Any]:
        """The new patch's name and its verification. Raises Refused, UserError."""
        begun = time.monotonic()
        name = wanted.name or f"edit-{secrets.token_hex(4)}"
        self.catalogue.check_free(name)
        tried = self.find(wanted)
        saved = self.catalogue.add(name, tried.patch)
        target, rephrased, *unrelated = (
            {"question": p.text, "before": b, "after": a}
            for p, b, a in zip(wanted.questions, tried.before, tried.after, strict=True)
        )
        return {
            "patch": name,
            "model": f"{self.catalogue.name}+{name}",
            "saved": saved,
            "editor": tried.editor,
            "why_this_editor": tried.why,
            "seconds": round(time.monotonic() - begun, 3),
            "verification": {
                "holds": tried.check.kept,
                "target": {**target, "wanted": wanted.edit.target},
                "rephrase": {**rephrased, "wanted": wanted.edit.target},
                "unrelated": [{**u, "same": u["before"] == u["after"]} for u in unrelated],
            },
        }

    def find(self, wanted: WantedEdit) -> TriedEdit:
        """The edit, found and asked about, and not kept. Raises UserError."""
        bb, below = self.bb, [] if wanted.below is None else [wanted.below]
        editor, state, why = self._editor(wanted)
        with bb.only(*below):
            before = self.answers(wanted.questions)
            patch = editor.for_backbone(bb).edit(bb, wanted.edit, state, seed=wanted.seed).patch
            (check,) = verify_edits(bb, [wanted.edit], [patch])
            with bb.applied(bb.place(patch)):
                after = self.answers(wanted.questions)
        return TriedEdit(patch, editor.name, why, check, tuple(before), tuple(after))

    def _editor(self, wanted: WantedEdit) -> tuple[Editor, State | None, str]:
        """The editor, its state, and why it was taken."""
        from errata import editor as by_name
        from errata.algorithms.scoped import scoped
        from errata.core.model.scope import scope_of

        state = None
        if wanted.editor is not None:
            editor, why = by_name(wanted.editor), "the request names it"
        elif self.editor is not None:
            editor, state, why = self.editor, self.state, "the server was started with it"
        else:
            editor, why = choose(self.bb, [wanted.edit])
        editor = editor.for_backbone(self.bb)
        cheap = editor.uses_state and not editor.needs_state
        if state is None and self.collect is not None and cheap:
            state = self.collect(editor)
        if wanted.scope is not None:
            scope = scope_of(wanted.scope)
            if self.collect is not None and scope.lacks_state:
                scope = scope.with_state(self.collect(scope))
            editor = scoped(editor, scope)
        return editor, state, why

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        """One by one: a question that cannot be asked has its reason as its answer."""
        answers = []
        for prompt in prompts:
            try:
                answers.append(ask_prompts(self.bb, [prompt], cap=self.cap)[0].text)
            except UserError as e:
                answers.append(f"(cannot be asked: {e})")
        return answers


def rephrased(edit: Edit) -> Prompt:
    """The edited question in the words that are asked where a request gives no others."""
    text = edit.prompt.text.strip()
    first = text[:1].lower() + text[1:]
    return edit.prompt.with_text(f"Please tell me: {first}")
