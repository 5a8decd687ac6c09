"""The settings of a drawing: steps, guidance, size, and whatever else the pipeline's call takes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from errata.core.errors import BadSpec

#: setting -> what calls name it, in order of preference
NAMES: Mapping[str, tuple[str, ...]] = {
    "steps": ("num_inference_steps",),
    "guidance": ("true_cfg_scale", "text_guidance_scale", "guidance_scale"),
    "negative": ("negative_prompt",),
}
#: arguments of a call that errata sets itself
_OURS = (
    *("prompt", "generator", "num_images_per_prompt", "output_type", "return_dict", "latents"),
    *("callback_on_step_end", "callback_on_step_end_tensor_inputs", "height", "width"),
)


def arguments(call: Callable[..., Any], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keyword arguments of a call for the settings that were given. Raises BadSpec.

    `size` is taken as it is: a pipeline that rounds sizes is told not to.
    """
    taken = inspect.signature(call).parameters
    open_ = [k for k in taken if k not in _OURS and "embeds" not in k and k != "self"]
    out: dict[str, Any] = {}
    for key, value in given.items():
        if key == "size":
            _check_number("size", value, whole=True)
            out |= {"height": value, "width": value}
            if "use_resolution_binning" in taken:
                out["use_resolution_binning"] = False
            continue
        names = [n for n in NAMES.get(key, (key,)) if n in taken]
        if not names or names[0] in _OURS:
            close = difflib.get_close_matches(key, open_, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise BadSpec(
                f"{name} draws without a setting '{key}'.{hint} It takes: {', '.join(open_)}."
            )
        if key in ("steps", "guidance"):
            _check_number(key, value, whole=key == "steps")
        out[names[0]] = value
    return out


def _check_number(key: str, value: Any, *, whole: bool) -> None:
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or value < (1 if whole else 0):
        kind = "a whole number from 1" if whole else "a number from 0"
        raise BadSpec(f"the setting '{key}' of a drawing is {kind}, not {value!r}.")
