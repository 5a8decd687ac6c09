"""`patch export-peft`: writes patches as a LoRA adapter for peft, transformers and vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from errata.cli.shared import patches
from errata.cli.shared.options import quiet
from errata.cli.shared.printing import say

SHOWN = 20


def export_peft(
    given: patches.Several,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the adapter is written.")],
    rank: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Largest rank of a module; what is lost is measured. Default: nothing is lost.",
        ),
    ] = None,
    vllm: Annotated[
        bool, typer.Option("--vllm", help="One rank for all modules, as vLLM needs it.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Of the adapter: float32, bfloat16 or float16.")
    ] = "float32",
    backbone: Annotated[
        str | None,
        typer.Option(
            help="The model, if it is no longer called or found as the patch names it. Its "
            "weights are not loaded."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub model.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a hub model.")
    ] = False,
) -> None:
    """Write patches as a LoRA adapter; several are added up.

    Only changes of weights can be one (shape delta). The folder is loaded by
    PeftModel.from_pretrained, by load_adapter of transformers, and with --vllm by vLLM.
    """
    from errata.artefacts import peft_export

    quiet()
    peft_export.check_out(out)
    adapter = peft_export.export_peft(
        [p.load() for p in patches.located(given)],
        out,
        backbone=backbone,
        rank=rank,
        vllm=vllm,
        dtype=dtype,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    for m in adapter.modules[:SHOWN]:
        say(f"{m.path}: rank {m.rank}, loss {m.loss:.2e}")
    if len(adapter.modules) > SHOWN:
        say(f"and {len(adapter.modules) - SHOWN} more modules")
    say(
        f"{out}: a LoRA of {adapter.base} in {dtype}, {len(adapter.modules)} modules, rank "
        f"{adapter.rank}, loss {adapter.loss:.2e} (relative Frobenius error)"
    )
    for line in adapter.remarks:
        say(line)
