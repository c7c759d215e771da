"""The log of a service: lines with a level and a name, none of them over and over."""

import logging
import math
import time


def start_logging(*, several: bool) -> None:
    """Give the log of this process levels and names, of one of several its number as well."""
    style = "%(levelname)s %(process)d %(name)s" if several else "%(levelname)s %(name)s"
    logging.getLogger("two_tower").handlers.clear()
    logging.basicConfig(level=logging.INFO, format=f"{style}: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).addFilter(Unrepeated())


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
