import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "models": {"models"},
    "retriever": {"models", "retriever"},
    "ingest": {"models", "retriever", "ingest"},
}


def imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("two_tower.").split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module.removeprefix("two_tower.").split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        ours = imported_packages(path) & set(ALLOWED)
        assert ours <= ALLOWED[package], f"{path} imports {sorted(ours - ALLOWED[package])}"


def test_only_the_engine_module_makes_a_client() -> None:
    makers = {
        path.relative_to(ROOT).as_posix()
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"QdrantClient", "EdgeClient"}
    }
    assert makers == {"retriever/engine/connect.py"}


def test_importing_retriever_is_light() -> None:
    program = (
        "import sys, time; start = time.perf_counter(); import two_tower; "
        "took = time.perf_counter() - start; "
        "heavy = {'torch', 'qdrant_client', 'sklearn', 'gensim', 'datasets', 'wandb'}; "
        "print(sorted(heavy & set(sys.modules))); from two_tower import Retriever; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"], done.stderr


def test_exported_names() -> None:
    import two_tower

    assert two_tower.__all__ == [
        *("AnnSettings", "Hit", "Retriever", "SearchResult", "SearchSettings", "read_settings")
    ]
    for name in two_tower.__all__:
        assert getattr(two_tower, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = two_tower.Nope


def test_packages_are_listed_and_tests_are_flat() -> None:
    for package in ALLOWED:
        assert (ROOT / package / "__init__.py").is_file()
    assert not list((ROOT / "tests").rglob("__init__.py"))
