"""``structure FILE``: what is read of a structure or sequence file, and what is left out, without measuring."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from ..harness.schema.axes import ATOM_SETS
from ..harness.schema.shown import shown
from ..harness.workload import workloads
from ..harness.workload.files import FORMATS
from . import options as opt


@opt.reported
def structure(
    files: Annotated[list[str], typer.Argument(help=f"{FORMATS}.", metavar="FILE…")],
    atoms: Annotated[str, typer.Option(help=f"Atoms per residue: {', '.join(ATOM_SETS)}.")] = "heavy",
    as_json: opt.Json = False,
) -> None:
    """What is read of a file? Residues, chains and atoms, chain by chain, and what was left out; nothing is measured.

    Examples:

      python -m benchmarks structure my.cif

      python -m benchmarks structure *.pdb.gz --atoms atom14 --json
    """
    found = [_read(path, atoms) for path in files]
    if as_json:
        print(json.dumps(found))
        return
    for one in found:
        print(shown(f"{one['file']}: {one['read']}"))
        for number, chain in enumerate(one["chains"], 1):
            print(f"  chain {number}: {chain['residues']:,} residues, {chain['atoms']:,} atoms")


def _read(path: str, atoms: str) -> dict[str, Any]:
    work = workloads.from_file(path, atoms)
    chains = [{"residues": residues, "atoms": n} for residues, n in work.chain_sizes]
    return {"file": path, "read": work.account, "chains": chains}
