"""How long the parts of a run take."""

import time


class Clock:
    """Seconds spent on each named part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        now = time.perf_counter()
        self.seconds[name] = round(now - self._last, 1)
        self._last = now
