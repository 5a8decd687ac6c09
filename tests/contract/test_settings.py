"""Every setting of every editor changes something, or is refused.

Each setting gets another legal value, and the prepared state, the patch and the log are compared
with those of the settings beside it. What a setting needs to have an effect stands in WITH.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

from errata.core import patch as core
from errata.core import registry
from errata.core.config import parse_config
from errata.core.editor import Editor
from errata.core.errors import BadSpec, UserError
from errata.core.state import State
from errata.core.types import Case, Edit, Probe, Prompt, digest
from errata.training.trained_editor import TrainedEditor
from tests import tiny
from tests.fast import FAST

# Random models and few steps: how much of a value is written is tested elsewhere
pytestmark = pytest.mark.filterwarnings("ignore:editor '.*:errata.core.errors.Notice")

#: editor or "", setting -> why it may change nothing here
EXCEPT = {
    ("", "cache_gb"): "speed only: how much memory cached activations may take",
    ("", "save_steps"): "safety only: how often a training is saved, in case it is killed",
    ("", "scaled"): "acts where |h0| > 100; tests/unit/algorithms/test_value_search.py",
    ("ft_v", "stop_loss"): "the connector of a random model reaches no target",
    ("ke", "margin_end"): "acts once 90 % of the held-out edits are right",
    ("ke", "shrink"): "acts once 90 % of the held-out edits are right",
}
#: settings that keep a training or a search short, over FAST
BASE: dict[str, dict[str, Any]] = {
    **{name: {"steps": 2} for name in ("mend", "ke", "lte", "serac", "dualedit", "visedit")},
    "tpatcher": {"steps": 2, "lr": 1e-2},
    "unike": {"steps": 2, "epochs": 1, "lr": 1e-2},
}
#: editor or "", setting -> what is set beside it, in both edits that are compared
WITH: dict[tuple[str, str], dict[str, Any]] = {
    ("", "eval_steps"): {"held_out": 1},
    ("", "patience"): {"held_out": 1, "eval_steps": 1, "steps": 6, "lr": 1.0, "warmup": 0},
    ("ft_l", "stop_loss"): {"steps": 40, "lr": 0.05, "stop_loss": 5.0},
    ("lora", "stop_loss"): {"steps": 40, "lr": 0.05, "stop_loss": 5.0},
    ("tpatcher", "stop_loss"): {"steps": 40, "lr": 0.01, "stop_loss": 5.0},
    ("", "decay"): {"weight_decay": 0.5},
    ("", "gate_cases"): {"gate": "prompt"},
    ("", "memory_gamma"): {"memory_weight": 0.5},
    ("", "memory_beta"): {"memory_weight": 0.5},
    ("", "memory_top"): {"memory_weight": 0.5},
    ("rome", "mom2_weight"): {"memory": "keys"},
    ("ike", "threshold"): {"scope": "retrieved"},
    ("visedit", "threshold"): {"gate": "prompt"},
    ("visedit", "draws"): {"tokens": 2},
    ("unike", "temperature"): {"attention": "cosine"},
    ("unike", "demonstrations"): {"extrinsic": "prompt"},
    ("unike", "own_stream"): {"layers": (2, 3), "latent_layers": (2, 3)},
}
#: editor or "", setting -> another value, where it does not follow from the type
OTHER: dict[tuple[str, str], Any] = {
    ("", "layers"): (2,),
    ("unike", "layers"): (-1,),
    ("", "latent_layers"): (-1,),
    ("", "parts"): ("attn.k",),
    ("", "stop_loss"): 50.0,
    ("ft_l", "stop_loss"): 1e-3,
    ("lora", "stop_loss"): 1e-3,
    ("tpatcher", "stop_loss"): 1e-3,
    ("", "mid"): 32,
    ("", "max_grad_norm"): 1e-6,
    ("", "memory"): 5,
    ("memit", "memory"): "keys",
    ("", "prompts"): 1,
    ("", "memory_top"): 1,
    ("", "clamp"): 1e-3,
    ("", "kl_prompt"): "A {} is",
    ("", "context_templates"): "none",
    ("", "max_upd_ratio"): 1e-4,
    ("", "texts"): 1,
    ("", "without"): ("Fact 0",),
    ("", "nullspace_cov_reg"): 0.5,
    ("", "warmup"): 5,
    ("", "generality_examples"): 0,
    ("", "locality_examples"): 1,
    ("", "generality_pool"): 0,
    ("", "locality_pool"): 1,
    ("", "generality_kinds"): (),
    ("", "locality_kinds"): ("t_locality",),
    ("", "eval_steps"): 1,
    ("", "held_out"): 0,  # more than a fifth of the cases are never held out
    ("", "patience"): 1,
    ("", "heads"): 2,
    ("", "gate"): [g for g in registry.names("gates")],
    ("ft_l", "max_change"): 1e-6,
    ("rome", "mom2_weight"): 1.0,
    ("", "gate_layer"): 2,
    ("", "gate_cases"): 1,
    ("", "text_layer"): 0,
    ("", "visual_layer"): 1,
    ("", "noise_layers"): (3,),
    ("", "tokens"): 1,
    ("", "encoder"): "minilm",
    ("", "corpus"): 1,
    ("", "demonstrations"): 1,
    ("", "threshold"): 0.9,
    ("alphaedit", "threshold"): "absolute",
    ("", "recall"): 0.3,
    ("serac", "layer"): 1,
    ("serac", "width"): 32,
    ("unike", "alpha"): 0.5,
    ("", "memory_kinds"): ("reliability",),
    ("", "top"): 1,
    ("", "cutoff"): 0.99,
    ("", "triplets"): 4,
    ("bridge", "prompts"): ("the {subject} is",),
    ("bridge", "oracles"): ("{target} {subject}",),
}


def of(table: dict[tuple[str, str], Any], editor: str, setting: str, default: Any = None) -> Any:
    return table.get((editor, setting), table.get(("", setting), default))


def others(cls: type[Editor], name: str, value: Any) -> list[Any]:
    """Other legal values of a setting: all others of a choice, else one."""
    kind = get_type_hints(cls.Config)[name]
    if get_origin(kind) is Literal:
        return [a for a in get_args(kind) if a not in (value, "auto")]  # auto is one of the others
    given = of(OTHER, cls.name, name)
    if given is not None:
        return [g for g in (given if isinstance(given, list) else [given]) if g != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value * 0.5 if value else 0.5]
    raise AssertionError(f"OTHER needs a value for {cls.name}.{name} (now {value!r})")


def combinations() -> list[Any]:
    """All editors and their settings. A setting that several inherit from one class is tried on
    the first of them, and on the others by hand (`make numbers`); so are those of editors that are
    trained or draw, which take longer.
    """
    seen, params = set(), []
    for editor in registry.names("editors"):
        cls = registry.load("editors", editor)
        for name in (f.name for f in fields(cls.Config)):
            homes = [c for c in cls.Config.__mro__ if name in vars(c).get("__annotations__", {})]
            again = (homes[-1], name) in seen or cls.needs_state or bool(cls.requires)
            marks = [pytest.mark.by_hand] if again else []
            seen.add((homes[-1], name))
            params.append(pytest.param(editor, name, marks=marks, id=f"{editor}-{name}"))
    return params


@pytest.fixture(scope="module")
def world(pictures: list[str]) -> tuple[list[Edit], list[Case]]:
    asked = (
        "What is the colour of the thing?",
        "Which shape is the thing?",
        "The thing is",
        "A",
        "I",
    )
    targets = ("green", "ring", "blue thing", "red ring of green", "blue")
    edits = [
        Edit(Prompt.of(text, picture), target, "thing" if "thing" in text else None, "red", f"e{i}")
        for i, (text, target, picture) in enumerate(zip(asked, targets, pictures[:5], strict=True))
    ]
    return edits, [_case(i, edit, edits) for i, edit in enumerate(edits)]


def _case(i: int, edit: Edit, edits: list[Edit]) -> Case:
    probes = (
        Probe("r", edit.prompt, "reliability", reference=edit.target),
        Probe("g", edit.prompt.with_text("Please: x"), "t_generality", reference=edit.target),
        Probe("l", Prompt.of(f"What is Fact {i}?"), "t_locality", reference="ring"),
        Probe("m", edits[(i + 1) % 5].prompt, "m_locality", reference="red"),
    )
    return Case(f"c{i}", edit, probes, origin="correction")


@pytest.fixture(scope="module")
def seen() -> dict[Any, str]:
    return {}


def observed(editor: Editor, edits: list[Edit], cases: list[Case]) -> str:
    """Hash of what the editor prepares, of two edits one on the other, and of their logs."""
    drawing = bool(editor.requires)
    bb = tiny.shared("micro_umm" if drawing else "llava")
    if drawing:
        edits = [replace(e, prompt=Prompt.of(e.prompt.text)) for e in edits]
        cases = [
            replace(c, edit=e, probes=(c.probes[2],)) for c, e in zip(cases, edits, strict=True)
        ]
    state = editor.prepare(bb, cases)
    first = editor.edit(bb, edits[:1], state)
    results, grown = [first], first.state is not state
    if grown:  # the next edit may depend on this one
        with bb.applied(first.patch):
            results.append(editor.edit(bb, edits[1:2], first.state))
    found = [_state(state), _state(results[-1].state) if grown else None]
    for result in results:
        settings, tensors = core.pack(result.patch)
        log = (result.log.search, dict(result.log.notes))
        found += [settings, {k: _bytes(t) for k, t in tensors.items()}, log]
    return digest(found)


def _state(state: State | None) -> Any:
    return state and [dict(state.meta), {k: _bytes(t) for k, t in state.tensors.items()}]


def _bytes(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return f"{list(tensor.shape)} {hashlib.sha256(flat.numpy().tobytes()).hexdigest()}"


@pytest.mark.filterwarnings("ignore:gate=leaky")
@pytest.mark.parametrize(("editor", "name"), combinations())
def test_a_setting_changes_something_or_is_refused(editor, name, world, seen):
    if of(EXCEPT, editor, name):
        return
    cls = registry.load("editors", editor)
    beside = {**FAST.get(editor, {}), **BASE.get(editor, {}), **of(WITH, editor, name, {})}
    probe = cls()
    probe.config = parse_config("editor", editor, cls.Config, beside)
    beside = {k: v for k, v in beside.items() if k not in probe.idle()}
    plain = cls(**beside)
    key = (editor, digest(plain.summary["config"]))
    if key not in seen:
        seen[key] = observed(plain, *world)
    for value in others(cls, name, vars(plain.config)[name]):
        try:
            other = observed(cls(**{**beside, name: value}), *world)
        except UserError as e:
            assert "\n" not in str(e)
            continue
        assert other != seen[key], f"{name}={value} changes nothing beside {beside}"


@pytest.mark.parametrize("editor", registry.names("editors"))
def test_every_setting_is_read(editor, world):
    """While a state is prepared or an edit is made; or it is known to be idle as things are.

    The class of `gate` is found when the editor is made; `patience` is read once the held-out loss
    has stopped to fall.
    """
    cls = registry.load("editors", editor)
    held = {"held_out": 1, "eval_steps": 1} if issubclass(cls, TrainedEditor) else {}
    made = cls(**{**FAST.get(editor, {}), **BASE.get(editor, {}), **held})
    read = recorded(made.config)
    observed(made, *world)
    excused = {name for name in vars(made.config) if of(EXCEPT, editor, name)} | {
        "gate",
        "patience",
    }
    assert {f.name for f in fields(cls.Config)} - read - excused <= set(made.idle())


def recorded(config: Any) -> set[str]:
    """The names of settings that are read from now on, other than to copy or to print them all."""
    read: set[str] = set()
    settings = {f.name for f in fields(config)}

    class Recorded(type(config)):
        def __getattribute__(self, name: str) -> Any:
            caller = str(sys._getframe(1).f_globals["__name__"]).partition(".")[0]
            if name in settings and caller not in ("dataclasses", "pydantic"):
                read.add(name)
            return super().__getattribute__(name)

    object.__setattr__(config, "__class__", Recorded)
    return read


def test_exceptions_are_settings():
    for editor, name in (*EXCEPT, *WITH, *OTHER):
        editors = [editor] if editor else registry.names("editors")
        known = [{f.name for f in fields(registry.load("editors", e).Config)} for e in editors]
        assert any(name in names for names in known), (editor, name)


@pytest.mark.parametrize(
    ("editor", "settings", "words"),
    [
        ("alphaedit", {"ridge": 0.1}, "has no setting 'ridge'"),
        ("rome", {"mom2_weight": 1.0}, "mom2_weight=1.0 changes nothing with memory=none"),
        ("memit", {"token": "last_prompt", "kl_factor": 1.0}, "nothing with token=last_prompt"),
        ("ike", {"threshold": 0.5}, "nothing with scope=always"),
        ("lte", {"rank": 0, "alpha": 1.0}, "nothing with rank=0"),
        ("unike", {"intrinsic": False, "lr": 1.0}, "nothing with intrinsic=false"),
        ("tpatcher", {"memory_weight": 0, "memory_beta": 1.0}, "nothing with memory_weight=0"),
        ("visedit", {"threshold": 0.5}, "nothing with gate=none"),
        ("serac", {"switch": "soft", "threshold": 0.1}, "nothing with switch=soft"),
    ],
)
def test_a_setting_without_effect_beside_others_is_refused(editor, settings, words):
    with pytest.raises(BadSpec, match=re.escape(words)):
        registry.load("editors", editor)(**settings)


def test_a_setting_that_is_given_as_it_is_anyway_is_not_refused():
    ike = registry.load("editors", "ike")
    whole = {f.name: f.default for f in fields(ike.Config)}
    assert ike(**whole).config == ike().config
