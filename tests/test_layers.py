"""Who may lean on whom, held by reading the imports of every module:

    kernels, tokenizers   nothing of the project
    models                kernels, tokenizers
    core                  models, kernels, tokenizers
    scripts               core and below
    examples              core and below; its __init__, which the demo asks for documents, nothing of the project

No circles between modules, no drawer module (`utils.py`), no script that shadows the standard library, no `__init__.py`
that would make a folder shadow a package of the same name.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "kernels": {"kernels"},
    "tokenizers": {"tokenizers"},
    "models": {"models", "kernels", "tokenizers"},
    "core": {"core", "models", "kernels", "tokenizers", "examples"},  # the demo asks for the sample company
    "scripts": {"scripts", "core", "models", "kernels", "tokenizers"},
    "examples": {"examples", "core", "models", "kernels", "tokenizers"},  # but its __init__ imports nothing of them
}


def modules(root: Path) -> dict[str, Path]:
    """Import name → file of every module of the five floors and the examples."""
    files = (file for floor in ALLOWED if (root / floor).is_dir() for file in (root / floor).rglob("*.py"))
    return {"luthier." + ".".join(f.relative_to(root).with_suffix("").parts): f for f in files}


def imports(file: Path, name: str, known: dict[str, Path], *, at_import: bool = False) -> set[str]:
    """The project modules that a file imports; `at_import`: only those imported when the module itself is."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    inside = set()
    for node in ast.walk(tree):
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if at_import and (lazy or typing_only):
            inside |= (
                {id(child) for part in getattr(node, "body", []) for child in ast.walk(part)}
                if not isinstance(node, ast.Lambda)
                else set()
            )
    found = set()
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name.split(".")[: -node.level]
                base = ".".join([*package, base] if base else package)
            found.add(base)
            found |= {f"{base}.{alias.name}" for alias in node.names}  # `from luthier.core.data import clean`
    return {f for f in found if f in known or (f.startswith("luthier.") and f.count(".") == 1)}


def violations(root: Path) -> list[str]:
    """`importer imports imported` for every import that goes up or sideways."""
    known = modules(root)
    return [
        f"{name} imports {target}"
        for name, file in known.items()
        for target in sorted(imports(file, name, known))
        if target.split(".")[1] not in ALLOWED[name.split(".")[1]]
    ]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle for every module that imports itself over others, found by depth-first search."""
    found: list[list[str]] = []
    state: dict[str, int] = {}

    def visit(name: str, path: list[str]) -> None:
        state[name] = 1
        for target in sorted(graph.get(name, ())):
            if state.get(target) == 1:
                found.append([*path[path.index(target) :], target])
            elif target not in state:
                visit(target, [*path, target])
        state[name] = 2

    for name in sorted(graph):
        if name not in state:
            visit(name, [name])
    return found


def test_no_import_goes_up_or_sideways() -> None:
    assert violations(ROOT) == []


def test_no_module_imports_itself_over_others() -> None:
    known = modules(ROOT)
    graph = {name: imports(f, name, known, at_import=True) & set(known) - {name} for name, f in known.items()}
    assert circles(graph) == []


def test_no_drawer_modules() -> None:
    assert [str(f) for f in modules(ROOT).values() if f.stem in ("utils", "util", "helpers", "misc", "common")] == []


def test_no_script_shadows_the_standard_library() -> None:
    """Run as a file, a script's folder comes first on the path: scripts/inspect.py would break Python itself."""
    assert [f.name for f in (ROOT / "scripts").glob("*.py") if f.stem in sys.stdlib_module_names] == []


def test_the_floors_are_namespace_packages() -> None:
    """An __init__.py in tokenizers/ would shadow Hugging Face's `tokenizers` for whoever runs Python at the root."""
    floors = [floor for floor in ALLOWED if floor != "examples"]
    assert [str(f) for floor in floors for f in (ROOT / floor).rglob("__init__.py")] == []


def test_every_folder_with_modules_is_packaged() -> None:
    """pyproject.toml names every sub-package; a forgotten one is missing from the wheel without a word."""
    import tomllib

    named = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(name.split(".")[:-1]) for name, f in modules(ROOT).items() if f.name != "__init__.py"}
    assert {f for f in folders if not f.startswith("luthier.examples.")} <= named


# ---------------------------------------------------------------- the checks themselves are checked


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("kernels/a.py", "from luthier.models.b import f"),
        ("tokenizers/a.py", "def f():\n    import luthier.kernels.k"),
        ("models/b.py", "from luthier.core import c"),
        ("core/c.py", "import luthier.scripts.d"),
        ("models/b.py", "from ..core.c import f"),
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    base = {"kernels/k.py": "", "models/b.py": "", "core/c.py": "", "scripts/d.py": "", "tokenizers/t.py": ""}
    assert violations(tree(tmp_path, base)) == []
    assert len(violations(tree(tmp_path, {file: text}))) >= 1


def test_a_circle_is_found_and_a_lazy_import_is_none(tmp_path: Path) -> None:
    eager = {"core/a.py": "from luthier.core import b", "core/b.py": "import luthier.core.a"}
    known = modules(tree(tmp_path, eager))
    graph = {n: imports(f, n, known, at_import=True) & set(known) for n, f in known.items()}
    assert circles(graph) == [["luthier.core.a", "luthier.core.b", "luthier.core.a"]]
    tree(tmp_path, {"core/b.py": "def f():\n    import luthier.core.a"})
    graph = {n: imports(f, n, known, at_import=True) & set(known) for n, f in known.items()}
    assert circles(graph) == []
