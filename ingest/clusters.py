"""k-means over a sample of DATA, before the first point of a collection is sent.

The centroids go into the metadata that the collection is created with. A load that is killed and
run again therefore finds them there, and gives every passage the cluster that the first run did.
"""

from itertools import islice

import numpy as np

from two_tower.ingest.points import PassageEncoder, chunks
from two_tower.models.console import progress
from two_tower.models.data import Dataset
from two_tower.models.errors import ConfigError
from two_tower.retriever.collection.clusters import PER_CLUSTER, Centroids, sample_size


def fit_centroids(dataset: Dataset, encoder: PassageEncoder, *, clusters: int) -> str:
    """Return the packed centroids of the passages' dense vectors; nothing for no clusters.

    The sample are passages that lie evenly apart in DATA.

    Raises:
        ConfigError: DATA has fewer passages than there are to be clusters.
    """
    if not clusters:
        return ""
    if dataset.passage_count < clusters:
        raise ConfigError(
            f"clusters is {clusters:,}, but {dataset.path} has {dataset.passage_count:,} passages; "
            f"expected at most as many, and better {PER_CLUSTER} passages per cluster"
        )
    step = max(1, dataset.passage_count // sample_size(clusters))
    sample = islice(dataset.passages(), 0, None, step)
    shown = progress(sample, label="Clustering", total=-(-dataset.passage_count // step))
    vectors = np.concatenate(
        [encoder.encode_passages([p.content for p in chunk]) for chunk in chunks(shown)]
    )
    return Centroids.fit(vectors, clusters).pack()
