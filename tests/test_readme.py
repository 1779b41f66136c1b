"""What the pages say is there: their tables are compared with the registry and the workloads."""

from __future__ import annotations

import re

import variants
from benchmarks.harness.workload import workloads
from tests import ROOT

README = (ROOT / "README.md").read_text()


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """Cells by first cell of the table of ``page`` whose header line starts with ``heading``."""
    said = (ROOT / page).read_text()
    lines = said[said.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_first_page_names_every_backend() -> None:
    first = README[: README.index("## Two commands")]
    assert set(re.findall(r"`(\w+)`", first)) == set(variants.names())


def test_the_backend_table_lists_every_backend_with_its_devices() -> None:
    table = rows("variants/README.md", "backend")
    assert sorted(table) == sorted(variants.names())
    for name, (_, devices, backward) in table.items():
        backend = variants.load(name)
        assert set(re.findall("cpu|cuda", devices.lower())) == set(backend.devices), name
        assert set(re.findall("cpu|cuda", backward.lower())) == set(backend.backward), name


def test_the_protein_table_gives_every_protein_with_its_sizes() -> None:
    table = rows("benchmarks/README.md", "name")
    assert tuple(table) == tuple(workloads.names())
    for name, (_, residues, atoms) in table.items():
        protein = workloads.load(name, "heavy")
        assert (protein.n_res, protein.n_atom) == tuple(int(x.replace(",", "")) for x in (residues, atoms)), name


def test_the_commands_that_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"make {target}"
