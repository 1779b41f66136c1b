"""The atom table of a structure file: mmCIF, BinaryCIF or PDB, read by biotite (extra ``structures``)."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from .atoms import WorkloadError
from .files import Content

BLANK = ("", " ", ".", "?")


@dataclass(frozen=True)
class Atoms:
    """The atoms of model 1 as columns, ``polymer`` where the file tells that an atom belongs to a chain's sequence."""

    polymer: np.ndarray
    hetero: np.ndarray
    chain: np.ndarray
    number: np.ndarray
    residue: np.ndarray
    name: np.ndarray
    element: np.ndarray
    altloc: np.ndarray
    occupancy: np.ndarray
    xyz: np.ndarray

    def only(self, rows: np.ndarray) -> Atoms:
        return Atoms(**{field: column[rows] for field, column in vars(self).items()})


def atom_table(content: Content) -> Atoms:
    """The atoms of the file's first model, alternative locations and all.

    Raises
    ------
    WorkloadError
        The file is garbled or holds no atom, or biotite is missing.
    """
    try:
        import biotite.structure.io  # noqa: F401
    except ModuleNotFoundError as error:
        raise WorkloadError(
            f"{content.origin}: reading structures needs biotite (found: {error}); "
            "install the extra 'structures': pip install 'pallatom-bench[structures]', or pip install biotite"
        ) from error
    reader = {"pdb": _from_pdb, "mmcif": _from_cif, "bcif": _from_cif}[content.kind]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # elements guessed from names, a broken unit cell: neither matters
            table = reader(content)
    except WorkloadError:
        raise
    except Exception as error:  # a parser fed with garbage may raise anything; whatever it is, the file is at fault
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise WorkloadError(f"{content.origin}: garbled {content.kind} file ({cause})") from error
    if not len(table.name):
        raise WorkloadError(f"{content.origin}: no atom found")
    return table


def _from_pdb(content: Content) -> Atoms:
    from biotite.structure.io.pdb import PDBFile

    lines = [_filled(line) for line in content.text.splitlines()]
    if not any(line.startswith(("ATOM", "HETATM")) for line in lines):
        raise WorkloadError(f"{content.origin}: no ATOM or HETATM record, expected a PDB file")
    array = PDBFile.read(io.StringIO("\n".join(lines))).get_structure(model=1, altloc="all", extra_fields=["occupancy"])
    columns: Any = array
    return Atoms(
        polymer=np.zeros(len(array), bool),
        hetero=columns.hetero,
        chain=columns.chain_id,
        number=np.char.add(columns.res_id.astype(str), columns.ins_code),
        residue=columns.res_name,
        name=columns.atom_name,
        element=columns.element,
        altloc=columns.altloc_id,
        occupancy=columns.occupancy,
        xyz=columns.coord,
    )


def _filled(line: str) -> str:
    """A PDB line with occupancy and B factor, which many programs leave out and biotite insists on."""
    if not line.startswith(("ATOM  ", "HETATM")):
        return line
    line = line.ljust(80)
    occupancy, temperature = line[54:60], line[60:66]
    return (
        line[:54]
        + (occupancy if occupancy.strip() else "  1.00")
        + (temperature.strip() or "0.00").rjust(6)
        + line[66:]
    )


def _from_cif(content: Content) -> Atoms:
    from biotite.structure.io.pdbx import BinaryCIFFile, CIFFile

    if content.kind == "bcif":
        file: Any = BinaryCIFFile.read(io.BytesIO(content.data))
    else:
        file = CIFFile.read(io.StringIO(content.text))
    site = next((block["atom_site"] for block in file.values() if "atom_site" in block), None)
    if site is None:
        raise WorkloadError(f"{content.origin}: no atom_site category, expected a structure in mmCIF")

    def column(*fields: str, default: str | None = None) -> np.ndarray:
        """The first of these columns that says anything."""
        found = [site[field].as_array(str) for field in fields if field in site]
        for values in found:
            if not np.isin(values, BLANK).all():
                return values
        if found:
            return found[0]
        if default is None:
            raise WorkloadError(f"{content.origin}: atom_site has no {' or '.join(fields)}")
        return np.full(site.row_count, default)

    hetero = column("group_PDB", default="ATOM") == "HETATM"
    label = column("label_seq_id", default=".")
    polymer = ~np.isin(label, BLANK)
    if (polymer | hetero).all():  # the sequence's own numbers, wherever the file has them
        chain, number = column("label_asym_id", "auth_asym_id", default="A"), label
    else:
        polymer[:] = False
        chain = column("auth_asym_id", "label_asym_id", default="A")
        code = column("pdbx_PDB_ins_code", default="")
        number = np.char.add(column("auth_seq_id", "label_seq_id"), np.where(np.isin(code, BLANK), "", code))
    occupancy = column("occupancy", default="1")
    table = Atoms(
        polymer=polymer,
        hetero=hetero,
        chain=chain,
        number=number,
        residue=column("label_comp_id", "auth_comp_id"),
        name=column("label_atom_id", "auth_atom_id"),
        element=_elements(column("type_symbol", default=""), column("label_atom_id", "auth_atom_id")),
        altloc=column("label_alt_id", default=""),
        occupancy=np.where(np.isin(occupancy, BLANK), "1", occupancy).astype(float),
        xyz=np.stack([site[f"Cartn_{axis}"].as_array(float, masked_value=np.nan) for axis in "xyz"], -1),
    )
    model = column("pdbx_PDB_model_num", default="1")
    return table.only(model == model[0]) if len(model) else table


def _elements(symbols: np.ndarray, names: np.ndarray) -> np.ndarray:
    """The symbols, and for atoms without one the first letter of their name, which is right for C, N, O, S, H and P."""
    letters = [name.lstrip("0123456789")[:1] for name in names.tolist()]
    return np.where(np.isin(symbols, BLANK), letters, symbols)
