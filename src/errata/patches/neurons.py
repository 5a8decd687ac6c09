"""Neurons: extra key-value pairs beside an FFN, y += act(x K + b) V (T-Patcher, UniKE intrinsic).

A gated FFN gets o = act(x K_g + b_g) * (x K_u + b_u); a plain one o = act(x K + b). `shared` [o] is
a direction that every value gets on top (UniKE Eq. 6: V + beta zeta'), which adds (sum_j o_j)
shared. Arithmetic in float32.

Shapes: x [B, T, n] -> y [B, T, d]; key, up [R?, n, e], their biases [R?, e], value [R?, e, d];
e neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from errata.core.patch import Patch
from errata.core.ports import Ctx
from errata.patches._rows import padded, per_row, picked

ACTIVATIONS = ("silu", "relu", "gelu", "gelu_tanh")


def activation(name: str, x: Tensor) -> Tensor:
    if name == "gelu_tanh":
        return nn.functional.gelu(x, approximate="tanh")
    return getattr(nn.functional, name)(x)  # type: ignore[no-any-return]


class Neurons(Patch):
    """Extra neurons at `text.{i}.mlp` sites."""

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Tensor]],
        *,
        act: str = "silu",
        rows: int | None = None,
    ) -> None:
        """`parts`: site -> {"key", "key_bias", "value"}.

        A gated FFN also has "up" and "up_bias"; "shared" is optional.
        """
        super().__init__(tuple(parts))
        assert act in ACTIVATIONS, act
        self.act, self.rows = act, rows
        self.names = {site: f"p{i}" for i, site in enumerate(parts)}
        self.parts_ = nn.ModuleDict(
            {
                self.names[site]: nn.ParameterDict(
                    {
                        k: v if isinstance(v, nn.Parameter) else nn.Parameter(v.detach().float())
                        for k, v in tensors.items()
                    }
                )
                for site, tensors in parts.items()
            }
        )

    def part(self, site: str) -> dict[str, nn.Parameter]:
        part = self.parts_[self.names[site]]
        assert isinstance(part, nn.ParameterDict)
        return dict(part.items())

    def site_of(self, tensor: str) -> str:
        by_name = {v: k for k, v in self.names.items()}
        return by_name[tensor.split(".")[1]]

    def preactivations(self, site: str, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """[..., e] key pre-activations; x [R?, m, n]."""
        part = self.part(site)
        key = {k: (p if rows is None else p[rows]) for k, p in part.items()}
        return x.float() @ key["key"] + _lift(key["key_bias"])

    def at(self, site: str, x: Tensor, y: Tensor, ctx: Ctx) -> Tensor:
        part = self.part(site)
        x32 = x.float()
        if self.rows is None:
            change = self._run(x32, part)
        else:
            change = per_row(
                x32, ctx.rows_of(site, x), self.rows, lambda v, i: self._run(v, picked(part, i))
            )
        return y + change.to(y.dtype)

    def _run(self, x: Tensor, part: Mapping[str, Tensor]) -> Tensor:
        out = activation(self.act, x @ part["key"] + _lift(part["key_bias"]))
        if "up" in part:
            out = out * (x @ part["up"] + _lift(part["up_bias"]))
        y = out @ part["value"]
        if "shared" in part:
            y = y + out.sum(-1, keepdim=True) * _lift(part["shared"])
        return y

    def pack(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors: dict[str, Tensor] = {
            f"{s}/{k}": p for s in self.names for k, p in self.part(s).items()
        }
        return {"act": self.act, "rows": self.rows}, tensors

    @classmethod
    def unpack(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            site, name = key.rsplit("/", 1)
            parts.setdefault(site, {})[name] = tensor
        return cls(parts, act=settings["act"], rows=settings["rows"])

    @classmethod
    def fuse(cls, patches: Sequence[Self]) -> Self | None:
        """All neurons side by side; not where only some of them have a shared direction."""
        shape = {(p.sites, p.rows, p.act, _form(p)) for p in patches}
        if (
            len(shape) != 1
            or patches[0].rows is not None
            or any("shared" in f for f in _form(patches[0]))
        ):
            return None
        parts: dict[str, dict[str, Tensor]] = {}
        for site in patches[0].names:
            own = [p.part(site) for p in patches]
            parts[site] = {}
            for k in own[0]:
                dim = 0 if k == "value" else -1
                parts[site][k] = padded(torch.cat([o[k].detach() for o in own], dim=dim), dim)
        return cls(parts, act=patches[0].act).requires_grad_(False)

    @classmethod
    def in_rows(cls, patches: Sequence[Self]) -> Self | None:
        shape = {(p.sites, p.rows, p.act, tuple(t.shape for t in p.parameters())) for p in patches}
        if len(shape) != 1 or patches[0].rows is not None:
            return None
        parts = {
            site: {
                k: torch.stack([p.part(site)[k].detach() for p in patches])
                for k in patches[0].part(site)
            }
            for site in patches[0].names
        }
        return cls(parts, act=patches[0].act, rows=len(patches)).requires_grad_(False)

    def row(self, index: int) -> Neurons:
        """Row `index` as a patch of its own."""
        assert self.rows is not None
        parts = {
            s: {k: p.detach()[index].clone() for k, p in self.part(s).items()} for s in self.names
        }
        return Neurons(parts, act=self.act)


def _lift(bias: Tensor) -> Tensor:
    return bias if bias.dim() == 1 else bias[:, None]


def _form(patch: Neurons) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(sorted(patch.part(s))) for s in sorted(patch.names))
