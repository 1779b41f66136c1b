"""No module keeps state: a container made at module level is a table, and no function changes it or rebinds a name.

What is remembered is remembered by ``pallatom.architecture._remember`` (by tensors) or by functools (by values).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGES = ("pallatom", "variants", "benchmarks", "reports")
DISPLAYS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKERS = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict", "WeakKeyDictionary",
          "WeakValueDictionary", "WeakSet"}  # fmt: skip
MUTATORS = {"add", "append", "appendleft", "clear", "discard", "extend", "extendleft", "insert", "pop", "popitem",
            "popleft", "remove", "reverse", "setdefault", "sort", "update", "difference_update",
            "intersection_update", "symmetric_difference_update"}  # fmt: skip
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def module_of(file: Path, root: Path) -> str:
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def containers(tree: ast.Module) -> set[str]:
    """Names bound at module level to a list, dict, set or the like."""
    found = set()
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        maker = value.func if isinstance(value, ast.Call) else None
        name = maker.attr if isinstance(maker, ast.Attribute) else getattr(maker, "id", None)
        if isinstance(value, DISPLAYS) or name in MAKERS:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]  # type: ignore[union-attr]
            found |= {t.id for t in targets if isinstance(t, ast.Name)}
    return found


def imported(tree: ast.Module, module: str, is_package: bool) -> dict[str, str]:
    """What each imported name stands for, in dotted form."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            kept = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            source = ".".join([*kept, *([node.module] if node.module else [])])
            names |= {a.asname or a.name: f"{source}.{a.name}" for a in node.names}
    return names


def locals_of(function: ast.AST) -> set[str]:
    """Names that are the function's own: parameters, and what is bound in its body."""
    args = function.args  # type: ignore[attr-defined]
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    own = {a.arg for a in every}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    return own - {name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names}


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted(node.value)):
        return f"{before}.{node.attr}"
    return None


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """What the node changes in place: the ``x`` of ``x[i] = …``, ``del x[i]``, ``x += …``, ``x.append(…)``."""
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        yield node.value
    elif isinstance(node, ast.AugAssign):
        yield node.target
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
        yield node.func.value


def in_functions(node: ast.AST, own: frozenset[str] = frozenset(), inside: bool = False) -> Iterator[tuple]:
    """Every node that runs in a function, with the names that are local there."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTIONS):
            yield from in_functions(child, own | locals_of(child), True)
        else:
            if inside:
                yield child, own
            yield from in_functions(child, own, inside)


def state(root: Path, packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """Every place where a function changes a module's container or rebinds a module's name."""
    files = [f for name in packages for f in sorted((root / name).rglob("*.py")) if "__pycache__" not in f.parts]
    trees = {f: ast.parse(f.read_text()) for f in files}
    tables = {f"{module_of(f, root)}.{name}" for f, tree in trees.items() for name in containers(tree)}
    found = []
    for file, tree in trees.items():
        module = module_of(file, root)
        names = imported(tree, module, file.stem == "__init__") | {n: f"{module}.{n}" for n in containers(tree)}
        for node, own in in_functions(tree):
            where = f"{file.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Global):
                found.append(f"{where} rebinds {', '.join(node.names)}")
            for target in changed(node):
                head, _, rest = (dotted(target) or "").partition(".")
                full = ".".join(filter(None, (names.get(head, ""), rest)))
                if head not in own and full in tables:
                    found.append(f"{where} changes {full}")
    return found


def test_no_module_keeps_state() -> None:
    assert state(ROOT) == []


PLANTED = {
    "a list that grows": "MADE = []\ndef f(x):\n    MADE.append(x)\n",
    "a dict that is filled": "MADE: dict = {}\nclass A:\n    def f(self, x):\n        MADE[x] = 1\n",
    "one that is emptied": "import collections as c\nMADE = c.defaultdict(list)\ndef f(x):\n    del MADE[x]\n",
    "an inner function's": "MADE = set()\ndef f(x):\n    def g():\n        MADE.add(x)\n    return g\n",
    "a counter": "MADE = 0\ndef f():\n    global MADE\n    MADE += 1\n",
    "another module's": "from . import other\ndef f(x):\n    other.TABLE.update(x)\n",
    "another module's by name": "from .other import TABLE as t\ndef f(x):\n    t[x] = 1\n",
}
SOUND = {
    "a table": "TABLE = {'a': 1}\ndef f(x):\n    return TABLE[x], sorted(TABLE)\n",
    "a local of the same name": "TABLE = []\ndef f(x):\n    TABLE = [x]\n    TABLE.append(x)\n    return TABLE\n",
    "a parameter of the same name": "TABLE = []\ndef f(TABLE):\n    TABLE.append(1)\n",
    "made in a loop": "TABLE = {}\nfor i in range(3):\n    TABLE[i] = i\n",
    "an attribute": "TABLE = {}\nclass A:\n    def f(self):\n        self.TABLE[1] = 2\n",
}


def plant(folder: Path, source: str) -> Path:
    package = folder / "variants"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "other.py").write_text("TABLE = {}\n")
    (package / "planted.py").write_text(source)
    return folder


@pytest.mark.parametrize("name", PLANTED)
def test_planted_state_is_found(name: str, tmp_path: Path) -> None:
    assert len(state(plant(tmp_path, PLANTED[name]), ("variants",))) == 1


@pytest.mark.parametrize("name", SOUND)
def test_a_table_is_no_state(name: str, tmp_path: Path) -> None:
    assert state(plant(tmp_path, SOUND[name]), ("variants",)) == []
