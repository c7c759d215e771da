"""The exception tree.

Every error that a user can act on derives from `TwoTowerError`; a command ends it in one line
and exit code 1. A caller's bug is a plain `ValueError`. The first seven stand in `models.errors`.

    TwoTowerError
      ConfigError            unknown key or impossible value in a configuration
      DataError              DATA folder, source file or row missing or broken
      BundleError            model bundle missing, incomplete or broken
      EndpointError          a service that reads or writes texts does not answer, or wrongly
        PromptTooLong        a language model reads only shorter prompts
      TrainingError          training cannot start or go on
      QueryError             a query or its parameters cannot be searched
        PassageNotFound      the collection has no passage of that id
      EngineError            anything about the vector engine
        EngineUnavailable    no answer at the URL, time-out
          KeyRefused         the server wants another API key
          CertificateRefused the server's certificate cannot be trusted
        EngineBusy           the server answers that it cannot now: HTTP 429, 500, 502 …
        EngineTooOld         the server is older than this project needs
        EngineClosed         it was closed, or opened by the process that this one is a fork of
        EngineLocked         another process holds the embedded folder or loads the collection
        CollectionNotFound   no collection or alias of that name
        CollectionDamaged    the embedded engine cannot open one of its collections
        CollectionMismatch   a collection exists but does not fit the bundle or the schema
          VersionNotFollowed a name stands for a version whose bundle is not found
        VerificationFailed   what is in the collection is not what DATA says
"""

from two_tower.models.errors import TwoTowerError


class QueryError(TwoTowerError, ValueError):
    """A query or its parameters cannot be searched."""


class PassageNotFound(QueryError):  # noqa: N818
    """The collection has no passage of that id."""


class EngineError(TwoTowerError):
    """Anything about the vector engine."""


class EngineUnavailable(EngineError):  # noqa: N818
    """No answer at the URL, or a time-out."""


class CertificateRefused(EngineUnavailable):
    """The server's certificate has expired, is for another name or not of a trusted authority."""


class KeyRefused(EngineUnavailable):
    """The server wants another API key."""


class EngineBusy(EngineError):  # noqa: N818
    """The server answers that it cannot now; the same request may pass later."""


class EngineTooOld(EngineError):  # noqa: N818
    """The server is older than this project needs."""


class EngineClosed(EngineError):  # noqa: N818
    """It was closed, or opened by the process that this one is a fork of."""


class EngineLocked(EngineError):  # noqa: N818
    """Another process holds the embedded folder or loads the collection."""


class CollectionNotFound(EngineError):  # noqa: N818
    """No collection or alias of that name."""


class CollectionDamaged(EngineError):  # noqa: N818
    """The embedded engine cannot open one of its collections; the others are not concerned."""


class CollectionMismatch(EngineError):  # noqa: N818
    """A collection exists but does not fit the bundle or the schema."""


class VersionNotFollowed(CollectionMismatch):
    """A name stands for another version now, whose bundle is not found."""


class VerificationFailed(EngineError):  # noqa: N818
    """What is in the collection is not what DATA says."""
