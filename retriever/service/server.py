"""One process that serves: the backend, the application, and uvicorn around them."""

import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module

import uvicorn

from two_tower.retriever.engine.address import EngineAddress
from two_tower.retriever.errors import EngineUnavailable
from two_tower.retriever.service.app import create_app
from two_tower.retriever.service.backend import Backend
from two_tower.retriever.service.config import BACKLOG, ServiceConfig
from two_tower.retriever.service.connections import connection_class
from two_tower.retriever.service.metrics import Metrics


class Server(uvicorn.Server):
    """Serves at a listener that other processes may share, until a signal or `should_exit`."""

    def __init__(
        self,
        config: ServiceConfig,
        metrics: Metrics,
        *,
        changing: AbstractContextManager[object] | None = None,
        ready: Callable[[], None],
    ) -> None:
        """Connect to the engine; one that does not answer yet is waited for, a folder is not.

        Args:
            config: what to serve, and how.
            metrics: where to count.
            changing: lets one of several workers at a time change the collection; None for the only
                one.
            ready: is called when requests are answered.

        Raises:
            BundleError: no complete bundle there.
            EngineError: no such collection, one of another bundle, or the folder is locked.
        """
        # By name, as nothing below retriever/ imports from ingest/, which builds on it.
        changes = import_module("two_tower.ingest.changes.collection")
        backend = Backend(config, changes.Collection, changing=changing)
        try:
            backend.open()
        except EngineUnavailable as error:
            if EngineAddress.find(url=config.url, path=config.path).path is not None:
                raise  # a folder does not come by itself
            logging.getLogger(__name__).warning("%s; waiting for it", error)
        settings = uvicorn.Config(
            create_app(backend, metrics),
            access_log=False,
            lifespan="on",
            log_config=None,
            log_level=logging.WARNING,
            server_header=False,
            http=connection_class(config.timeout_s),
            ws="none",
            timeout_graceful_shutdown=int(config.timeout_s) + 1,
            # Of connections that come at once one of several workers takes one at a turn, and
            # leaves the next to the others.
            backlog=BACKLOG if changing is None else 1,
        )
        super().__init__(settings)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # a worker's turn is short, the kernel's queue is not
        self._ready()

    def run_at(self, listener: socket.socket) -> None:
        """Serve until SIGINT, SIGTERM or SIGHUP, then answer what is under way and leave."""
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, lambda *_: setattr(self, "should_exit", True))
        with contextlib.suppress(KeyboardInterrupt):  # the server has ended in good order
            self.run(sockets=[listener])
