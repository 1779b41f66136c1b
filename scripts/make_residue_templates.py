"""Make ``benchmarks/harness/workload/data/residues.json``: heavy atoms of amino acid residues, from the CCD.

Source: the Chemical Component Dictionary of the wwPDB as the installed biotite ships it. For each
residue: names, elements and ideal coordinates (Å) of its heavy atoms, in the order N, CA, C, O, then
outwards from CA (fewest bonds first, ties as in the dictionary: the usual order of the 20), then OXT,
which only the last residue of a chain keeps. Beside them the names of all the dictionary's amino acids; for those
without an atom CA (chromophores) all heavy atoms, by which such a residue is known.

    python scripts/make_residue_templates.py [OUTPUT]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

OUTPUT = Path(__file__).parents[1] / "benchmarks" / "harness" / "workload" / "data" / "residues.json"
# fmt: off
STANDARD = (
    "ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE",
    "LEU", "LYS", "MET", "PHE", "PRO", "SER", "THR", "TRP", "TYR", "VAL",
)
# Genetically encoded, post-translational, and those that crystallographers make.
MODIFIED = (
    "SEC", "PYL", "MSE", "HYP", "SEP", "TPO", "PTR", "TYS", "PCA", "CGU", "CSO", "CSD", "OCS", "CME", "SMC", "CSS",
    "KCX", "MLY", "MLZ", "M3L", "ALY", "LLP", "NEP", "HIC", "AGM", "CIR", "NLE", "ORN", "ABA", "AIB", "SAR", "MVA",
    "DAL", "DVA", "DLE",
)
# fmt: on
BACKBONE = ("N", "CA", "C", "O")


def _component(name: str) -> dict[str, Any]:
    """One residue as the JSON holds it; raises if the dictionary lacks an ideal coordinate."""
    from biotite.structure.info import get_from_ccd

    def column(field: str) -> list[str]:
        values = get_from_ccd("chem_comp_atom", name, field)
        if values is None:
            raise SystemExit(f"the CCD of this biotite has no component {name!r}")
        return [str(value) for value in values.as_array(str)]

    symbols, names = [symbol.upper() for symbol in column("type_symbol")], column("atom_id")
    xyz = zip(*(column(f"pdbx_model_Cartn_{axis}_ideal") for axis in "xyz"), strict=True)
    rows = [
        (atom, symbol, [round(float(value), 3) for value in at])
        for atom, symbol, at in zip(names, symbols, xyz, strict=True)
        if symbol not in ("H", "D")
    ]
    dictionary_order = [row[0] for row in rows]
    distance = _bonds_from_ca(name)

    def rank(row: tuple[str, str, list[float]]) -> tuple[int, int, int]:
        atom = row[0]
        first = BACKBONE.index(atom) if atom in BACKBONE else len(BACKBONE) + (atom == "OXT")
        return first, distance[atom], dictionary_order.index(atom)

    rows.sort(key=rank)
    if [row[0] for row in rows[:4]] != list(BACKBONE):
        raise SystemExit(f"{name}: no peptide backbone among {dictionary_order}")
    return {
        "letter": _letter(name),
        "names": [row[0] for row in rows],
        "elements": [row[1] for row in rows],
        "xyz": [row[2] for row in rows],
    }


def _bonds_from_ca(name: str) -> dict[str, int]:
    """How many bonds lie between CA and each atom of the residue."""
    from biotite.structure.info import bonds_in_residue

    distance, frontier = {"CA": 0}, ["CA"]
    while frontier:
        bonded = [b for pair in bonds_in_residue(name) for a, b in (pair, pair[::-1]) if a in frontier]
        frontier = sorted(set(bonded) - set(distance))
        distance.update(dict.fromkeys(frontier, 1 + max(distance.values())))
    return distance


def _letter(name: str) -> str | None:
    """The one-letter code of the residues that have one of their own (a modified one's is its parent's)."""
    from biotite.structure.info import one_letter_code

    return one_letter_code(name) if name in STANDARD or name in ("SEC", "PYL") else None


def _ccd_date() -> str:
    """The newest modification date of any component: the nearest thing to a version that the file has."""
    from biotite.structure.info import get_ccd

    return max(str(date) for date in get_ccd()["chem_comp"]["pdbx_modified_date"].as_array(str))


def _amino_acids() -> dict[str, Any]:
    """The names of all peptide-linking components, and the heavy atoms of those that have no CA."""
    from biotite.structure.info import amino_acid_names, get_ccd

    table = get_ccd()["chem_comp_atom"]
    atoms: dict[str, list[str]] = {name: [] for name in sorted(amino_acid_names())}
    fields = ("comp_id", "atom_id", "type_symbol")
    for name, atom, symbol in zip(*(table[field].as_array(str).tolist() for field in fields), strict=True):
        if name in atoms and symbol not in ("H", "D"):
            atoms[name].append(atom)
    return {
        "with_ca": " ".join(name for name, found in atoms.items() if "CA" in found),
        "without_ca": {name: " ".join(found) for name, found in atoms.items() if "CA" not in found},
    }


def build() -> dict[str, Any]:
    """The whole content of the file."""
    import biotite

    residues = {name: _component(name) for name in [*STANDARD, *MODIFIED]}
    # An unknown residue is taken to be alanine-like (the CCD's own UNK carries a CG, which nobody means by X).
    residues["UNK"] = {**residues["ALA"], "letter": "X"}
    return {
        "provenance": {
            "source": "Chemical Component Dictionary, wwPDB (CC0), ideal coordinates in Å",
            "shipped_by": f"biotite {biotite.__version__}",
            "newest_component": _ccd_date(),
            "made_by": "scripts/make_residue_templates.py",
        },
        "residues": residues,
        "amino_acids": _amino_acids(),
    }


def render(content: dict[str, Any]) -> str:
    """One line per residue, so that a change of the dictionary reads well in a diff."""
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content["residues"].items()]
    provenance = json.dumps(content["provenance"], ensure_ascii=False)
    acids = json.dumps(content["amino_acids"]).replace('", "', '",\n"')  # a line each
    parts = {"provenance": provenance, "residues": "{\n" + ",\n".join(lines) + "\n}", "amino_acids": acids}
    return "{\n" + ",\n".join(f'"{name}": {text}' for name, text in parts.items()) + "\n}\n"


if __name__ == "__main__":
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    output.write_text(render(build()), encoding="utf-8")
    print(f"wrote {output}")
