"""What an editor is: how an edit is found.

An editor never writes a weight and never sees a concrete backbone class. It returns a patch that
holds only the increment over whatever is applied when it is called.
"""

from __future__ import annotations

import re
import time
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, ClassVar

from errata.core.config import current_names, made_with, parse_config
from errata.core.errors import (
    BadBackbone,
    BadEdit,
    BadSpec,
    MissingState,
    Notice,
)
from errata.core.files import versions
from errata.core.formats.validation import whole_number
from errata.core.hooks.hook import flat_on_row
from errata.core.hooks.modes import in_ordinary_modes
from errata.core.measure.metric import spelled
from errata.core.model.backbone import Backbone, check_backbone
from errata.core.model.needs import Needs
from errata.core.patch import Header, Patch, parts_of, same_prompt, tops
from errata.core.state import PrepareContext, State
from errata.core.text import normalise
from errata.core.types import Case, Edit, brief


@dataclass(frozen=True)
class EditRequest:
    """Edits to make: those of groups[i] in one patch, with states[i]; all draws come from `seed`.

    The groups are independent of each other. Iterating gives (group, state). Raises BadEdit for an
    edit that no editor can make.
    """

    groups: tuple[tuple[Edit, ...], ...]
    states: tuple[State | None, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        assert len(self.groups) == len(self.states), (len(self.groups), len(self.states))
        for _, edit in self.edits:
            check_edit(edit)
        whole_number("seed", self.seed)

    @classmethod
    def of(
        cls,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None] | None = None,
        seed: int = 0,
    ) -> EditRequest:
        """A request from any sequences; without `states` no group has one."""
        return cls(tuple(map(tuple, groups)), tuple(states or [None] * len(groups)), seed)

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[tuple[tuple[Edit, ...], State | None]]:
        return zip(self.groups, self.states, strict=True)

    @property
    def edits(self) -> list[tuple[int, Edit]]:
        """(group, edit) of all groups, in order."""
        return [(g, e) for g, group in enumerate(self.groups) for e in group]

    @property
    def prepared(self) -> list[State]:
        """The states, for an editor that works from one (`Editor` refuses a request without)."""
        states = [s for s in self.states if s is not None]
        assert len(states) == len(self.states), "an editor that uses a state was given none"
        return states

    def take(self, index: Sequence[int]) -> EditRequest:
        """The groups at `index` as a request."""
        return EditRequest(
            tuple(self.groups[i] for i in index), tuple(self.states[i] for i in index), self.seed
        )


@dataclass(frozen=True)
class EditLog:
    """How the patch of a group was found.

    steps, loss, reached: updates made, last loss of the edits, whether the search met its goal;
    None where nothing was searched. notes: JSON-ready, saved in the header of the patch.
    """

    steps: float | None = None
    loss: float | None = None
    reached: bool | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def search(self) -> dict[str, Any]:
        """The numbers of the search, for `timing.json`; {} if nothing was searched."""
        if self.steps is None:
            return {}
        return {"steps": self.steps, "loss": self.loss, "reached": self.reached}


@dataclass(frozen=True)
class EditResult:
    """What an editor returns for one group of edits.

    patch: the change, on top of what is applied. state: for the next edit. log: of the search.
    """

    patch: Patch
    state: State | None = None
    log: EditLog = EditLog()

    def __repr__(self) -> str:
        found = ", ".join(f"{k} {v}" for k, v in self.log.search.items() if v is not None)
        return f"EditResult({self.patch!r}{f', {found}' if found else ''})"


class Editor(Needs):
    """Base of all editors. Subclasses implement `find`, and `learn` or `train` if they use a state.

    Settings are the nested frozen `Config`; settings of papers are named presets.
    """

    plugin_kind: ClassVar[str] = "editors"
    name: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: preset -> pattern of the last part of the hub ids whose model it was published for
    preset_models: ClassVar[Mapping[str, str]] = {}
    #: `prepare` is expensive: the user runs it and passes the state
    needs_state: ClassVar[bool] = False
    #: settings that a state depends on; a state made with others is refused
    state_settings: ClassVar[tuple[str, ...]] = ()
    #: name of its states, if several editors use the same ones; "" = the editor's name
    state_name: ClassVar[str] = ""
    #: a cheap state is stored in ERRATA_HOME between runs
    keeps_state: ClassVar[bool] = False
    #: `train` has work for workers (`PrepareContext.mapped`)
    in_chunks: ClassVar[bool] = False
    #: hint for the MissingState error: how to run without a state
    without_state: ClassVar[str] = ""
    #: edits that the method can make: `text` (no image), `image`
    modalities: ClassVar[frozenset[str]] = frozenset({"text", "image"})
    #: capabilities that the model needs, such as `draw`; see `Backbone.capabilities`
    requires: ClassVar[frozenset[str]] = frozenset()
    #: place among the editors that are tried when the user names none, from 1; 0 = never chosen
    choice: ClassVar[int] = 0

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings."""

    def __init__(self, preset: str | None = None, **passed: Any) -> None:
        if preset is not None and preset not in self.presets:
            presets = ", ".join(sorted(self.presets)) or "none"
            raise BadSpec(f"editor '{self.name}' has no preset '{preset}'. It has: {presets}.")
        self.preset = preset
        self.passed = current_names(self.Config, passed)
        chosen = current_names(self.Config, self.presets.get(preset or "", {}))
        self.config: Any = parse_config("editor", self.name, self.Config, {**chosen, **self.passed})
        self._refuse_idle(chosen)

    def __repr__(self) -> str:
        chosen = {} if self.preset is None else {"preset": self.preset}
        given = "".join(f", {k}={v!r}" for k, v in {**chosen, **self.passed}.items())
        return f"{type(self).__name__}({self.name!r}{given})"

    def idle(self) -> Mapping[str, str]:
        """Settings that change nothing, as the others are: name -> why, as in "memory_weight=0".

        Passing one of them another value than it has anyway is refused. A subclass adds its own
        to those of its base.
        """
        return {}

    def _refuse_idle(self, chosen: Mapping[str, Any]) -> None:
        """Raises BadSpec for a passed setting that would change nothing."""
        idle = self.idle() if self.passed else {}
        before = parse_config("editor", self.name, self.Config, chosen) if idle else None
        for name in self.passed:
            if name in idle and vars(self.config)[name] != vars(before)[name]:
                raise BadSpec(
                    f"editor '{self.name}': {name}={self.passed[name]} changes nothing with "
                    f"{idle[name]}. Leave it out, or change the other setting."
                )

    def for_backbone(self, backbone: Backbone) -> Editor:
        """The same editor with the preset named after the backbone, unless a preset was chosen."""
        preset = self.preset_for(backbone.name) if self.preset is None else None
        return self if preset is None else type(self)(preset=preset, **self.passed)

    @classmethod
    def preset_for(cls, model: str) -> str | None:
        """The preset that is named after a model, or was published for the one of that hub id."""
        if model in cls.presets:
            return model
        last = model.rstrip("/").rpartition("/")[2]
        patterns = ((p, m) for p, m in cls.preset_models.items() if p in cls.presets)
        return next((p for p, m in patterns if re.fullmatch(m, last, re.IGNORECASE)), None)

    @property
    def summary(self) -> dict[str, Any]:
        """The preset, the settings that the user passed, and all settings (`config`)."""
        return {"preset": self.preset, "passed": self.passed, "config": _plain(self.config)}

    @property
    def uses_state(self) -> bool:
        """Whether the editor, with its settings, works from a prepared state."""
        return self.needs_state

    @in_ordinary_modes
    def prepare(
        self,
        backbone: Backbone,
        cases: Sequence[Case],
        *,
        seed: int = 0,
        work: PrepareContext | None = None,
    ) -> State | None:
        """The state that the editor learns from training cases; None if it uses none.

        With a folder in `work`, a killed training resumes from its checkpoint.
        """
        editor = self.for_backbone(backbone)
        editor.check_model(backbone)
        work = work or PrepareContext()
        if not editor.uses_state:
            return None
        work.check(editor)
        state = editor.train(backbone, cases, seed=seed, work=work)
        return backbone.marked(state, editor.settings_of_state())

    def learn(self, backbone: Backbone, cases: Sequence[Case], *, seed: int) -> State | None:
        """Makes the state; `prepare` adds the model and the settings that it is valid for."""
        return None

    def train(
        self, backbone: Backbone, cases: Sequence[Case], *, seed: int, work: PrepareContext
    ) -> State | None:
        """As `learn`, with checkpoints and progress; see `errata.training.loop`."""
        return self.learn(backbone, cases, seed=seed)

    def shipped_state(self, backbone: Backbone) -> State | None:
        """The state that ships with the model and was made with the editor's settings."""
        settings = self.for_backbone(backbone).settings_of_state()
        shipped = backbone.shipped_states(self.state_name or self.name)
        return next((s for s in shipped if self._made_with(s) == settings), None)

    def _made_with(self, state: State) -> dict[str, Any]:
        """The settings that a state was made with, under their present names."""
        return made_with(self.Config, state.settings)

    def settings_of_state(self) -> dict[str, Any]:
        """The settings that the editor's state depends on."""
        config = _plain(self.config)
        return {name: config[name] for name in self.state_settings}

    @abstractmethod
    def find(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        """One result per group. The edits of a group are made jointly, groups are independent.

        What is applied when it is called is the model to be edited.
        """

    def edit(
        self,
        backbone: Backbone,
        edits: Edit | Sequence[Edit],
        state: State | None = None,
        *,
        seed: int = 0,
    ) -> EditResult:
        """One patch for all the edits, or for one, on top of what is applied."""
        return self._headed(backbone, EditRequest.of([edits_of(edits)], [state], seed))[0]

    def edit_rows(
        self,
        backbone: Backbone,
        edits: Edit | Sequence[Edit],
        states: Sequence[State | None] | None = None,
        *,
        seed: int = 0,
    ) -> list[EditResult]:
        """One independent patch per edit; edit i is made on top of row i of what is applied."""
        return self.edit_groups(backbone, [[e] for e in edits_of(edits)], states, seed=seed)

    def edit_groups(
        self,
        backbone: Backbone,
        groups: Sequence[Sequence[Edit]],
        states: Sequence[State | None] | None = None,
        *,
        seed: int = 0,
    ) -> list[EditResult]:
        """One independent patch per group of joint edits."""
        request = EditRequest.of([edits_of(group) for group in groups], states, seed)
        return self._headed(backbone, request)

    @in_ordinary_modes
    def _headed(self, backbone: Backbone, request: EditRequest) -> list[EditResult]:
        """As `find`, with the model's preset, the shipped state, and headers on the patches."""
        check_backbone(backbone)
        editor = self.for_backbone(backbone)
        if editor is not self:
            return editor._headed(backbone, request)
        self.check_model(backbone)
        if self.uses_state and any(s is None for s in request.states):
            shipped = self.shipped_state(backbone)
            states = tuple(shipped if s is None else s for s in request.states)
            request = replace(request, states=states)
        for state in {id(s): s for s in request.states}.values():
            self._check_state(backbone, state)
        for _, edit in request.edits:
            check_target(backbone, edit)
        _warn_of_contradictions(request)
        groups = tuple(tuple(map(backbone.hashed, group)) for group in request.groups)
        request = replace(request, groups=groups)
        stack = backbone.hooks.stack
        with backbone.in_edit():
            results = self.find(backbone, request)
        fingerprint = backbone.fingerprint()
        for row, ((group, state), result) in enumerate(zip(request, results, strict=True)):
            header = self._header(backbone, fingerprint, state, request.seed)
            below = sorted(tops(flat_on_row(stack, row)))
            on_top = {"on_top_of": below} if below else {}
            header = replace(header, notes={**header.notes, **on_top, **result.log.notes})
            for part in (*parts_of(result.patch), result.patch):
                part.with_header(header, group).requires_grad_(False)
        return results

    def check_model(self, backbone: Backbone) -> None:
        """Raises BadBackbone for a model that cannot do what the search needs."""
        lacking = sorted(self.requires - backbone.capabilities)
        if lacking:
            raise BadBackbone(
                f"editor '{self.name}' needs a model that can {' and '.join(lacking)}; "
                f"{backbone.name} can {', '.join(sorted(backbone.capabilities))}. Choose another "
                "model or another --editor."
            )
        if any(p.is_inference() for p in backbone.model.parameters()):
            raise BadBackbone(
                f"the weights of {backbone.name} were made under torch.inference_mode(), where no "
                "gradients can be taken. Make the model outside of it."
            )

    def check_fit(self, backbone: Backbone, state: State | None = None) -> None:
        """Raises what every edit of this model would raise."""
        editor = self.for_backbone(backbone)
        editor.check_model(backbone)
        for site in editor.edited_sites(backbone):
            backbone.site(site)
        if editor.needs_state or state is not None:
            editor._check_state(backbone, state or editor.shipped_state(backbone))

    def edited_sites(self, backbone: Backbone) -> Sequence[str]:
        """The sites that an edit changes, as far as they follow from the settings alone."""
        return ()

    def unfit(self, backbone: Backbone, edits: Sequence[Edit]) -> str | None:
        """Why the editor cannot make these edits of this model as they are, or None if it can."""
        lacking = sorted(self.requires - backbone.capabilities)
        if lacking:
            return f"needs a model that can {' and '.join(lacking)}"
        if self.uses_state:
            return "needs a prepared state"
        other = sorted({e.modality for e in edits} - self.modalities)
        if other:
            return f"edits no {other[0]} facts"
        missing = [s for s in self.edited_sites(backbone) if s not in backbone.hooks.sites]
        return f"changes {missing[0]}, which this model does not have" if missing else None

    def _check_state(self, backbone: Backbone, state: State | None) -> None:
        """Raises MissingState, FingerprintMismatch or BadSpec."""
        if state is not None and not isinstance(state, State):
            raise BadSpec(
                f"a state is given as {brief(state)}. Load one with errata.core.state.State.load."
            )
        if state is None:
            if self.uses_state:
                raise MissingState(
                    f"editor '{self.name}', as it is set, works from a state: errata prepare "
                    f"{backbone.name} --editor {self.name} --benchmark NAME@train --out DIR, then "
                    f"pass --state DIR. {self.without_state}"
                )
            return
        backbone.check_state(state, f"the state of '{self.name}'")
        backbone.check_style(state.style, f"the state of '{self.name}'")
        now, then = self.settings_of_state(), self._made_with(state)
        idle = self.idle()
        other = [k for k in now if k not in idle and k in then and then[k] != now[k]]
        if other:
            raise BadSpec(
                f"the state of '{self.name}' was made with {other[0]}={then[other[0]]}, "
                f"now it is {now[other[0]]}. Prepare it again, or set it as it was."
            )

    def _header(
        self, backbone: Backbone, fingerprint: str, state: State | None, seed: int
    ) -> Header:
        return Header(
            editor=self.name,
            arguments={"preset": self.preset, **self.passed},
            backbone=backbone.name,
            revision=backbone.revision,
            fingerprint=fingerprint,
            dtype=str(backbone.dtype).removeprefix("torch."),
            state=(state.origin or state.digest()) if state is not None else "",
            seed=seed,
            versions=versions(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            notes={"style": backbone.style},
            config=_plain(self.config),
        )


def edits_of(edits: Any) -> list[Edit]:
    """The edits of a sequence, or one edit. Raises BadEdit for anything else."""
    one = isinstance(edits, (Edit, str, bytes, Mapping)) or not isinstance(edits, Iterable)
    listed = [edits] if one else list(edits)
    for edit in listed:
        if not isinstance(edit, Edit):
            raise BadEdit(f"an edit is given as {brief(edit)}. Give errata.Edit(prompt, target).")
    if not listed:
        raise BadEdit("there is nothing to edit. Give an errata.Edit, or a list of them.")
    return listed


def check_edit(edit: Edit) -> None:
    """Raises BadEdit for an edit that no editor can make."""
    if not normalise(edit.target):
        raise BadEdit(
            f"edit '{edit.id or edit.prompt.text}' has an empty target ({edit.target!r}). "
            "Give the answer it should have."
        )
    if not edit.prompt.text.strip():
        raise BadEdit(f"edit '{edit.id}' has an empty prompt. Give the question to be answered.")
    if edit.prompt.history:
        raise BadEdit(
            f"edit '{edit.id or edit.prompt.text}' is about a question within a chat. Edit the "
            "question alone; it may then be asked within any chat."
        )


def check_target(backbone: Backbone, edit: Edit) -> None:
    """Raises BadEdit for a target that the model cannot write, so that no answer can be it."""
    ids = backbone.answer_ids(edit.target, edit.prompt)
    text = backbone.decode(ids)
    if not spelled(text, edit.target):
        raise BadEdit(
            f"edit '{edit.id or edit.prompt.text}' has the target {edit.target[:80]!r}, which "
            f"{backbone.name} can only write as {text[:80]!r}. Give a target that its tokenizer "
            "knows."
        )


def contradiction(edits: Sequence[Edit]) -> tuple[Edit, Edit] | None:
    """Two of the edits that want different answers to the same question."""
    by_text: dict[str, list[Edit]] = {}
    for edit in edits:
        for earlier in by_text.setdefault(edit.prompt.text, []):
            other = normalise(earlier.target) != normalise(edit.target)
            if other and same_prompt(earlier.prompt, edit.prompt):
                return earlier, edit
        by_text[edit.prompt.text].append(edit)
    return None


def _warn_of_contradictions(request: EditRequest) -> None:
    for group in request.groups:
        found = contradiction(group) if len(group) > 1 else None
        if found is not None:
            warnings.warn(
                f"'{found[0].prompt.text[:60]}' is to be answered '{found[0].target[:60]}' and "
                f"'{found[1].target[:60]}' by one patch: not both can hold.",
                Notice,
                stacklevel=4,
            )


def _plain(config: Any) -> Any:
    return _adapter(config.__class__).dump_python(config, mode="json")


@cache
def _adapter(kind: Any) -> Any:
    """Cached: every patch is written with its settings, and an adapter takes a millisecond."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
