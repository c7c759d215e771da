"""`models export`: a bundle's towers for sentence-transformers or ONNX Runtime."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.config import from_mapping
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.export.graphs import mean_graph, recurrent_graph
from two_tower.models.export.sentence_transformer import write_sentence_transformer
from two_tower.models.export.sides import Side, passage_side, query_side, weighted_vectors
from two_tower.models.export.tokenizer import fast_tokenizer
from two_tower.models.files import new_folder, write_bytes
from two_tower.models.networks.recurrent import RnnTower
from two_tower.models.networks.tower_config import TowerConfig
from two_tower.models.text.transformer_tokenizer import GRAPH, TEXT

SENTENCE_TRANSFORMERS, ONNX = FORMS = ("sentence-transformers", "onnx")

README, MODEL = "README.md", "model.onnx"

NOT_INCLUDED = (
    "The towers alone: the shorter PCA vectors, the weights of the fusion with BM25 and the "
    "cross-scorer are not part of it."
)
EXAMPLES = {
    "query": "how long do cats live",
    "passage": "An indoor cat lives for twelve to fifteen years.",
}


def export_bundle(bundle: ModelBundle, out: Path, *, form: str) -> None:
    """Write a folder that another library loads; its README.md has the lines that do.

    Args:
        bundle: what to export.
        out: the folder to make.
        form: `sentence-transformers` or `onnx`.

    Raises:
        BundleError: there is something at `out`, or the towers cannot be had in that form.
        ConfigError: the form is unknown, the extra is not installed, or a model is not there.
    """
    if form not in FORMS:
        raise ConfigError(f"--as is {form!r}, expected {' or '.join(FORMS)}")
    if out.exists():
        raise BundleError(f"{out} is there already; remove it or choose another --out")
    try:
        with new_folder(out) as work:
            write = _write_onnx if form == ONNX else _write_sentence_transformer
            usage = write(bundle, work, out.name)
            head = f"# {out.name}\n\nThe towers of the two-tower-search bundle {bundle.fingerprint}"
            write_bytes(work / README, f"{head}, {bundle.dim} numbers a text.\n\n{usage}".encode())
    except OSError as error:
        raise BundleError(f"{out} cannot be written ({error.strerror})") from None


def _write_sentence_transformer(bundle: ModelBundle, folder: Path, name: str) -> str:
    remarks = write_sentence_transformer(bundle, folder)
    lines = [
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{name}")',
        f'queries = model.encode_query(["{EXAMPLES["query"]}"])',
        f'documents = model.encode_document(["{EXAMPLES["passage"]}"])',
    ]
    if any((query_side(bundle).prefix, passage_side(bundle).prefix)):
        remarks.append("`encode_query` and `encode_document` put the bundle's prefixes in place.")
    return _usage(lines, remarks)


def _write_onnx(bundle: ModelBundle, folder: Path, name: str) -> str:
    lines = [
        "import numpy as np",
        "from onnxruntime import InferenceSession",
        "from tokenizers import Tokenizer",
        "",
        "def encode(folder, text, limit):",
        f'    tokenizer = Tokenizer.from_file(f"{{folder}}/{TEXT}")',
        "    tokenizer.enable_truncation(limit)",
        "    ids = tokenizer.encode(text).ids or [0]  # [0] for a blank text",
        f'    session = InferenceSession(f"{{folder}}/{MODEL}")',
        '    return session.run(None, {"input_ids": np.array([ids])})[0][0]',
        "",
    ]
    is_shared = bundle.config["tower"]["shared"]
    for side in (query_side(bundle), passage_side(bundle)):
        place = "" if is_shared else f"/{side.name}"
        target = folder / place.removeprefix("/")
        target.mkdir(exist_ok=True)
        write_bytes(target / MODEL, _graph(bundle, side))
        write_bytes(target / TEXT, _tokenizer(bundle, side))
        text = json.dumps(side.prefix + EXAMPLES[side.name], ensure_ascii=False)
        lines.append(f'{side.name} = encode("{name}{place}", {text}, {side.limit})')
    return _usage(lines, [])


def _graph(bundle: ModelBundle, side: Side) -> bytes:
    if side.kind == "transformer":
        return bundle.files[GRAPH]
    if side.kind == "mean":
        return mean_graph(weighted_vectors(bundle, side))
    owner = "query" if bundle.config["tower"]["shared"] else side.name
    arrays, prefix = bundle.towers(), f"{owner}."
    config = from_mapping(TowerConfig, bundle.config["tower"], where="tower.")
    tower = RnnTower(
        "gru" if config.kind == "gru" else "lstm",
        config.rnn,
        vectors=arrays[f"{prefix}vectors"],
        weights=arrays[f"{prefix}weights"],
        seed=0,
    )
    parameters = {
        name.removeprefix(prefix): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    tower.load_state_dict(parameters)
    return recurrent_graph(tower)


def _tokenizer(bundle: ModelBundle, side: Side) -> bytes:
    if side.kind == "transformer":
        return bundle.files[TEXT]
    content: str = fast_tokenizer(bundle.tokenizer.model, limit=side.limit).to_str()
    return content.encode()


def _usage(lines: Sequence[str], remarks: Sequence[str]) -> str:
    code = "\n".join(("```python", *lines, "```"))
    return f"{code}\n\n" + "\n".join(f"- {remark}" for remark in (*remarks, NOT_INCLUDED)) + "\n"
