"""What a load did, counted by outcome."""

from dataclasses import dataclass, replace

from two_tower.ingest.changes import Changes


@dataclass(frozen=True)
class LoadReport:
    """What a load did, or would do.

    Attributes:
        collection: versioned name.
        added: passages that were not there.
        replaced: passages whose title or text is another; encoded again.
        payload_only: passages of which only url or fields differ; not encoded.
        unchanged: passages that were there already.
        pruned: points deleted because DATA does not have them.
        kept: points that DATA does not have and that were left in.
        seconds: wall time.
    """

    collection: str
    added: int = 0
    replaced: int = 0
    payload_only: int = 0
    unchanged: int = 0
    pruned: int = 0
    kept: int = 0
    seconds: float = 0.0

    @property
    def sent(self) -> int:
        """Passages that were encoded and sent."""
        return self.added + self.replaced

    def plus(self, changes: Changes) -> "LoadReport":
        """Return the report with some more changes in it."""
        return replace(
            self,
            added=self.added + len(changes.added),
            replaced=self.replaced + len(changes.replaced),
            payload_only=self.payload_only + len(changes.payloads),
        )

    def ended(self, passages: int, *, beside: int, prune: bool) -> "LoadReport":
        """Return the report of a walk through all `passages` that met `beside` other points."""
        return replace(
            self,
            unchanged=passages - self.sent - self.payload_only,
            pruned=beside if prune else 0,
            kept=0 if prune else beside,
        )

    @property
    def points(self) -> int:
        """How many the collection holds in the end."""
        return self.sent + self.payload_only + self.unchanged + self.kept

    @property
    def outcomes(self) -> str:
        """The counts in words."""
        return (
            f"{self.added:,} added, {self.replaced:,} replaced, {self.payload_only:,} payload "
            f"only, {self.unchanged:,} unchanged, {self.pruned:,} pruned, {self.kept:,} kept"
        )

    def __str__(self) -> str:
        rate = (self.sent + self.payload_only) / self.seconds if self.seconds else 0.0
        return f"{self.collection}: {self.outcomes}; {self.seconds:.1f} s, {rate:,.0f} passages/s"
