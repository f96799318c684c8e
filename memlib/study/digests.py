"""Digests of the code that each stage runs, so that a stage runs again when its code changes, and only then.

An entry point (a program, a notebook, a family of detectors) has one digest file: a line for each module that it imports,
directly or through others, with the digest of the module's syntax tree. Comments, docstrings, formatting and positions are no
part of the tree, nor are imports under `TYPE_CHECKING`, which never happen.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from memlib.detectors import ALL

PACKAGE = "memlib"
NOTEBOOKS = Path("notebooks")
DETECTORS = (
    "memlib.detectors"  # its ALL names every detector's module, its family; scores depend on their own family only
)
SCORE = "memlib.study.score"
RUNNER = {"memlib.progress", "memlib.study.stages"}  # tell how far a stage is and time it, but decide no result
Modules = dict[
    str, tuple[str, set[str]]
]  # digest of each module's tree, and the modules of the package that it imports


def digest_files() -> dict[str, str]:
    """Content of the digest file of each entry point by its name, read without importing anything.

    Raises ValueError for two entry points of one name, for an import of a module that does not exist, and for code that
    is not plain Python.
    """
    trees = {_name(path): _parse(path.read_text(), path) for path in Path(PACKAGE).rglob("*.py")}
    families = _families(trees[DETECTORS])
    _check(DETECTORS, set(families.values()), trees)
    trees[DETECTORS].body = [node for node in trees[DETECTORS].body if not _assigns_all(node)]
    modules = {name: (_digest(tree), imports(tree, name)) for name, tree in trees.items()}
    programs = [name for name, tree in trees.items() if name.startswith(f"{PACKAGE}.study.") and _is_program(tree)]
    files = [
        *((name.rpartition(".")[2], lines([name], modules)) for name in programs),
        *(
            (f"score-{family.rpartition('.')[2]}", _scores(family, families, modules))
            for family in set(families.values())
        ),
        *((path.stem, _notebook(path, modules)) for path in notebooks()),
    ]
    names = [name for name, _ in files]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise ValueError(f"two entry points are named {doubled.pop()!r}; a notebook and a program need different names")
    return dict(files)


def score_files(files: Mapping[str, str], scores: Mapping[str, Any]) -> dict[str, str]:
    """Digest files `scores-KEY` of the entries of the section `scores`: those of the families of their detectors."""

    def families(entry: Mapping[str, Any]) -> set[str]:
        modules = {ALL[table["detector"]].partition(":")[0] for table in entry["tables"].values()}
        return {module.rpartition(".")[2] for module in modules}

    return {
        f"scores-{key}": "".join(files[f"score-{family}"] for family in sorted(families(entry)))
        for key, entry in scores.items()
    }


def notebooks() -> list[Path]:
    """The notebooks of the chapters and of the experiments."""
    return sorted([*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("experiments/*.ipynb")])


def code_cells(path: str | Path) -> list[str]:
    """Sources of the code cells of a notebook."""
    cells = json.loads(Path(path).read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def lines(entries: Iterable[str], modules: Modules) -> str:
    """A line for each of the modules `entries` and all that they import: its name and the digest of its tree."""
    found: set[str] = set()
    todo = list(entries)
    while todo:
        name = todo.pop()
        if name not in found | RUNNER:
            found.add(name)
            _check(name, modules[name][1], modules)
            todo += modules[name][1]
    return "".join(f"{name} {modules[name][0]}\n" for name in sorted(found))


def imports(tree: ast.AST, module: str) -> set[str]:
    """Modules of the package that a module's tree imports, anywhere in it."""
    found = set()
    package = module if _file(module).name == "__init__.py" else module.rpartition(".")[0]
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{origin}.{alias.name}" for alias in node.names}
            submodules = {name for name in names if _file(name).exists()}
            found |= submodules if submodules == names else {*submodules, origin}
    return {name for name in found if name.split(".")[0] == PACKAGE}


def tree_digest(sources: Iterable[str], where: str | Path) -> str:
    """One digest of the syntax trees of several pieces of code."""
    return _digest([_parse(source, where) for source in sources])


def _notebook(path: Path, modules: Modules) -> str:
    """Digest file of a notebook: of its code cells, and of what they import."""
    cells = code_cells(path)
    imported = imports(_parse("\n".join(cells), path), "")
    _check(path, imported, modules)
    return f"{path} {tree_digest(cells, path)}\n{lines(imported, modules)}"


def _scores(family: str, families: Mapping[str, str], modules: Modules) -> str:
    """Digest file of a family's scores: of what scoring imports, and of the detectors that `ALL` has of this family."""
    named = sorted(place for place, module in families.items() if module == family)
    return f"{lines([SCORE, family], modules)}{', '.join(named)}\n"


def _check(importer: str | Path, imported: Iterable[str], modules: Collection[str]) -> None:
    for name in imported:
        if name not in modules:
            raise ValueError(f"{importer} imports {name}, which does not exist")


def _parse(source: str, where: str | Path) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise ValueError(f"{where} is not plain Python: {error}") from error


def _digest(tree: Any) -> str:
    return hashlib.sha256(repr(_plain(tree)).encode()).hexdigest()[:16]


def _plain(node: Any) -> Any:
    """A tree as nested tuples, without docstrings and positions; versions of Python differ in the empty fields, left out."""
    if isinstance(node, list):
        return tuple(map(_plain, node))
    if not isinstance(node, ast.AST):
        return node
    fields = {name: getattr(node, name, None) for name in node._fields}
    documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
    if documented and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    return (type(node).__name__, *((name, _plain(value)) for name, value in fields.items() if value not in (None, [])))


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree but those under `if TYPE_CHECKING:`."""
    todo = [tree]
    while todo:
        node = todo.pop()
        yield node
        typing_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        todo += node.orelse if typing_only else ast.iter_child_nodes(node)


def _is_program(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body)


def _assigns_all(node: ast.stmt) -> bool:
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return any(isinstance(target, ast.Name) and target.id == "ALL" for target in targets)


def _families(tree: ast.Module) -> dict[str, str]:
    """The entries of `memlib.detectors.ALL`, as `name: module:ATTRIBUTE`, with the module of each."""
    found = [ast.literal_eval(node.value) for node in tree.body if _assigns_all(node)]
    if not found:
        raise ValueError(f"{_file(DETECTORS)} assigns no ALL, the detectors' names and where each is defined")
    return {f"{name}: {place}": place.partition(":")[0] for name, place in found[0].items()}


def _name(path: Path) -> str:
    return ".".join(path.parent.parts if path.name == "__init__.py" else path.with_suffix("").parts)


def _file(module: str) -> Path:
    path = Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
