"""Runs the server until it is told to end, and then until everything accepted is answered."""

from __future__ import annotations

import logging
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from errata.serve.fetch import Fetcher
from errata.serve.http.app import application
from errata.serve.http.waiting import Mailbox
from errata.serve.logs import EventLog, LogHandler
from errata.serve.service import Service, Setup

if TYPE_CHECKING:
    from errata.core.model.backbone import Backbone


def built(
    bb: Backbone, setup: Setup, *, log: EventLog, drain: int, fetcher: Fetcher | None = None
) -> tuple[Service, uvicorn.Server]:
    """What answers, and its network. Raises UserError for a patch that cannot be loaded."""
    mailbox = Mailbox()
    service = Service(bb, setup, mailbox.post, log, fetcher)
    service.start()
    logger = logging.getLogger("uvicorn.error")
    logger.handlers, logger.propagate = [LogHandler(log)], False
    config = uvicorn.Config(
        application(service, mailbox, log), log_config=None, access_log=False, lifespan="off",
        server_header=False, date_header=True, timeout_graceful_shutdown=drain,
        limit_concurrency=None, h11_max_incomplete_event_size=64 * 1024, http="h11",
        ws="none", loop="asyncio", proxy_headers=False,
    )  # fmt: skip
    return service, uvicorn.Server(config)


def serve(bb: Backbone, setup: Setup, where: socket.socket, *, log: EventLog, drain: int) -> bool:
    """Answers until SIGTERM or SIGINT. Whether all that was accepted was answered within `drain`
    seconds. Raises UserError for a patch that cannot be loaded.
    """
    service, server = built(bb, setup, log=log, drain=drain)
    address, port = where.getsockname()[:2]
    patches = len(service.catalogue.loaded)
    log.write("ready", host=address, port=port, model=setup.name, patches=patches)
    # uvicorn ends at SIGTERM, and then sends the signal on to the handler of before
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    done = False
    try:
        server.run(sockets=[where])
    finally:
        done = service.stop(5.0)
        signal.signal(signal.SIGTERM, before)
        log.write("end", complete=done)
    return done
