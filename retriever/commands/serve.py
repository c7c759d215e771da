"""`retriever serve`."""

import contextlib
import logging
import math
import os
import signal
import socket
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.models.console import say
from two_tower.models.errors import ConfigError
from two_tower.retriever.commands.flags import Bundle, Name, Path_, Settings, Url
from two_tower.retriever.errors import EngineUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from two_tower.retriever.service.config import ServiceConfig

BACKLOG = 2048


def serve(
    name: Name,
    bundle: Bundle = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at.", min=1, max=65535)] = 8080,
    settings: Settings = None,
    url: Url = None,
    path: Path_ = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the key that clients must send as a bearer token; "
            "TWO_TOWER_SERVICE_KEY where this is not given. Without either, everybody may search."
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that clients may ask for, beside this machine's own; repeat for more. Where "
            "--host is a loopback address no other is answered, elsewhere any while this is not "
            "given."
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web origin whose pages may call this service; repeat for more."),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            help="Query that the page offers; repeat for more. By default some of the DATA that "
            "was loaded, or titles where it has none."
        ),
    ] = None,
    dashboard: Annotated[
        str | None,
        typer.Option(help="Qdrant's dashboard as browsers reach it; URL/dashboard by default."),
    ] = None,
    threads: Annotated[
        int, typer.Option(help="Batches of searches that run at the same time.", min=1)
    ] = min(4, os.cpu_count() or 1),
    waiting: Annotated[
        int, typer.Option(help="Searches that may wait; one more is answered 429.", min=0)
    ] = 32,
    timeout: Annotated[
        float, typer.Option(help="Seconds until a search is answered 504.", min=0.1)
    ] = 10.0,
    log: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps each search and what is done with it, as JSON lines (User "
            "Behavior Insights); nothing is kept without it.",
            show_default=False,
        ),
    ] = None,
    log_days: Annotated[int, typer.Option(help="Days that the log is kept.", min=1)] = 90,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|BUNDLE|COLLECTION",
            help="Interleave another way to search: a settings file, a bundle for the same "
            "vectors, or another collection. `retriever compare` says which is better.",
            show_default=False,
        ),
    ] = None,
    share: Annotated[
        str, typer.Option(help="Share of the searches that are interleaved, as in 50% or 0.5.")
    ] = "50%",
) -> None:
    """Serve a collection over HTTP, with a search page at /."""
    from two_tower.retriever.engine.address import read_key
    from two_tower.retriever.search.settings import SearchSettings, read_settings
    from two_tower.retriever.service.config import KEY_VARIABLE, SHORTEST_KEY, ServiceConfig

    config = ServiceConfig(
        name=name,
        bundle=bundle,
        url=url,
        path=path,
        threads=threads,
        waiting=waiting,
        timeout_s=timeout,
        key=read_key(KEY_VARIABLE, file=key_file, shortest=SHORTEST_KEY),
        hosts=_hosts(host, allowed_host or ()),
        origins=tuple(cors_origin or ()),
        examples=tuple(example or ()),
        dashboard=dashboard,
        settings=SearchSettings() if settings is None else read_settings(settings),
        log=log,
        log_days=log_days,
        against=against,
        share=_share(share),
    )
    if against is not None and log is None:
        raise ConfigError("--against without a log compares nothing; add --log FOLDER")
    run(config, host=host, port=port)


def _share(text: str) -> float:
    """Return a share as a number above 0, at most 1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(f"--share is {text!r:.40}, expected more than 0%, at most 100%, as 50%")
    return share


def _hosts(host: str, more: "Sequence[str]") -> tuple[str, ...]:
    """Return the names that clients may ask for; none, for any, where others can reach `host`."""
    from two_tower.retriever.service.config import LOOPBACK

    is_local = host in LOOPBACK or host.startswith("127.")
    if not is_local and not more:
        return ()
    return tuple(dict.fromkeys([*LOOPBACK, host, *more]))


def run(config: "ServiceConfig", *, host: str, port: int) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP, then answer what is under way and leave.

    A server that does not answer yet is waited for; a folder that cannot be opened is not.

    Raises:
        ConfigError: the extra is not installed, or the port is taken.
        BundleError: no complete bundle there.
        EngineError: no such collection, one of another bundle, or the folder is locked.
    """
    try:
        import uvicorn

        from two_tower.retriever.service.app import create_app
        from two_tower.retriever.service.connections import connection_class
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"retriever serve needs {error.name}, which is not installed; "
            "run: pip install 'two-tower-search[serve]'"
        ) from None
    from two_tower.retriever.engine.address import EngineAddress
    from two_tower.retriever.service.backend import Backend

    logging.getLogger("two_tower").handlers.clear()  # a service's log has levels and names
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).addFilter(Unrepeated())
    with _listen(host, port) as listener:
        # By name, as nothing below retriever/ imports from ingest/, which builds on it.
        changes = import_module("two_tower.ingest.changes.collection")
        backend = Backend(config, changes.Collection)
        try:
            backend.open()
        except EngineUnavailable as error:
            if EngineAddress.find(url=config.url, path=config.path).path is not None:
                raise  # a folder does not come by itself
            logging.getLogger(__name__).warning("%s; waiting for it", error)
        settings = uvicorn.Config(
            create_app(backend),
            access_log=False,
            lifespan="on",
            log_config=None,
            log_level=logging.WARNING,
            server_header=False,
            http=connection_class(config.timeout_s),
            ws="none",
            timeout_graceful_shutdown=int(config.timeout_s) + 1,
        )
        shown = f"[{host}]" if ":" in host else host
        say(f"Serving {config.name} at http://{shown}:{port}")
        server = uvicorn.Server(settings)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(signal.SIGHUP, lambda *_: setattr(server, "should_exit", True))
        with contextlib.suppress(KeyboardInterrupt):  # the server has ended in good order
            server.run(sockets=[listener])


class Unrepeated(logging.Filter):
    """Lets a message of others' code pass once a minute: a flood of them would fill the disk."""

    SECONDS = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the message is new."""
        now, key = time.monotonic(), f"{record.name} {record.msg}"[:200]
        if now - self._seen.get(key, -math.inf) < self.SECONDS:
            return False
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = now
        return True


def _listen(host: str, port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only for sockets that name their protocol; with it on,
    # every answer on a kept connection waits 40 ms for the client's delayed acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen at {host}:{port} ({error.strerror or error}); "
            "give another --host or --port"
        ) from None
    return listener
