"""Who may import whom: the table of the design, read from the source of every file."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pallatom
import variants
from tests import ROOT

OURS = ("pallatom", "variants", "benchmarks", "reports", "tests")
BACKENDS = variants.names()
ASV_COLLECTS = re.compile(r"(time|timeraw|mem|peakmem|track)_|(Time|Timeraw|Mem|PeakMem|Track)[A-Z_]")


def _files(package: str) -> list[Path]:
    return sorted(f for f in (ROOT / package).rglob("*.py") if "__pycache__" not in f.parts)


def _module(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def _imports(file: Path, *, module_level: bool = False) -> Iterator[str]:
    """Absolute dotted names that the file imports; ``from a import b`` counts as ``a`` and ``a.b``.

    ``module_level``: only what runs when the file is imported (not in functions, not under TYPE_CHECKING).
    """
    for node in _running_nodes(ast.parse(file.read_text())) if module_level else ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(file, node)
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


def _absolute(file: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = file.relative_to(ROOT).parent.parts
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, node.module] if node.module else kept)


def _running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _running_nodes(child)


def _within(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def _offences(files: list[Path], forbidden: tuple[str, ...], allowed: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{_module(file)} imports {name}"
        for file in files
        for name in _imports(file)
        if _within(name, *forbidden) and not _within(name, *allowed)
    ]


def test_the_package_names_are_ours() -> None:
    """``variants`` is also an old package on the public index, which can win where the root is not on the path."""
    assert Path(variants.__file__).resolve().parent == ROOT / "variants"
    assert Path(pallatom.__file__).resolve().parent == ROOT / "pallatom"


def test_pallatom_stands_alone() -> None:
    assert _files("pallatom")
    allowed = {*sys.stdlib_module_names, "torch", "jaxtyping", "pallatom"}
    roots = {(f.name, name.split(".")[0]) for f in _files("pallatom") for name in _imports(f)}
    assert [r for r in roots if r[1] not in allowed] == []


def test_variants_import_neither_the_bench_nor_one_another() -> None:
    assert _offences(_files("variants"), ("benchmarks", "reports", "tests")) == []
    for file in _files("variants"):
        others = tuple(f"variants.{name}" for name in BACKENDS if name != file.stem)
        assert _offences([file], others) == []


DECLARATIONS = ("variants._backend", "variants._registry", "variants._require")
MACHINERY = {"band": (), "cpu": ("variants.band",), "triton": ("variants.band",), "libraries": ()}
"""Each package of ``variants``, and which others it may import."""


def test_the_machinery_of_variants_is_in_packages_with_known_arrows() -> None:
    folders = {f.parent.name for f in (ROOT / "variants").glob("*/__init__.py")}
    assert folders == set(MACHINERY)
    for name, others in MACHINERY.items():
        files = _files(f"variants/{name}")
        allowed = (f"variants.{name}", *others, *DECLARATIONS)
        assert [o for o in _offences(files, ("variants",), allowed) if not o.endswith(" imports variants")] == []
        first = ast.parse((ROOT / "variants" / name / "__init__.py").read_text())
        assert "May import" in (ast.get_docstring(first) or "")
        assert len(first.body) == 1, "a door, not a room"


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    """Loading a backend's file imports nothing that may be missing; its private machinery may, once it is asked for."""
    allowed = {*sys.stdlib_module_names, "torch", "jaxtyping", "pallatom", "variants"}
    public = [ROOT / "variants" / f"{name}.py" for name in (*BACKENDS, "__init__")]
    roots = {(f.name, name.split(".")[0]) for f in public for name in _imports(f, module_level=True)}
    assert [r for r in roots if r[1] not in allowed] == []


def test_a_backend_shares_no_code_with_the_reference() -> None:
    assert _offences([ROOT / "variants" / "_op.py"], OURS) == []
    assert _offences([f for f in _files("variants") if f.stem != "_op"], ("variants._op",)) == []


# What each room may import of the rooms beside it, lowest first; test_no_circle follows from the order.
HARNESS = (
    "ruler", "schema", "workload", "reference", "levels", "cases", "gate", "worker", "sweep", ("regress", "profile"),
)  # fmt: skip
PAGES = (("words", "markup"), "read", "find", ("say", "tables", "draw"), "page")
ABOVE = {"__main__": len(PAGES), "offline": len(PAGES), "__init__": len(PAGES)}


def _floors(rooms: tuple) -> dict[str, int]:
    return {name: floor for floor, one in enumerate(rooms) for name in ((one,) if isinstance(one, str) else one)}


def _upward(package: str, floors: dict[str, int]) -> list[str]:
    """Imports of a room that is not below; every file and folder of the package must be a room."""
    depth = len(package.split("."))
    found = []
    for file in _files(package.replace(".", "/")):
        room = _module(file).split(".")[depth]
        if room == "__init__" and "__init__" not in floors:
            continue
        assert room in floors, f"{file}: no room has this name"
        for name in _imports(file):
            other = name.split(".")[depth] if _within(name, package) and name.count(".") >= depth else room
            if other in floors and other != room and floors[other] >= floors[room]:
                found.append(f"{_module(file)} imports {name}")
    return found


def test_a_room_of_the_harness_imports_only_those_below() -> None:
    assert _upward("benchmarks.harness", _floors(HARNESS)) == []


def test_a_room_of_the_reports_imports_only_those_below() -> None:
    assert _upward("reports", _floors(PAGES) | ABOVE) == []


def test_every_room_says_what_it_is_and_what_it_may_import() -> None:
    for package in ("benchmarks/harness", "reports"):
        for folder in sorted(f.parent for f in (ROOT / package).glob("*/__init__.py")):
            said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
            assert "May import" in said, folder


def _circle(modules: dict[str, set[str]]) -> list[str]:
    """One circle among the modules, as they are met; empty where there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        path.append(name)
        for other in sorted(modules[name]):
            if circle := visit(other):
                return circle
        done.add(path.pop())
        return []

    return next((circle for name in sorted(modules) if (circle := visit(name))), [])


def _imported(file: Path, files: dict[str, Path]) -> set[str]:
    """Modules among ``files``; ``from package import module`` names the module, not the package that holds it."""
    names = {name for name in _imports(file) if name in files}
    return {n for n in names if not any(other.startswith(f"{n}.") for other in names)}


@pytest.mark.parametrize("package", ["benchmarks", "reports"])
def test_no_modules_import_one_another_in_a_circle(package: str) -> None:
    """Imports in functions and for types count too: they only hide a circle."""
    files = {_module(f).removesuffix(".__init__"): f for f in _files(package)}
    assert _circle({name: _imported(file, files) - {name} for name, file in files.items()}) == []
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]


def test_the_ruler_knows_no_attention() -> None:
    assert _offences(_files("benchmarks/harness/ruler"), ("pallatom", "variants", "reports", "tests")) == []
    assert _offences(_files("benchmarks/harness/schema"), ("pallatom", "variants", "torch")) == []


def test_benchmarks_do_not_import_reports() -> None:
    assert _offences(_files("benchmarks"), ("reports", "tests")) == []


def test_benchmarks_import_one_another_relatively() -> None:
    """The suites, which asv imports as a package of their own, do not; their ``__init__`` says how they find it."""
    for file in sorted(set(_files("benchmarks")) - set(_files("benchmarks/suites"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not _within(node.module or "", "benchmarks"), f"{_module(file)}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not any(_within(a.name, "benchmarks") for a in node.names), f"{_module(file)}:{node.lineno}"


def test_importing_the_benchmarks_does_not_import_torch() -> None:
    """asv's discovery imports every module of the folder, and a command line prints its help, without paying for it."""
    heavy = ("torch", "pallatom", "xformers", "triton")
    found = [
        f"{_module(f)} imports {name}"
        for f in _files("benchmarks")
        for name in _imports(f, module_level=True)
        if _within(name, *heavy)
    ]
    assert found == []


def test_no_helper_has_a_name_that_asv_collects() -> None:
    """Suites may have them; what they import may not."""
    helpers = [f for f in _files("benchmarks") if f.parent != ROOT / "benchmarks" / "suites"]
    for file in helpers:
        top = ast.parse(file.read_text()).body
        for node in [*top, *(inner for outer in top if isinstance(outer, ast.ClassDef) for inner in outer.body)]:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not ASV_COLLECTS.match(node.name), f"{_module(file)}:{node.lineno} {node.name}"


def test_reports_need_no_torch() -> None:
    allowed = (
        "benchmarks.asv.metrics",
        *(f"benchmarks.harness.{n}" for n in ("ruler", "schema", "levels", "cases.limits")),
    )
    files = _files("reports")
    assert _offences(files, ("torch", "variants", "pallatom", "tests")) == []
    # ``from benchmarks.harness import ruler`` names the package too, which holds nothing itself
    packages = ("benchmarks", "benchmarks.asv", "benchmarks.harness", "benchmarks.harness.cases")
    found = [o for o in _offences(files, ("benchmarks",), allowed) if o.rpartition(" ")[2] not in packages]
    assert found == []


def test_importing_variants_imports_no_backend_and_no_torch() -> None:
    script = (
        "import sys, variants\n"
        "assert variants.names()\n"
        "loaded = [f'variants.{n}' for n in variants.names()] + ['torch', 'triton', 'xformers', 'pallatom']\n"
        "print([m for m in loaded if m in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_who_compiles_nothing_imports_no_compiler() -> None:
    """Importing and running the layer, a backend, the definition with gradients, and measuring memory: torch's own
    compiler takes longer to import than torch."""
    script = (
        "import sys, torch, variants\n"
        "from pallatom.architecture.atom_transformers import AtomTransformer, build_sparse_pairs\n"
        "from benchmarks.harness.ruler.memory import peak_memory\n"
        "from variants._op import stack_reference\n"
        "idx, mask = build_sparse_pairs(torch.arange(30) // 4, 6)\n"
        "q, c, p = torch.randn(1, 30, 16), torch.randn(1, 30, 16), torch.randn(1, 30, idx.shape[1], 4)\n"
        "layer = AtomTransformer(16, 4, n_blocks=1, n_heads=2, window_size=6)\n"
        "banded = variants.convert(layer, 'banded')\n"
        "assert peak_memory(lambda: banded(q, c, p, idx, mask).sum().backward(), 'cpu')[0] > 0\n"
        "state = dict(layer.named_parameters())\n"
        "stack_reference(state, q, c, p, idx, mask, 2).sum().backward()\n"
        "print([m for m in ('torch._dynamo', 'torch._inductor', 'sympy') if m in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_no_file_of_the_product_is_longer_than_a_reader_bears() -> None:
    files = [ROOT / "asv_plugin.py", *(f for package in OURS[:-1] for f in _files(package))]
    assert {f: n for f in files if (n := len(f.read_text().splitlines())) > 400} == {}
