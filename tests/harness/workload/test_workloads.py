"""Named and synthetic workloads: sizes, layout, templates, the encoder's inputs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import get_args

import numpy as np
import pytest

from benchmarks.harness.schema.axes import AtomSet, WindowStyle
from benchmarks.harness.workload import templates as tables
from benchmarks.harness.workload import workloads
from benchmarks.harness.workload.templates import BACKBONE
from benchmarks.harness.workload.workloads import WorkloadError
from tests import ROOT

# name: heavy atoms, residues, chains
SYSTEMS = {
    "ubiquitin": (602, 76, 1),
    "gfp": (1_896, 238, 1),
    "1a28": (4_148, 512, 2),
    "1bd2": (6_686, 832, 5),
    "3kpr": (13_318, 1_652, 10),
    "4jsv": (23_922, 3_000, 4),
    "1aon": (60_998, 8_337, 21),
}
# The usual order of the 20, as PDB files and AlphaFold's atom14 have it.
ATOM14 = {
    "ALA": "N CA C O CB",
    "ARG": "N CA C O CB CG CD NE CZ NH1 NH2",
    "ASN": "N CA C O CB CG OD1 ND2",
    "ASP": "N CA C O CB CG OD1 OD2",
    "CYS": "N CA C O CB SG",
    "GLN": "N CA C O CB CG CD OE1 NE2",
    "GLU": "N CA C O CB CG CD OE1 OE2",
    "GLY": "N CA C O",
    "HIS": "N CA C O CB CG ND1 CD2 CE1 NE2",
    "ILE": "N CA C O CB CG1 CG2 CD1",
    "LEU": "N CA C O CB CG CD1 CD2",
    "LYS": "N CA C O CB CG CD CE NZ",
    "MET": "N CA C O CB CG SD CE",
    "PHE": "N CA C O CB CG CD1 CD2 CE1 CE2 CZ",
    "PRO": "N CA C O CB CG CD",
    "SER": "N CA C O CB OG",
    "THR": "N CA C O CB OG1 CG2",
    "TRP": "N CA C O CB CG CD1 CD2 NE1 CE2 CE3 CZ2 CZ3 CH2",
    "TYR": "N CA C O CB CG CD1 CD2 CE1 CE2 CZ OH",
    "VAL": "N CA C O CB CG1 CG2",
}


def test_the_names_are_the_seven_systems_smallest_first():
    assert workloads.names() == tuple(SYSTEMS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_has_its_published_size(name):
    heavy, residues, chains = SYSTEMS[name]
    found = {atoms: workloads.load(name, atoms) for atoms in workloads.ATOM_SETS}
    assert {a: w.n_atom for a, w in found.items()} == {
        "backbone": 4 * residues,
        "heavy": heavy,
        "atom14": 14 * residues,
    }
    for atoms, work in found.items():
        check_layout(work)
        assert (work.name, work.atoms, work.n_res, work.chain[-1] + 1) == (name, atoms, residues, chains)
        assert work.positions is None


def test_records_know_the_same_atom_sets_and_window_styles():
    assert get_args(AtomSet) == workloads.ATOM_SETS
    assert get_args(WindowStyle) == workloads.STYLES


def check_layout(work: workloads.Workload) -> None:
    """What every workload promises, whatever it came from."""
    n = work.n_atom
    assert work.tok_idx.dtype == work.chain.dtype == work.element.dtype == np.int64
    assert work.tok_idx.shape == work.chain.shape == work.element.shape == (n,)
    assert (work.ref_pos.shape, work.ref_pos.dtype) == ((n, 3), np.float32)
    assert (np.diff(work.tok_idx) >= 0).all()
    assert work.tok_idx[0] >= 0
    assert work.tok_idx[-1] < work.n_res
    assert work.chain[0] == 0
    assert set(np.diff(work.chain).tolist()) <= {0, 1}
    one_chain_per_residue = np.unique(np.stack([work.tok_idx, work.chain]), axis=1)
    assert one_chain_per_residue.shape[1] == len(np.unique(work.tok_idx))
    assert np.isfinite(work.ref_pos).all()
    assert (work.element >= 0).all()
    assert work.atoms == "atom14" or (work.element > 0).all()
    with pytest.raises(ValueError, match="read-only"):
        work.tok_idx[0] = 1


def test_only_a_chains_last_residue_has_its_terminal_oxygen():
    work = workloads.load("1bd2", "heavy")
    sizes = np.bincount(work.tok_idx)
    table = tables.templates()
    sequence = [row for record in workloads._systems()["1bd2"] for row in record.residues.tolist()]
    ends = np.flatnonzero(np.diff(work.chain)) + 1
    extra = np.flatnonzero(sizes - table.count[sequence])
    assert extra.tolist() == [*work.tok_idx[ends - 1].tolist(), work.n_res - 1]
    last = np.array([*(ends - 1), work.n_atom - 1])
    assert (work.element[last] == 8).all()
    carbon = np.searchsorted(work.tok_idx, work.tok_idx[last]) + BACKBONE.index("C")
    bond = np.linalg.norm(work.ref_pos[last] - work.ref_pos[carbon], axis=1)
    assert (np.abs(bond - 1.34) < 0.05).all()  # Å, C–OXT


def test_heavy_atoms_carry_their_elements_and_reference_coordinates():
    work = workloads.load("ubiquitin", "heavy")  # M Q I F …
    met = tables.templates().index["MET"]
    assert work.element[:8].tolist() == [7, 6, 6, 8, 6, 6, 16, 6]
    np.testing.assert_allclose(work.ref_pos[:8] - work.ref_pos[1], tables.templates().xyz[met, :8], atol=1e-5)
    bond = np.linalg.norm(work.ref_pos[6] - work.ref_pos[7])
    assert 1.7 < bond < 1.9  # S–C in methionine


def test_atom14_puts_virtual_atoms_at_ca():
    work = workloads.load("gfp", "atom14")
    element, ref = work.element.reshape(-1, 14), work.ref_pos.reshape(-1, 14, 3)
    heavy = workloads.load("gfp", "heavy")
    assert np.count_nonzero(element) == heavy.n_atom - 1  # OXT has no slot
    for slots, at in zip(element, ref):
        assert (at[slots == 0] == at[1]).all()
    assert (element[:, :4] == [7, 6, 6, 8]).all()


@pytest.mark.parametrize("name", ["ubiquitin", "1bd2"])
def test_consecutive_residues_are_a_peptide_bonds_length_apart_and_chains_stay_compact(name):
    work = workloads.load(name, "backbone")
    ca, chain = work.ref_pos[1::4], work.chain[1::4]
    same = np.diff(chain) == 0
    np.testing.assert_allclose(np.linalg.norm(np.diff(ca, axis=0), axis=1)[same], 3.8, atol=1e-4)
    assert len(np.unique(np.round(ca[chain == 0] / 3.8), axis=0)) == np.count_nonzero(chain == 0)
    assert np.abs(work.ref_pos).max() < 60


@pytest.mark.parametrize("atoms", workloads.ATOM_SETS)
@pytest.mark.parametrize("n_atom", [1, 3, 4, 5, 13, 14, 15, 1000, 2048, 65_536])
def test_a_synthetic_length_is_met_exactly(n_atom, atoms):
    work = workloads.synthetic(n_atom, atoms, seed=3)
    check_layout(work)
    assert (work.n_atom, work.atoms, work.name) == (n_atom, atoms, "synthetic")
    assert work.n_res == work.tok_idx[-1] + 1
    assert (np.unique(work.tok_idx) == np.arange(work.n_res)).all()
    whole = np.bincount(work.tok_idx)[:-1]
    if atoms == "heavy":
        assert set(whole.tolist()) <= set(range(4, 15))
    else:
        assert (whole == {"backbone": 4, "atom14": 14}[atoms]).all()


def test_synthetic_residues_follow_nature_and_the_seed():
    work = workloads.synthetic(200_000, "heavy", seed=0)
    sizes = np.bincount(work.tok_idx)[:-1]
    weights = np.array(list(workloads.COMPOSITION.values()))
    table = tables.templates()
    counts = np.array([table.count[table.letters[letter]] for letter in workloads.COMPOSITION])
    assert abs(sizes.mean() - (weights * counts).sum() / weights.sum()) < 0.05
    again, other = (workloads.synthetic(200_000, "heavy", seed=seed) for seed in (0, 1))
    assert (again.tok_idx == work.tok_idx).all()
    assert (other.tok_idx != work.tok_idx).any()


def test_a_million_synthetic_atoms_are_laid_out():
    work = workloads.synthetic(1_000_000, "heavy")
    assert work.n_atom == 1_000_000
    # A compact chain: on a straight line the far end's float32 coordinates would be coarser than 0.01 Å.
    assert np.spacing(np.abs(work.ref_pos).max()) < 1e-4


@pytest.mark.parametrize("n_atom", [0, -1, 10**9])
def test_an_impossible_length_is_refused(n_atom):
    with pytest.raises(WorkloadError, match=r"synthetic: expected 1 to 16,000,000 atoms, got"):
        workloads.synthetic(n_atom)


def test_unknown_names_and_atom_sets_are_refused_with_what_there_is():
    with pytest.raises(WorkloadError, match=r"'ubiquitn': expected one of ubiquitin, .* did you mean ubiquitin\?"):
        workloads.load("ubiquitn")
    for refused in (
        lambda: workloads.load("gfp", "atom37"),
        lambda: workloads.synthetic(10, "atom37"),
        lambda: workloads.from_file("x.pdb", "atom37"),
    ):
        with pytest.raises(WorkloadError, match="atoms: expected one of backbone, heavy, atom14; got 'atom37'"):
            refused()


def test_templates_have_the_usual_order_and_real_geometry():
    table = tables.templates()
    for name, atoms in ATOM14.items():
        assert " ".join(table.atoms[table.index[name]]) == atoms
    assert sorted(letter for letter in table.letters if letter.isupper()) == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for row in range(len(table.atoms)):
        at = table.xyz[row, : table.count[row]]
        apart = np.linalg.norm(at[:, None] - at[None], axis=-1) + 10 * np.eye(len(at))
        assert apart.min() > 1.0
        assert apart.min(1).max() < 2.2  # every atom is bonded to another one
        assert 1.1 < np.linalg.norm(table.terminal[row] - at[2]) < 1.5  # C–OXT


def test_the_shipped_templates_are_what_the_script_makes():
    pytest.importorskip("biotite")
    script = ROOT / "scripts" / "make_residue_templates.py"
    spec = importlib.util.spec_from_file_location("make_residue_templates", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = module.build()
    shipped = module.OUTPUT.read_text(encoding="utf-8")
    content = json.loads(shipped)
    assert made["residues"] == content["residues"]
    if made["provenance"]["shipped_by"] == content["provenance"]["shipped_by"]:
        assert module.render(made) == shipped


def test_named_workloads_need_neither_torch_nor_a_structure_library():
    code = (
        "import sys; from benchmarks.harness.workload import workloads as w;"
        "w.load('ubiquitin'); w.synthetic(100, 'heavy');"
        "w.neighbour_runs(w.load('gfp'), 32);"
        "print(sorted({'torch', 'biotite', 'pallatom', 'variants'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("atoms", workloads.ATOM_SETS)
def test_the_encoder_runs_on_a_workloads_inputs(atoms):
    torch = pytest.importorskip("torch")
    from pallatom.architecture.atom_transformers import AtomFeatureEncoder

    work = workloads.load("ubiquitin", atoms)
    inputs = workloads.encoder_inputs(work, batch=2, c_token=8, c_pair=4, dtype=torch.float32, seed=5)
    n, r = work.n_atom, work.n_res
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "ref_pos": (2, n, 3),
        "ref_element": (2, n, workloads.N_ELEMENT),
        "ref_space_uid": (n,),
        "s_input": (2, r, 8),
        "z_input": (2, r, r, 4),
        "r_scaled": (2, n, 3),
        "tok_idx": (n,),
    }
    assert (inputs["ref_element"].sum(-1) == 1).all()
    columns = inputs["ref_element"][0].argmax(-1).numpy()
    assert (np.array([*workloads.ELEMENT_COLUMNS, -1])[columns] == work.element).all()
    encoder = AtomFeatureEncoder(3 + workloads.N_ELEMENT, 8, 4, 8, 4, 8, 1, 2, 8)
    s_i, *_, c_l = encoder(**inputs)
    assert s_i.shape == (2, r, 8)
    assert c_l.isfinite().all()
    again = workloads.encoder_inputs(work, batch=2, c_token=8, c_pair=4, dtype=torch.float32, seed=5)
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
