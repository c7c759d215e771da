"""`models export`: a bundle's towers for sentence-transformers or ONNX Runtime."""

import json
from collections.abc import Sequence
from pathlib import Path

from two_tower.models.bundle.bundle import ModelBundle
from two_tower.models.bundle.onnx_session import PRECISE
from two_tower.models.errors import BundleError, ConfigError
from two_tower.models.export.graphs import mean_graph, recurrent_graph
from two_tower.models.export.sentence_transformer import write_sentence_transformer
from two_tower.models.export.sides import (
    TRANSFORMER,
    Side,
    documents_model,
    documents_source,
    named_side,
    own_side,
)
from two_tower.models.files import new_folder, write_bytes
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
    if bundle.asks_endpoint:
        raise BundleError(
            f"{bundle.config['documents']['model']}, behind a URL, reads queries and passages: the "
            "bundle holds no tower to export"
        )
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
    ]
    if documents_source(bundle) is None or documents_model(bundle):
        lines.append(f'documents = model.encode_document(["{EXAMPLES["passage"]}"])')
    return _usage(lines, [*remarks, *_missing_documents(bundle)])


def _write_onnx(bundle: ModelBundle, folder: Path, name: str) -> str:
    lines = [
        "import numpy as np",
        "from onnxruntime import InferenceSession, SessionOptions",
        "from tokenizers import Tokenizer",
        "",
        "def encode(folder, text, limit):",
        f'    tokenizer = Tokenizer.from_file(f"{{folder}}/{TEXT}")',
        "    tokenizer.enable_truncation(limit)",
        "    ids = tokenizer.encode(text).ids or [0]  # [0] for a blank text",
        "    options = SessionOptions()  # 8-bit sums would overflow on x86 without VNNI",
        f'    options.add_session_config_entry("{PRECISE}", "1")',
        f'    session = InferenceSession(f"{{folder}}/{MODEL}", options)',
        '    return session.run(None, {"input_ids": np.array([ids])})[0][0]',
        "",
    ]
    sides = [own_side(bundle, "query")]
    if documents_source(bundle) is None:
        sides.append(own_side(bundle, "passage"))
    elif model := documents_model(bundle):
        sides.append(named_side(bundle, model))
    is_one = len({side.owner for side in sides}) == 1
    for side in sides:
        place = "" if is_one else f"/{side.name}"
        target = folder / place.removeprefix("/")
        target.mkdir(exist_ok=True)
        write_bytes(target / MODEL, _graph(bundle, side))
        write_bytes(target / TEXT, _tokenizer(side))
        text = json.dumps(side.prefix + EXAMPLES[side.name], ensure_ascii=False)
        lines.append(f'{side.name} = encode("{name}{place}", {text}, {side.limit})')
    return _usage(lines, _missing_documents(bundle))


def _graph(bundle: ModelBundle, side: Side) -> bytes:
    if side.kind == TRANSFORMER:
        return side.files[GRAPH]
    if side.kind == "mean":
        return mean_graph(side.weighted_vectors())
    return recurrent_graph(bundle.config["tower"], side.arrays())


def _tokenizer(side: Side) -> bytes:
    if side.kind == TRANSFORMER:
        return side.files[TEXT]
    content: str = side.tokenizer().to_str()
    return content.encode()


def _missing_documents(bundle: ModelBundle) -> list[str]:
    source = documents_source(bundle)
    if source is None or documents_model(bundle):
        return []
    return [f"It reads queries alone: the documents have the vectors of {source}."]


def _usage(lines: Sequence[str], remarks: Sequence[str]) -> str:
    code = "\n".join(("```python", *lines, "```"))
    return f"{code}\n\n" + "\n".join(f"- {remark}" for remark in (*remarks, NOT_INCLUDED)) + "\n"
