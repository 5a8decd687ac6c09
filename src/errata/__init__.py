"""errata: correct what a trained model knows, measure whether it held, and take it back.

Names are imported when they are first used: `import errata` loads no torch.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from errata._torchvision import watch
from errata._version import __version__

if TYPE_CHECKING:
    from errata.artefacts.merge import merge as merge_patches
    from errata.artefacts.patch_diff import diff_patches
    from errata.artefacts.peft_export import export_peft
    from errata.artefacts.peft_import import import_peft
    from errata.artefacts.squash import squash as squash_patches
    from errata.backbones import load, wrap
    from errata.benchmarks.facts.edits import read_edits
    from errata.core.editor import Editor
    from errata.core.errors import UserError
    from errata.core.measure.benchmark import Benchmark
    from errata.core.measure.metric import Metric
    from errata.core.measure.protocol import Protocol
    from errata.core.model.backbone import Backbone
    from errata.core.model.scope import Scope
    from errata.core.patch import Patch
    from errata.core.state import State
    from errata.core.types import Answer, Case, Edit, Image, Probe, Prompt, Turn
    from errata.evaluation.answers import ask_prompts as ask
    from errata.evaluation.bench import bench
    from errata.evaluation.compare import compare_runs
    from errata.evaluation.distribute.merge import merge_shards
    from errata.evaluation.score import score_run
    from errata.evaluation.verify import verify
    from errata.io.patch_folder import save as save_patch
    from errata.io.patch_hub import load as load_patch
    from errata.patches.rows import Rows
    from errata.patches.stack import Stack

watch()  # costs nothing until something looks for torchvision

_HOME = MappingProxyType(
    {
        "Answer": "errata.core.types:Answer",
        "Backbone": "errata.core.model.backbone:Backbone",
        "Benchmark": "errata.core.measure.benchmark:Benchmark",
        "Case": "errata.core.types:Case",
        "Edit": "errata.core.types:Edit",
        "Editor": "errata.core.editor:Editor",
        "Image": "errata.core.types:Image",
        "Metric": "errata.core.measure.metric:Metric",
        "Patch": "errata.core.patch:Patch",
        "Probe": "errata.core.types:Probe",
        "Prompt": "errata.core.types:Prompt",
        "Protocol": "errata.core.measure.protocol:Protocol",
        "Rows": "errata.patches.rows:Rows",
        "Scope": "errata.core.model.scope:Scope",
        "Stack": "errata.patches.stack:Stack",
        "Turn": "errata.core.types:Turn",
        "UserError": "errata.core.errors:UserError",
        "ask": "errata.evaluation.answers:ask_prompts",
        "bench": "errata.evaluation.bench:bench",
        "compare_runs": "errata.evaluation.compare:compare_runs",
        "diff_patches": "errata.artefacts.patch_diff:diff_patches",
        "export_peft": "errata.artefacts.peft_export:export_peft",
        "import_peft": "errata.artefacts.peft_import:import_peft",
        "load": "errata.backbones:load",
        "load_patch": "errata.io.patch_hub:load",
        "merge_patches": "errata.artefacts.merge:merge",
        "merge_shards": "errata.evaluation.distribute.merge:merge_shards",
        "read_edits": "errata.benchmarks.facts.edits:read_edits",
        "save_patch": "errata.io.patch_folder:save",
        "score_run": "errata.evaluation.score:score_run",
        "squash_patches": "errata.artefacts.squash:squash",
        "verify": "errata.evaluation.verify:verify",
        "wrap": "errata.backbones:wrap",
    }
)


def editor(
    name: str, *, preset: str | None = None, scope: Scope | str | None = None, **settings: Any
) -> Editor:
    """An editor by name. Raises UnknownName, or BadSpec for a wrong preset or setting.

    scope: what decides which questions an edit applies to: a name, or what `errata.scope` returns.
    """
    from errata.core import registry
    from errata.core.errors import BadSpec

    first, colon, rest = str(name).partition(":")
    if colon and name not in registry.names("editors") and first in registry.names("editors"):
        raise BadSpec(
            f"unknown editor '{name}'. A preset is given apart: --editor {first} --preset {rest}, "
            f"in Python editor('{first}', preset='{rest}')."
        )
    instance: Editor = registry.load("editors", name)(preset=preset, **settings)
    if scope is None:
        return instance
    from errata.algorithms.scoped import scoped
    from errata.core.model.scope import scope_of

    return scoped(instance, scope_of(scope) if isinstance(scope, str) else scope)


def scope(name: str, *, state: State | str | None = None, **settings: Any) -> Scope:
    """A scope by name, for `errata.editor(..., scope=...)`. state: a prepared one, or its folder.

    Raises UnknownName, BadSpec for a wrong setting or state, MissingState.
    """
    from errata.core.model.scope import scope_of
    from errata.core.state import State

    loaded = state if state is None or isinstance(state, State) else State.load(state)
    return scope_of(name, loaded, **settings)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'errata' has no attribute '{name}'")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "Answer",
    "Backbone",
    "Benchmark",
    "Case",
    "Edit",
    "Editor",
    "Image",
    "Metric",
    "Patch",
    "Probe",
    "Prompt",
    "Protocol",
    "Rows",
    "Scope",
    "Stack",
    "Turn",
    "UserError",
    "__version__",
    "ask",
    "bench",
    "compare_runs",
    "diff_patches",
    "editor",
    "export_peft",
    "import_peft",
    "load",
    "load_patch",
    "merge_patches",
    "merge_shards",
    "read_edits",
    "save_patch",
    "scope",
    "score_run",
    "squash_patches",
    "verify",
    "wrap",
]
