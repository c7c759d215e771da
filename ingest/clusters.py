"""k-means over a sample of DATA, before the first point of a collection is sent.

The centroids go into the metadata that the collection is created with. A load that is killed and
run again therefore finds them there, and gives every passage the cluster that the first run did.
"""

from itertools import islice

import numpy as np

from ingest.points import PassageEncoder, chunks
from models.console import progress
from models.data import Dataset
from retriever.clusters import Centroids
from retriever.errors import ConfigError

PER_CLUSTER = 64
SMALLEST_SAMPLE = 10_000
SEED = 0


def fit_centroids(dataset: Dataset, encoder: PassageEncoder, *, clusters: int) -> str:
    """Return the packed centroids of the passages' dense vectors; nothing for no clusters.

    Sculley, "Web-Scale K-Means Clustering", 2010, from k-means++ beginnings, on passages that lie
    evenly apart in DATA.

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
    from sklearn.cluster import MiniBatchKMeans

    size = max(SMALLEST_SAMPLE, PER_CLUSTER * clusters)
    step = max(1, dataset.passage_count // size)
    sample = islice(dataset.passages(), 0, None, step)
    shown = progress(sample, label="Clustering", total=-(-dataset.passage_count // step))
    vectors = np.concatenate(
        [encoder.encode_passages([p.content for p in chunk]) for chunk in chunks(shown)]
    )
    kmeans = MiniBatchKMeans(clusters, random_state=SEED, batch_size=4096, n_init=1)
    return Centroids(kmeans.fit(vectors).cluster_centers_).pack()
