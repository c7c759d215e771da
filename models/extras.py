"""Packages that only some of the work needs: which extra of this package brings them."""

from importlib.util import find_spec

from two_tower.models.errors import ConfigError

EXTRAS = {
    "train": (
        *("datasets", "gensim", "ir_measures", "matplotlib", "rank_bm25", "scipy", "sklearn"),
        *("torch", "wandb"),
    ),
    "onnx": ("onnxruntime", "tokenizers"),
    "transformer": ("onnx", "sentence_transformers", "transformers"),
    "serve": ("fastapi", "prometheus_client", "uvicorn"),
    "sweep": ("optuna",),
    "haystack": ("haystack",),
    "langchain": ("langchain_core",),
}
"""Extra -> the modules that it brings, by the names that they are imported by."""


def require_extra(extra: str, *, what: str) -> None:
    """Refuse work before it begins, where a package that it needs at its end is missing.

    Raises:
        ConfigError: some module of the extra is not installed.
    """
    for module in EXTRAS[extra]:
        require_module(module, extra, what=what)


def require_module(module: str, extra: str, *, what: str) -> None:
    """Refuse work that needs one module of an extra, where that is missing.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec(module) is None:
        raise ConfigError(f"{what} {_needs(module, extra)}")


def of_missing(error: BaseException) -> str | None:
    """Return what to install for an import that failed; None where no extra brings the module."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    module = error.name.partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules:
            return f"this {_needs(module, extra)}"
    return None


def _needs(module: str, extra: str) -> str:
    return f"needs {module}, which is not installed; run: pip install 'two-tower-search[{extra}]'"
