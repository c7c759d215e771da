"""`retriever serve`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from two_tower.models.errors import ConfigError
from two_tower.retriever.commands.flags import Bundle, Name, Path_, Settings, Url

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_WORKERS = 64


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
    workers: Annotated[
        int,
        typer.Option(
            help="Processes that answer at this port; more than one needs a Qdrant server, and "
            "each has limits of its own.",
            min=1,
            max=MOST_WORKERS,
        ),
    ] = 1,
    threads: Annotated[
        int,
        typer.Option(
            help="Batches of searches that a worker runs at the same time; more than 2 are for "
            "searches that wait for a language model or a far engine.",
            min=1,
        ),
    ] = 2,
    waiting: Annotated[
        int,
        typer.Option(help="Searches that may wait at a worker; one more is answered 429.", min=0),
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
    from two_tower.retriever.engine.address import EngineAddress, read_key
    from two_tower.retriever.search.settings import SearchSettings, read_settings
    from two_tower.retriever.service.config import KEY_VARIABLE, SHORTEST_KEY, ServiceConfig
    from two_tower.retriever.service.workers import run

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
    folder = EngineAddress.find(url=url, path=path).path
    if workers > 1 and folder is not None:
        raise ConfigError(
            f"--workers is {workers}, and the embedded engine's folder {folder} belongs to one "
            "process; run a Qdrant server and give its --url, or leave --workers out"
        )
    run(config, host=host, port=port, workers=workers)


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
