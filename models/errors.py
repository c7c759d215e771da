"""Errors that a user can act on; `retriever.errors` draws the whole tree."""


class TwoTowerError(Exception):
    """Base of every error this project raises for bad input or a bad environment.

    The message is one line: what was found, what was expected, what to run next.
    """


class ConfigError(TwoTowerError):
    """A configuration has an unknown key or an impossible value."""


class DataError(TwoTowerError):
    """A source file, a DATA folder or a row of one is missing, broken or empty."""


class BundleError(TwoTowerError):
    """A model bundle is missing, incomplete or broken."""


class EndpointError(TwoTowerError):
    """A service that reads or writes texts for us does not answer, or not as expected."""


class PromptTooLong(EndpointError):  # noqa: N818
    """A language model reads only shorter prompts than this one."""


class TrainingError(TwoTowerError):
    """Training cannot start or go on (no labelled queries, collapse, other checkpoint)."""


def is_panic(error: BaseException) -> bool:
    """Return whether compiled Rust code gave up: such an error is no `Exception`."""
    return type(error).__module__ == "pyo3_runtime"


def of_panic(error: BaseException, kind: type[TwoTowerError], what: str) -> BaseException:
    """Return an error of `kind` for a panic, any other error as it is.

    Every door to Rust code has this: `except BaseException as error: raise of_panic(…) from None`.
    """
    if not is_panic(error):
        return error
    reason = " ".join(str(error).split())[:200]
    return kind(f"{what} failed inside ({reason})")
