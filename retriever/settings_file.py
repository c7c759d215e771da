"""One YAML file for how a collection is stored and how it is searched.

    collection:
      quantization: {kind: scalar}
      clusters: 256
    search:
      legs: {dense: 100, bm25: 100}
      ann: {n_probe: 32, oversampling: 2}

`ingest load --options FILE` takes the section `collection:`, `--settings FILE` of the commands of
`retriever` the section `search:`. Both check the whole file.
"""

from dataclasses import dataclass, field
from pathlib import Path

from two_tower.models.config import from_mapping, read_yaml
from two_tower.models.errors import ConfigError
from two_tower.retriever.options import CollectionOptions
from two_tower.retriever.settings import SearchSettings


@dataclass(frozen=True)
class SettingsFile:
    """The sections of a settings file; one that is not there has its defaults.

    Attributes:
        collection: how to store.
        search: how to search.
    """

    collection: CollectionOptions = field(default_factory=CollectionOptions)
    search: SearchSettings = field(default_factory=SearchSettings)


def read_file(path: str | Path) -> SettingsFile:
    """Return both sections.

    Raises:
        ConfigError: there is no such file, a key is unknown or a value impossible.
    """
    mapping = read_yaml(path)
    try:
        return from_mapping(SettingsFile, mapping)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def read_settings(path: str | Path) -> SearchSettings:
    """Return the section `search:`; see `read_file`."""
    return read_file(path).search
