"""The one seam to the vector engine: nothing else in this project makes a client.

`connect()` gives embedded Qdrant Edge by default and a Qdrant server or cluster for a URL. Both
answer the same calls (`Engine`: the part of `QdrantClient` that is used here, with the types of
`qdrant_client.models` in and out) and fail with the same one-line errors.
"""

import re
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from two_tower.retriever.engine.address import EngineAddress, authorities
from two_tower.retriever.engine.edge import EdgeEngine
from two_tower.retriever.engine.protocol import Engine
from two_tower.retriever.errors import EngineTooOld, EngineUnavailable

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from two_tower.retriever.engine.server import ServerEngine

OLDEST_SERVER = (1, 16)


def connect(
    *,
    url: str | None = None,
    path: str | Path | None = None,
    api_key: str | None = None,
    timeout_s: int = 30,
    create: bool = True,
) -> Engine:
    """Open the engine that `EngineAddress.find` chooses.

    Args:
        url: a Qdrant server or cluster.
        path: folder of the embedded engine; one process at a time can hold it, and shares it
            among its engines.
        api_key: for the server; never printed.
        timeout_s: for each request; at least 10, for a cluster's leader election can take 5.
        create: make the embedded folder where it is missing; otherwise that is `EngineUnavailable`.

    Raises:
        ConfigError: both `url` and `path`, something that is not a URL, or no usable key or CA.
        EngineUnavailable: no answer, not Qdrant, or the key or the server's certificate is refused.
        EngineTooOld: the server is older than 1.16.
        EngineLocked: another process holds the folder.
    """
    address = EngineAddress.find(url=url, path=path, api_key=api_key)
    if address.path is not None:
        return EdgeEngine(address.path, create=create)
    from two_tower.retriever.engine.server import ServerEngine  # takes half a second

    engine = ServerEngine(partial(_client, address, timeout_s), str(address))
    try:
        _check(engine)
    except BaseException:
        engine.close()
        raise
    return engine


def _client(address: EngineAddress, timeout_s: int) -> "QdrantClient":
    import httpx
    from qdrant_client import QdrantClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a key over plain HTTP is the caller's to judge
        return QdrantClient(
            url=address.url,
            api_key=address.api_key,
            timeout=timeout_s,
            check_compatibility=False,
            verify=authorities() or True,
            # A server sends a compressed answer in pieces, and over a kept connection the second
            # piece waits 40 ms for an acknowledgement of the first; so no compression.
            headers={"Accept-Encoding": "identity"},
            # Qdrant drops an idle connection after 5 s; ours is given up before, lest a request
            # meets the closing.
            limits=httpx.Limits(max_keepalive_connections=32, keepalive_expiry=2.0),
        )


def _check(engine: "ServerEngine") -> None:
    """Refuse what is not Qdrant, is too old, or wants another key."""
    version = engine.info().version
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers:
        raise EngineUnavailable(
            f"{engine.where} gives version {version!r}; expected a Qdrant server"
        )
    if (int(numbers[1]), int(numbers[2])) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise EngineTooOld(
            f"{engine.where} runs Qdrant {version}, expected {oldest} or newer; upgrade the server"
        )
    engine.get_aliases()  # the version is public; this call needs the key
