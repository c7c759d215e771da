"""Where transformers read: through ONNX on the CPU, or through torch on a device.

A table of token vectors or a recurrent tower has nothing to gain there and stays with numpy.
"""

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING

from two_tower.models.errors import ConfigError
from two_tower.models.extras import require_module
from two_tower.models.text.transformer_tokenizer import GRAPH

if TYPE_CHECKING:
    from two_tower.models.bundle.bundle import ModelBundle

CPU, AUTO = "cpu", "auto"

DYNAMIC = b"DynamicQuantizeLinear"  # scales the activations of a text to 8 bits


def check_device(name: str) -> None:
    """Refuse a device that is not there, before anything is loaded.

    `auto` and `cpu` always are; to see that, torch is not imported.

    Raises:
        ConfigError: the name is none, there is no such device, or torch is not installed.
    """
    if name in (CPU, AUTO):
        return
    if not re.fullmatch(r"cuda(:\d{1,3})?", name):
        raise ConfigError(f"device is {name!r}, expected auto, cpu or cuda")
    for module, extra in (("torch", "train"), ("onnx", "transformer")):
        require_module(module, extra, what=f"device {name}")
    from two_tower.models.networks.towers import choose_device

    choose_device(name)


def put_on(bundle: "ModelBundle", name: str) -> None:
    """Have a bundle's transformers read on a device; `auto` means a GPU where there is one.

    Raises:
        ConfigError: as `check_device`.
    """
    check_device(name)
    is_transformer = GRAPH in bundle.files or (bundle.has_documents and not bundle.asks_endpoint)
    if name == CPU or not is_transformer:
        return
    if name == AUTO:
        if not (find_spec("torch") and find_spec("onnx")):
            return
        from two_tower.models.networks.towers import choose_device

        name = str(choose_device(AUTO))
        if name == CPU:
            return
    bundle.read_on(name)


def reads_in_8_bits(bundle: "ModelBundle") -> bool:
    """Whether a transformer reads passages in 8 bits: two machines may round some the other way."""
    if bundle.documents is not None:
        return not bundle.asks_endpoint  # see `documents.reader_files`
    return DYNAMIC in bundle.files.get(GRAPH, b"")
