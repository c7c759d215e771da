"""Checks that the configurations of all phases have in common."""

from two_tower.models.errors import ConfigError


def check_least(section: str, config: object, **least: float) -> None:
    """Refuse a value that is below the least one of its name.

    Raises:
        ConfigError: so it is; the message names the section.
    """
    for name, bound in least.items():
        if not getattr(config, name) >= bound:
            found = getattr(config, name)
            raise ConfigError(f"{section}.{name} is {found}, expected {bound} or more")


def check_positive(section: str, config: object, *names: str) -> None:
    """Refuse a value that is not above zero.

    Raises:
        ConfigError: so it is; the message names the section.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{section}.{name} is {getattr(config, name)}, expected above 0")
