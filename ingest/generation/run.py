"""A generation from beginning to end, by names: as `ingest generate` does it."""

from pathlib import Path

from two_tower.ingest.dataset.folder import require_free
from two_tower.ingest.generation.generate import GenerationConfig, Report, generate_queries
from two_tower.ingest.generation.prompt import read_prompt
from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.data import Dataset
from two_tower.models.endpoint.answer_cache import CachedModel
from two_tower.models.endpoint.language_model import LanguageModel
from two_tower.retriever.collection.bm25_vectors import words_or_pieces

DEFAULTS = GenerationConfig()


def generate(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    llm: str,
    model: str,
    prompt: str = "web",
    config: GenerationConfig = DEFAULTS,
    bundle: str | Path | ModelBundle | None = None,
    at_once: int = 4,
    table: str | Path | None = None,
    overwrite: bool = False,
) -> Report:
    """Write DATA with all passages and the queries that a language model wrote for some of them.

    What the model answered is kept: the same call after a kill asks for the rest alone.

    Args:
        data: whose passages; its own queries and judgements are people's, and stay there.
        out: the DATA folder to make, with splits `train` and `generated-dev`.
        llm: URL of a service with OpenAI's interface; its key comes from TWO_TOWER_API_KEY.
        model: the model's name there.
        prompt: `web`, `claims`, or a text file with {passage} in it.
        config: what decides the queries beside passages, prompt and model.
        bundle: makes the round trip instead of BM25.
        at_once: calls at the same time.
        table: a CSV file to write beside: id, text, query_1, query_2, …
        overwrite: replace a DATA folder.

    Raises:
        ConfigError: `out` is DATA itself, or the prompt cannot be used.
        DataError: `out` must not be written, or no passage is long enough.
        EndpointError: the model does not answer; what it answered is kept.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    text = read_prompt(prompt)
    if bundle is not None and not isinstance(bundle, ModelBundle):
        bundle = ModelBundle.load(bundle)
    require_free(Path(out).resolve(), overwrite=overwrite)
    with CachedModel(LanguageModel(llm, model)) as writer:
        return generate_queries(
            dataset,
            Path(out),
            prompt=text,
            model=writer,
            config=config,
            analyzer=words_or_pieces(dataset.language, bundle),
            bundle=bundle,
            at_once=at_once,
            table=None if table is None else Path(table),
            overwrite=overwrite,
        )
