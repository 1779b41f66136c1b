"""Workloads: real proteins by name, a user's own file, synthetic lengths, and the index over their atoms.

Sizes come from the protein or are asked for; K follows from the atoms and the window, or is capped.
Torch and the layer are imported only where tensors are made.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import fasta, files, structures
from .atoms import ATOM_SETS, Workload, WorkloadError, account, check_atoms, check_size, cut, from_chains, slots
from .templates import DATA, templates

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FASTA = DATA / "proteins.fasta"

# Amino acid composition of UniProtKB/Swiss-Prot, in percent (its release statistics).
COMPOSITION = {
    "A": 8.25, "R": 5.53, "N": 4.06, "D": 5.46, "C": 1.38, "Q": 3.93, "E": 6.72, "G": 7.07, "H": 2.27, "I": 5.91,
    "L": 9.65, "K": 5.80, "M": 2.41, "F": 3.86, "P": 4.74, "S": 6.65, "T": 5.36, "W": 1.10, "Y": 2.92, "V": 6.86,
}  # fmt: skip

BLOCK_QUERIES, BLOCK_KEYS = 32, 128
STYLES = ("residues", "blocks")

# Atomic numbers with a column of their own in the encoder's one-hot; 0 is the virtual atom, the last column the rest.
ELEMENT_COLUMNS = (0, 6, 7, 8, 16)
N_ELEMENT = len(ELEMENT_COLUMNS) + 1
POSITION_SCALE = 16.0  # Å, as AlphaFold3 and Pallatom scale noisy coordinates


@functools.cache
def _systems() -> dict[str, tuple[fasta.Record, ...]]:
    """The records of each named system, in the order of the file."""
    systems: dict[str, tuple[fasta.Record, ...]] = {}
    for record in fasta.parse(FASTA.read_text(encoding="utf-8"), FASTA.name).records:
        systems[record.name] = (*systems.get(record.name, ()), record)
    return systems


def names() -> tuple[str, ...]:
    """The named systems, smallest first: ubiquitin (602 heavy atoms) … 1aon (60,998)."""
    return tuple(_systems())


def load(name: str, atoms: str = "heavy") -> Workload:
    """A system by its name, or a structure or sequence file by its path.

    Raises
    ------
    WorkloadError
    """
    check_atoms(atoms)
    records = _systems().get(name)
    if records is None:
        if not files.looks_like_path(name):
            raise WorkloadError(_unknown(name))
        return from_file(name, atoms)
    return _from_records(name, f"{FASTA.name}: {records[0].header.partition(' ')[2]}", records, atoms)


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{name!r}: expected one of {', '.join(names())}, or the path of a file{hint}"


def from_file(path: str | Path, atoms: str = "heavy") -> Workload:
    """The protein in a user's mmCIF, PDB or FASTA file, plain or gzipped.

    Raises
    ------
    WorkloadError
        Naming the file, and what is wrong with it.
    """
    check_atoms(atoms)
    content = files.read(path)
    if content.kind != "fasta":
        return structures.workload(content, atoms)
    found = fasta.parse(content.text, content.origin)
    work = _from_records(content.name, content.origin, found.records, atoms)
    chains = sum(record.copies for record in found.records)
    return replace(work, account=account(work.n_res, chains, work.n_atom, atoms, found.left_out))


def _from_records(name: str, source: str, records: Sequence[fasta.Record], atoms: str) -> Workload:
    heavy = atoms == "heavy"
    check_size(sum(record.copies * (int(slots(record.residues, atoms).sum()) + heavy) for record in records), source)
    chains = [record.residues for record in records for _ in range(record.copies)]
    return from_chains(name, source, chains, atoms)


def synthetic(n_atom: int, atoms: str = "atom14", seed: int = 0) -> Workload:
    """One chain of exactly ``n_atom`` atoms; residues drawn with natural frequencies, the last one cut.

    Raises
    ------
    WorkloadError
    """
    check_atoms(atoms)
    check_size(n_atom, "synthetic")
    table = templates()
    rows = np.array([table.letters[letter] for letter in COMPOSITION])
    weights = np.array(list(COMPOSITION.values()))
    # The smallest residue has four atoms, so that this many residues are always enough.
    drawn = np.random.default_rng(seed).choice(rows, size=n_atom // 4 + 1, p=weights / weights.sum())
    needed = int(np.searchsorted(np.cumsum(slots(drawn, atoms)), n_atom)) + 1
    whole = from_chains("synthetic", f"synthetic, seed {seed}", [drawn[:needed]], atoms)
    return cut(whole, n_atom)


def neighbour_runs(
    workload: Workload, window: int, *, k_cap: int | None = None, style: str = "residues", chains: bool = True
) -> tuple[int, np.ndarray, np.ndarray]:
    """``(K, start [N], stop [N])``: each atom's live neighbours are the atoms ``start … stop - 1``; in O(N).

    Window ``residues``: ``|tok_idx[l] - tok_idx[m]| < window // 2``. Style ``blocks``: 32 queries x 128 keys,
    first key ``32 (l // 32) - 48``, moved inwards at the ends (``window`` plays no part). With ``chains``,
    neighbours are of the same chain, as in the encoder, in either style (AlphaFold3's own blocks look across).
    ``k_cap`` keeps the K nearest of an atom's neighbours along its chain, so that rows stay bands.
    Uncapped, K is the most neighbours that any atom has by the window alone: a chain's end leaves slots dead.
    """
    _check_index(window, k_cap, style)
    n = workload.n_atom
    atom = np.arange(n)
    if style == "blocks":
        first = BLOCK_QUERIES * (atom // BLOCK_QUERIES) - (BLOCK_KEYS - BLOCK_QUERIES) // 2
        start = np.clip(first, 0, max(0, n - BLOCK_KEYS))
        stop = np.minimum(start + BLOCK_KEYS, n)
    else:
        reach = window // 2 - 1
        start = np.searchsorted(workload.tok_idx, workload.tok_idx - reach, side="left")
        stop = np.maximum(start, np.searchsorted(workload.tok_idx, workload.tok_idx + reach, side="right"))
    n_neighbor = int((stop - start).max())
    if chains:
        first, last = _chain_bounds(workload.chain)
        start = np.maximum(start, first)
        stop = np.maximum(start, np.minimum(stop, last))
    if k_cap is not None and k_cap <= n_neighbor:
        n_neighbor = k_cap
        start = np.clip(atom - k_cap // 2, start, np.maximum(start, stop - k_cap))
        stop = np.minimum(start + k_cap, stop)
    return n_neighbor, start, stop


def _check_index(window: int, k_cap: int | None, style: str) -> None:
    if window < 1:
        raise WorkloadError(f"window: expected a number of residues of at least 1, got {window}")
    if k_cap is not None and k_cap < 1:
        raise WorkloadError(f"k_cap: expected a number of neighbours of at least 1, got {k_cap}")
    if style not in STYLES:
        raise WorkloadError(f"style: expected one of {', '.join(STYLES)}; got {style!r}")


def _chain_bounds(chain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one-past-last atom of each atom's chain (a chain's atoms follow each other)."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(chain)) + 1, [len(chain)]])
    sizes = np.diff(edges)
    return np.repeat(edges[:-1], sizes), np.repeat(edges[1:], sizes)


def attention_index(
    workload: Workload,
    window: int,
    *,
    k_cap: int | None = None,
    style: str = "residues",
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """``(neighbor_idx int64[N, K], valid_mask bool[N, K])`` over a workload's atoms (:func:`neighbour_runs`).

    The plain window comes from the layer's own ``build_sparse_pairs``, masked by chain.

    Raises
    ------
    WorkloadError
    """
    import torch

    from pallatom.architecture.atom_transformers import build_sparse_pairs

    n_neighbor, start, stop = neighbour_runs(workload, window, k_cap=k_cap, style=style)
    first, last = (torch.tensor(edge, device=device)[:, None] for edge in (start, stop))
    uncapped = k_cap is None or k_cap > n_neighbor
    if style == "residues" and uncapped:
        neighbor_idx, valid = build_sparse_pairs(torch.tensor(workload.tok_idx, device=device), window)
        return neighbor_idx, valid & (neighbor_idx >= first) & (neighbor_idx < last)
    neighbor_idx = first + torch.arange(n_neighbor, device=device)
    valid = neighbor_idx < last
    return neighbor_idx.masked_fill_(~valid, 0), valid


def encoder_inputs(
    workload: Workload,
    *,
    batch: int = 1,
    c_token: int,
    c_pair: int,
    dtype: torch.dtype,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> dict[str, Tensor]:
    """The arguments of ``AtomFeatureEncoder.forward`` over a workload's atoms, by name.

    Real: ``ref_pos [B,N,3]``, ``ref_element [B,N,E]`` (one column per element of ``ELEMENT_COLUMNS``, one for
    all others, so ``f_ref_dim = 3 + N_ELEMENT``), ``ref_space_uid [N]`` (the chain), ``tok_idx [N]``, and
    ``r_scaled [B,N,3]`` (centred, in units of 16 Å) where the workload has positions. Seeded noise on the
    device: ``s_input [B,R,c_token]``, ``z_input [B,R,R,c_pair]``, and ``r_scaled`` otherwise.
    """
    import torch

    generator = torch.Generator(device=device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, device=device, dtype=dtype)

    def known(values: np.ndarray) -> Tensor:
        return torch.tensor(values, device=device, dtype=dtype).expand(batch, *values.shape).contiguous()

    n, r, positions = workload.n_atom, workload.n_res, workload.positions
    return {
        "ref_pos": known(workload.ref_pos),
        "ref_element": known(_one_hot(workload.element)),
        "ref_space_uid": torch.tensor(workload.chain, device=device),
        "s_input": noise(r, c_token),
        "z_input": noise(r, r, c_pair),
        "r_scaled": noise(n, 3) if positions is None else known((positions - positions.mean(0)) / POSITION_SCALE),
        "tok_idx": torch.tensor(workload.tok_idx, device=device),
    }


def _one_hot(element: np.ndarray) -> np.ndarray:
    column = np.full(len(element), len(ELEMENT_COLUMNS))
    for at, number in enumerate(ELEMENT_COLUMNS):
        column[element == number] = at
    return np.eye(N_ELEMENT, dtype=np.float32)[column]


__all__ = [
    "ATOM_SETS",
    "ELEMENT_COLUMNS",
    "N_ELEMENT",
    "Workload",
    "WorkloadError",
    "attention_index",
    "encoder_inputs",
    "from_file",
    "load",
    "names",
    "neighbour_runs",
    "synthetic",
]
