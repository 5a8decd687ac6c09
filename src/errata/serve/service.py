"""One running server without its network: the model, its patches, the engine and what it counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.core.editor import Editor
from errata.core.errors import BadEdit
from errata.core.state import State
from errata.core.types import Image, Prompt, Turn, digest
from errata.serve.catalogue import ChosenModel, PatchCatalogue
from errata.serve.decoding.engine import Engine, EngineWatch
from errata.serve.decoding.jobs import Post
from errata.serve.edits import EditMaker
from errata.serve.failures import Refused
from errata.serve.fetch import Fetcher
from errata.serve.logs import EventLog
from errata.serve.metrics import ServeMetrics
from errata.serve.pictures import ImageReader
from errata.serve.settings import Access, Limits

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone

READERS = 4  # images that are fetched or decoded at the same time


@dataclass(frozen=True, slots=True)
class Said:
    """What one message of a chat says. parts: `("text", T)` or `("image", URL)`, in order."""

    role: str
    parts: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a server is made of. given, folder: as in `PatchCatalogue`. editor, state: for edits."""

    name: str
    given: Mapping[str, Path] = field(default_factory=dict)
    folder: Path | None = None
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    share_unedited: bool = False
    editor: Editor | None = None
    state: State | None = None


class Service:
    """log: where events go. fetcher: of images; by default one for the hosts of `Setup.access`."""

    def __init__(
        self, bb: Backbone, setup: Setup, post: Post, log: EventLog, fetcher: Fetcher | None = None
    ) -> None:
        limits = setup.limits
        self.bb, self.setup, self.limits, self.log = bb, setup, limits, log
        self.catalogue = PatchCatalogue(
            bb, setup.name, limits, given=setup.given, folder=setup.folder
        )
        self.metrics = ServeMetrics()
        watch = EngineWatch(self.metrics.rows.observe, self._failed)
        self.engine = Engine(bb, limits, post, watch, share_unedited=setup.share_unedited)
        self.maker = EditMaker(
            bb, self.catalogue, editor=setup.editor, state=setup.state, most=limits.edits,
            cap=limits.tokens,
        )  # fmt: skip
        hosts = setup.access.image_hosts
        self.fetcher = fetcher or Fetcher(hosts, limits.image, limits.fetch_seconds)
        self.reader = ImageReader(limits, self.fetcher)
        self.readers = ThreadPoolExecutor(READERS, thread_name_prefix="errata-image")
        self.fingerprint = bb.fingerprint()
        engine, catalogue = self.engine, self.catalogue
        self.metrics.watch("waiting", "Requests that wait.", lambda: len(engine.waiting))
        self.metrics.watch("growing", "Answers that grow.", lambda: engine.growing)
        self.metrics.watch("patches", "Patches that are loaded.", lambda: len(catalogue.loaded))

    def _failed(self, error: BaseException) -> None:
        self.metrics.bugs.inc()
        self.log.bug(error)

    def start(self) -> None:
        """Loads the patches and starts the engine. Raises UserError."""
        for name, why in self.catalogue.load_all().items():
            self.log.write("patch_left_out", name=name, why=why)
        self.engine.start()

    def stop(self, seconds: float | None = None) -> bool:
        """Finishes what was accepted; whether that took at most so many seconds."""
        done = self.engine.close(seconds)
        self.maker.pool.shutdown(wait=False, cancel_futures=True)
        self.readers.shutdown(wait=False, cancel_futures=True)
        return done

    def system_fingerprint(self, chosen: ChosenModel) -> str:
        """Changes when the model or one of its patches does."""
        origins = [] if chosen.patch is None else sorted(chosen.patch.origins)
        return f"fp_{digest([self.fingerprint, list(chosen.names), origins])[:16]}"

    def prompt(self, parts: Sequence[tuple[str, str]], earlier: Sequence[Said] = ()) -> Prompt:
        """A prompt from the parts of a question and the messages in front of it.

        Raises Refused, UserError.
        """
        if earlier:
            self._check_turns(earlier)
        count = sum(kind == "image" for m in (*earlier, Said("user", parts)) for kind, _ in m.parts)
        if count > self.limits.images:
            raise Refused(
                400, f"the request has {count} images, this server takes {self.limits.images}.",
                param="messages", code="too_many_images",
            )  # fmt: skip
        history = tuple(Turn(m.role, self._segments(m.parts)) for m in earlier)
        prompt = Prompt(self._segments(parts), history)
        if not prompt.text.strip():
            raise Refused(400, "the question is empty. Give it a text.", param="messages")
        return prompt

    def _segments(self, parts: Sequence[tuple[str, str]]) -> tuple[str | Image, ...]:
        return tuple(text if kind == "text" else self.reader.read(text) for kind, text in parts)

    def _check_turns(self, earlier: Sequence[Said]) -> None:
        """Before a picture is fetched. Raises Refused."""
        try:
            self.bb.check_turns()
        except BadEdit as e:
            raise Refused(400, str(e), param="messages", code="no_chat_template") from None
        for place, said in enumerate(earlier):
            shown = any(kind == "image" for kind, _ in said.parts)
            if not shown and not "".join(text for _, text in said.parts).strip():
                raise Refused(400, f"messages[{place}] is empty. Give it a text.", param="messages")

    def health(self) -> dict[str, Any]:
        """Raises Refused if no question would be answered."""
        if self.engine.closing or not self.engine.thread.is_alive():
            raise Refused(503, "the server is closing.", retry_after=5)
        return {"status": "ok", "model": self.catalogue.name}
