"""MEMIT: writes many facts at once into the down projections of several blocks.

Source: Meng et al., ICLR 2023, code at kmeng01/memit 80426fd. The value z of each edit is searched
at the output of the last edited layer. Then layer by layer, ascending, with the keys K and the
current output H of the model as changed so far and R = (Z - H) / (layers left), the change is
R K^T (lambda C + K K^T)^-1, the optimum of lambda tr(dW C dW^T) + |(W + dW) K - W K - R|^2. C is
the uncentred second moment of the keys of other texts (`errata stats`). The key of an edit is half
the key of its bare prompt, half the mean key over five context templates.

Differences:
- no weight is written; the change is a low-rank delta (A = K^T (...)^-1, B = R) in float32;
- the inverse is a Cholesky factor of lambda C, made once, and a solve of the size of the batch;
- values of all edits are searched in one batch;
- context templates are sampled with a seed from the unedited model;
- lambda is the number of a key's features unless a preset is chosen: the published 15000 is for
  widths of 11000 to 16000, and leaves most of a value unwritten on a narrow FFN;
- targets end with EOS unless a published preset is chosen;
- a `ridge` on C, relative to tr(C)/d, is ours and UniKE's (dead features); 0 in published presets;
- sequential editing may protect the keys of earlier edits (`memory`, as MEMIT_seq of
  jianghoucheng/AlphaEdit f5248d3);
- the residual is divided by the number that a block multiplies the FFN's output by (Granite). Where
  a norm stands behind the FFN (Gemma 2 and 3, OLMo 2, GLM-4V), a value is searched for each layer,
  at the output of its down projection, on top of the layers below;
- the share of each value that is not written is noted (`left`), and said if it is more than half.

`unike_umm`: the settings of gxx27/UniKE f8331cb for Ovis-U1 (layers 6 to 10 for the models on
Qwen2.5-VL): squared decay, steps that grow with |h0|, |dW| <= |W| per batch, weights kept from
batch to batch without memory. It writes bfloat16 weights in place, which a patch does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from errata.algorithms.locate_then_edit.multi_layer import CovarianceUpdate

_PUBLISHED: Mapping[str, Any] = {
    "eos": False, "ridge": 0.0, "lr": 0.5, "weight_decay": 0.5, "clamp": 0.75,
    "mom2_weight": 15000.0,
}  # fmt: skip
_EASYEDIT: Mapping[str, Any] = {"eos": False, "ridge": 0.0, "lr": 0.5, "mom2_weight": 15000.0}


class Memit(CovarianceUpdate):
    """Writes a batch of edits into the down projections of several blocks."""

    name = "memit"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "micro-vlm": {"layers": (4, 5, 6), "token": "last_prompt", "lr": 0.5,
                      "mom2_weight": 150.0},
        "micro-umm": {"layers": (1, 2, 3), "lr": 0.5, "mom2_weight": 500.0},
        "unike_umm": {
            "layers": (4, 5, 6, 7, 8), "lr": 0.1, "eos": False, "decay": "squared",
            "scaled": True, "ridge": 0.05, "mom2_weight": 15000.0, "max_upd_ratio": 1.0,
        },
        "gpt2-xl": {**_PUBLISHED, "layers": (13, 14, 15, 16, 17), "steps": 20,
                    "mom2_weight": 20000.0},
        "gpt-j": {**_PUBLISHED, "layers": (3, 4, 5, 6, 7, 8)},
        "gpt-neox": {**_PUBLISHED, "layers": (6, 7, 8, 9, 10), "steps": 20, "clamp": 0.8,
                     "mom2_weight": 6000.0},
        "llama-3": {**_PUBLISHED, "layers": (4, 5, 6, 7, 8), "lr": 0.1},
        "easyedit": {**_EASYEDIT, "layers": (4, 5, 6, 7, 8)},
    }  # fmt: skip
