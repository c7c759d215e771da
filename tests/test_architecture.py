import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("models", "retriever", "ingest")

# A folder imports itself and what its line names. "models" alone is the files that stand directly
# in models/; "retriever/*" is every folder of retriever/. Commands and cli.py import all.
MODELS = (
    *("root", "text", "networks", "endpoint", "bundle", "export", "examples"),
    *("objectives", "training"),
)
SEARCHING = ("root", "engine", "collection", "search")
BEFORE: dict[str, set[str]] = {
    **{f"models/{name}": {f"models/{n}" for n in MODELS[:i]} for i, name in enumerate(MODELS)},
    **{
        f"retriever/{name}": {f"retriever/{n}" for n in SEARCHING[:i]}
        for i, name in enumerate(SEARCHING)
    },
    "retriever/evaluation": {f"retriever/{name}" for name in SEARCHING},
    "retriever/tuning": {f"retriever/{name}" for name in (*SEARCHING, "evaluation")},
    "retriever/calibration": {f"retriever/{name}" for name in SEARCHING},
    "retriever/behaviour": {"retriever/root"},
    "retriever/service": {f"retriever/{name}" for name in (*SEARCHING, "behaviour")},
    "retriever/adapters": {f"retriever/{name}" for name in SEARCHING},
    "retriever/commands": {
        f"retriever/{name}"
        for name in (*SEARCHING, "evaluation", "tuning", "calibration", "behaviour", "service")
    },
    "ingest/dataset": set(),
    # The engine's analyzer tells which part of a cut document a judgement goes to.
    "ingest/sources": {
        "ingest/dataset",
        *(f"retriever/{name}" for name in ("root", "engine", "collection", "behaviour")),
    },
    "ingest/generation": {"ingest/dataset", "retriever/collection"},
    "ingest/loading": {f"retriever/{name}" for name in SEARCHING},
    "ingest/judging": {
        "ingest/dataset",
        "ingest/sources",
        *(f"retriever/{name}" for name in (*SEARCHING, "evaluation")),
    },
    "ingest/adoption": {
        *(f"ingest/{name}" for name in ("dataset", "sources", "loading")),
        *(f"retriever/{name}" for name in SEARCHING),
    },
    "ingest/versions": {
        "ingest/loading",
        *(f"retriever/{name}" for name in (*SEARCHING, "evaluation")),
    },
    "ingest/changes": {
        *(f"ingest/{name}" for name in ("dataset", "sources", "loading", "adoption", "versions")),
        *(f"retriever/{name}" for name in (*SEARCHING, "calibration")),
    },
    "ingest/commands": {
        *(f"ingest/{name}" for name in ("dataset", "sources", "generation", "loading", "judging")),
        *(f"ingest/{name}" for name in ("adoption", "changes", "versions")),
        *(f"retriever/{name}" for name in (*SEARCHING, "evaluation", "commands")),
    },
}
BEFORE["models/cli"] = {f"models/{name}" for name in MODELS}
BEFORE["retriever/cli"] = {*BEFORE["retriever/commands"], "retriever/commands"}
BEFORE["ingest/cli"] = {*BEFORE["ingest/commands"], "ingest/commands"}
ADAPTERS = ("retriever/haystack.py", "retriever/langchain.py")  # for other programs to import


class Import(NamedTuple):
    """One imported module, as `package.module` below two_tower, or an outside name."""

    file: Path
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module}"


def source_files() -> list[Path]:
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def imports(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            for alias in node.names:
                name = f"{module}.{alias.name}"
                is_module = (ROOT / name.removeprefix("two_tower.").replace(".", "/")).with_suffix(
                    ".py"
                )
                yield Import(path, node.lineno, name if is_module.is_file() else module)


def folder_of(path: Path) -> str:
    """Return the folder in the sense of BEFORE."""
    relative = path.relative_to(ROOT)
    package, *rest = relative.parts
    if relative.as_posix() in ADAPTERS:
        return "retriever/adapters"
    if rest == ["cli.py"]:
        return f"{package}/cli"
    return f"{package}/{rest[0] if len(rest) > 1 else 'root'}"


def home(module: str) -> Path | None:
    """Return the file of a module of ours."""
    if module == "two_tower":
        return None  # the public names; who takes them from there is at the top already
    path = ROOT / module.removeprefix("two_tower.").replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"


def test_every_folder_has_its_place_and_its_door_plate() -> None:
    for path in source_files():
        folder = folder_of(path)
        assert folder in BEFORE or folder.endswith("/root"), f"{path} stands in no known folder"
    for package in PACKAGES:
        for folder in (ROOT / package).rglob("*/"):
            if list(folder.glob("*.py")):
                text = (folder / "__init__.py").read_text(encoding="utf-8")
                (plate,) = ast.parse(text).body
                assert isinstance(plate, ast.Expr), f"{folder}/__init__.py is more than a docstring"


def test_a_folder_imports_only_what_stands_before_it() -> None:
    wrong = []
    for path in source_files():
        folder = folder_of(path)
        if folder in ("retriever/root", "ingest/root") and path.name == "__init__.py":
            continue
        for found in imports(path):
            if not found.module.startswith("two_tower."):
                continue
            target = home(found.module)
            assert target is not None
            assert target.is_file(), f"{found}, which is no file"
            there = folder_of(target)
            package, from_package = there.split("/")[0], folder.split("/")[0]
            if there == folder or (package == "models" != from_package and there != "models/cli"):
                continue
            if there not in BEFORE.get(folder, set()):
                wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_packages_import_one_way() -> None:
    order = {name: place for place, name in enumerate(PACKAGES)}
    for path in source_files():
        package = path.relative_to(ROOT).parts[0]
        for found in imports(path):
            other = found.module.removeprefix("two_tower.").split(".")[0]
            if found.module.startswith("two_tower.") and other in order:
                assert order[other] <= order[package], str(found)
            assert found.module.split(".")[0] not in PACKAGES, f"{found}; expected two_tower.…"


def test_modules_import_in_no_circle() -> None:
    graph = {
        path: {target for found in imports(path) if (target := home_if_ours(found.module))}
        for path in source_files()
    }
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        circle = [*trail[trail.index(path) :], path] if path in trail else []
        assert not circle, " -> ".join(str(p.relative_to(ROOT)) for p in circle)
        if path not in done:
            for target in sorted(graph[path] - {path}):
                visit(target, (*trail, path))
            done.add(path)

    for path in graph:
        visit(path, ())


def home_if_ours(module: str) -> Path | None:
    return home(module) if module.startswith("two_tower.") else None


def test_models_knows_no_engine() -> None:
    for path in source_files():
        for found in imports(path):
            top = found.module.split(".")[0]
            if path.is_relative_to(ROOT / "models"):
                assert top not in ("qdrant_client", "qdrant_edge"), str(found)


def test_only_the_engine_folder_makes_clients() -> None:
    makers = {"QdrantClient", "AsyncQdrantClient", "EdgeShard", "EdgeEngine", "ServerEngine"}
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", None))
                where = path.relative_to(ROOT).as_posix()
                inside = where.startswith("retriever/engine/")
                assert inside or name not in makers, f"{where}:{node.lineno} makes a {name}"


def test_only_what_speaks_to_a_server_imports_its_client() -> None:
    speakers = {"connect", "server", "server_failures", "snapshots", "qdrant_models"}
    for path in source_files():
        for found in imports(path):
            if found.module.split(".")[0] == "qdrant_client":
                assert path.stem in speakers, f"{found}; take qm from qdrant_models"


def loaded_by(program: str) -> set[str]:
    """Return what a fresh interpreter has loaded after a program."""
    report = "; import sys; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HEAVY = {"torch", "qdrant_client", "qdrant_edge", "sklearn", "scipy", "gensim", "datasets", "wandb"}


def test_importing_is_light() -> None:
    assert not HEAVY & loaded_by("import two_tower, two_tower.models, two_tower.retriever")
    assert "torch" not in loaded_by("from two_tower import Retriever")


@pytest.mark.parametrize("package", PACKAGES)
def test_help_is_light(package: str) -> None:
    program = (
        "import contextlib, io, sys, typer\n"
        f"from two_tower.{package}.cli import app\n"
        "for name in [None, *typer.main.get_command(app).commands]:\n"
        "    words = [name, '--help'] if name else ['--help']\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as page:\n"
        "        app(words, standalone_mode=False)\n"
        "    assert 'Usage' in page.getvalue()\n"
        "0"
    )
    assert not HEAVY & loaded_by(program)


def test_exported_names() -> None:
    import two_tower
    from two_tower import retriever

    assert two_tower.__all__ == [
        *("AnnSettings", "Collection", "CollectionOptions", "Dataset", "GenerationConfig", "Hit"),
        *("ModelBundle", "Passage", "Retriever", "SearchResult", "SearchSettings"),
        *("TwoTowerError", "connect", "copy", "drop", "evaluate", "generate", "judge", "load"),
        *("prepare", "promote", "read_config"),
        *("read_settings", "restore", "rollback", "snapshot", "train", "train_bundle", "tune"),
        "verify",
    ]
    for name in two_tower.__all__:
        assert getattr(two_tower, name).__name__ == name
        assert getattr(retriever, name) is getattr(two_tower, name)
    assert dir(two_tower) == dir(retriever) == sorted([*two_tower.__all__, "__version__"])
    assert two_tower.__version__
    for module in (two_tower, retriever):
        with pytest.raises(AttributeError, match="no attribute 'Nope'"):
            _ = module.Nope


def test_type_checkers_see_the_names_where_they_are_at_run_time() -> None:
    import two_tower

    tree = ast.parse((ROOT / "two_tower" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    checked = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == two_tower._MODULES


def test_links_lead_to_the_folders() -> None:
    for name in PACKAGES:
        assert (ROOT / "two_tower" / name).is_symlink()
        assert os.readlink(ROOT / "two_tower" / name) == f"../{name}"
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_files_are_concepts_not_fragments() -> None:
    for path in source_files():
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 500, f"{path} has {lines} lines; expected 500 at most"
        if path.name != "__init__.py":
            assert lines >= 20, f"{path} has {lines} lines; expected 20 or more"
