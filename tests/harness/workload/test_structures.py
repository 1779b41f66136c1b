"""A user's structure file: mmCIF and PDB texts written here, read back, and broken in every way."""

from __future__ import annotations

import contextlib
import gzip
import io
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.workload import workloads
from benchmarks.harness.workload.templates import ATOMIC_NUMBER, templates
from benchmarks.harness.workload.workloads import WorkloadError
from tests import ROOT
from tests.harness.workload.test_workloads import check_layout

pytest.importorskip("gemmi")


@dataclass(frozen=True)
class Atom:
    name: str
    residue: str
    number: int
    xyz: tuple[float, float, float]
    chain: str = "A"
    element: str = ""
    altloc: str = ""
    insertion: str = ""
    occupancy: float = 1.0
    hetero: bool = False
    model: int = 1
    label_seq: str | None = None


def residue(name: str, number: int, *, only: str | None = None, template: str | None = None, **more) -> list[Atom]:
    """A residue's heavy atoms at made-up places; ``only`` picks atoms by name."""
    row = templates().index[template or name]
    symbols = {number: symbol for symbol, number in ATOMIC_NUMBER.items()}
    return [
        Atom(atom, name, number, (float(number), slot / 8, len(name) / 2), element=symbols[int(element)], **more)
        for slot, (atom, element) in enumerate(zip(templates().atoms[row], templates().element[row]))
        if only is None or atom in only.split()
    ]


def pdb(atoms: list[Atom], *, models: bool = False) -> str:
    lines = []
    for serial, a in enumerate(atoms, 1):
        if models and (serial == 1 or a.model != atoms[serial - 2].model):
            lines.append(f"MODEL     {a.model:4d}")
        name = a.name if len(a.name) == 4 else f" {a.name:<3}"
        x, y, z = a.xyz
        lines.append(
            f"{'HETATM' if a.hetero else 'ATOM':<6}{serial:5d} {name}{a.altloc:1}{a.residue:>3} {a.chain:1}"
            f"{a.number:4d}{a.insertion:1}   {x:8.3f}{y:8.3f}{z:8.3f}{a.occupancy:6.2f}{0:6.2f}          {a.element:>2}"
        )
    return "\n".join([*lines, "END", ""])


# fmt: off
FIELDS = (
    "group_PDB", "id", "type_symbol", "label_atom_id", "label_alt_id", "label_comp_id", "label_asym_id", "label_seq_id",
    "auth_seq_id", "auth_asym_id", "pdbx_PDB_ins_code", "Cartn_x", "Cartn_y", "Cartn_z", "occupancy",
    "pdbx_PDB_model_num",
)
# fmt: on


def mmcif(atoms: list[Atom]) -> str:
    lines = ["data_test", "loop_", *(f"_atom_site.{field}" for field in FIELDS)]
    for serial, a in enumerate(atoms, 1):
        seq = a.label_seq or str(a.number)
        lines.append(
            f"{'HETATM' if a.hetero else 'ATOM'} {serial} {a.element or '?'} {a.name} {a.altloc or '.'} {a.residue} "
            f"{a.chain} {seq} {a.number} {a.chain} {a.insertion or '?'} {a.xyz[0]} {a.xyz[1]} {a.xyz[2]} "
            f"{a.occupancy} {a.model}"
        )
    return "\n".join([*lines, "#", ""])


WRITERS = {"pdb": pdb, "cif": mmcif}
TRIPEPTIDE = [*residue("ALA", 1), *residue("TRP", 2), *residue("GLY", 3)]


@pytest.fixture
def write(tmp_path):
    def written(content: str | bytes, name: str = "user.pdb") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return written


@pytest.fixture(params=WRITERS)
def load(request, write):
    """Write atoms in either format and read them back."""

    def loaded(atoms: list[Atom], atom_set: str = "heavy") -> workloads.Workload:
        work = workloads.from_file(write(WRITERS[request.param](atoms), f"user.{request.param}"), atom_set)
        check_layout(work)
        assert work.positions is not None
        assert work.positions.shape == (work.n_atom, 3)
        return work

    return loaded


def sizes(work: workloads.Workload) -> list[int]:
    return np.bincount(work.tok_idx, minlength=work.n_res).tolist()


def test_each_atom_set_of_a_whole_peptide(load):
    heavy, backbone, atom14 = (load(TRIPEPTIDE, atoms) for atoms in ("heavy", "backbone", "atom14"))
    assert (sizes(heavy), sizes(backbone), sizes(atom14)) == ([5, 14, 4], [4, 4, 4], [14, 14, 14])
    np.testing.assert_allclose(heavy.positions, [a.xyz for a in TRIPEPTIDE], atol=1e-3)
    assert heavy.element.tolist() == [ATOMIC_NUMBER[a.element] for a in TRIPEPTIDE]
    assert np.count_nonzero(atom14.element) == len(TRIPEPTIDE)
    virtual = atom14.element.reshape(3, 14) == 0
    positions = atom14.positions.reshape(3, 14, 3)
    assert (positions[0][virtual[0]] == positions[0][1]).all()
    assert (heavy.name.startswith("user."), heavy.n_res) == (True, 3)


def test_reference_positions_are_the_templates_whatever_the_files_are(load):
    work = load(TRIPEPTIDE)
    table = templates()
    trp = work.ref_pos[5:19]
    np.testing.assert_allclose(trp - trp[1], table.xyz[table.index["TRP"], :14], atol=1e-5)
    assert abs(np.linalg.norm(work.ref_pos[6] - work.ref_pos[1]) - 3.8) < 1e-4


def test_missing_atoms_are_missing(load):
    atoms = [*residue("TRP", 1, only="N CA CB"), *residue("LYS", 2, only="CB CG"), *residue("GLY", 3)]
    assert sizes(load(atoms, "heavy")) == [3, 2, 4]
    assert sizes(load(atoms, "backbone")) == [2, 0, 4]
    work = load(atoms, "atom14")
    assert sizes(work) == [14, 14, 14]
    assert np.flatnonzero(work.element.reshape(3, 14)[1]).tolist() == [4, 5]
    assert (work.positions[14 : 14 + 4] == work.positions[14 + 4 : 14 + 6].mean(0)).all()  # no CA: at the centre


def test_a_ca_trace_is_a_protein(load):
    work = load([atom for number in range(1, 6) for atom in residue("ALA", number, only="CA")])
    assert (work.n_atom, work.n_res) == (5, 5)


def test_hydrogens_are_left_out_and_atoms_put_in_order(load):
    hydrogen = Atom("HA", "GLY", 1, (0, 0, 0), element="H")
    deuterium = Atom("DA", "GLY", 1, (0, 0, 1), element="D")
    oxt = Atom("OXT", "GLY", 1, (9, 9, 9), element="O")
    work = load([oxt, hydrogen, *residue("GLY", 1)[::-1], deuterium])
    assert work.element.tolist() == [7, 6, 6, 8, 8]
    assert work.positions[-1].tolist() == [9, 9, 9]
    assert load([oxt, *residue("GLY", 1)], "atom14").n_atom == 14


def test_chains_follow_each_other_and_keep_their_residues(load):
    atoms = [
        *residue("GLY", 5),
        *residue("ALA", 5, chain="B"),
        *residue("GLY", 6),
        *residue("MSE", 6, chain="B", hetero=True),
    ]
    work = load(atoms)
    assert sizes(work) == [4, 4, 5, 8]
    assert work.chain[[0, 7, 8, -1]].tolist() == [0, 0, 1, 1]
    assert work.element[-2] == ATOMIC_NUMBER["SE"]


def test_a_chain_name_that_comes_again_with_the_same_residues_is_another_chain(load):
    atoms = [*residue("GLY", 1), *residue("ALA", 2), *residue("GLY", 1), *residue("ALA", 2)]
    work = load(atoms)
    assert sizes(work) == [4, 5, 4, 5]
    assert np.bincount(work.chain).tolist() == [9, 9]


def test_of_alternative_locations_the_fullest_is_taken(load):
    rest = residue("SER", 1, only="N CA C O")
    low = [replace(a, altloc="A", occupancy=0.3, xyz=(1, 1, 1)) for a in residue("SER", 1, only="CB OG")]
    high = [replace(a, altloc="B", occupancy=0.7, xyz=(2, 2, 2)) for a in residue("SER", 1, only="CB OG")]
    lone = [Atom("OXT", "SER", 1, (3, 3, 3), element="O", altloc="A", occupancy=0.3)]
    for atoms in ([*rest, *low, *high, *lone], [*rest, *high, *low, *lone]):
        work = load([*atoms, *residue("GLY", 2)])
        assert sizes(work) == [7, 4]
        assert work.positions[4:7, 0].tolist() == [2, 2, 3]


def test_one_alternative_is_taken_for_all_atoms_that_have_it(load):
    rest = residue("SER", 1, only="N CA C O")
    sides = [("A", 0.9, 0.1), ("B", 0.2, 0.95)]  # B has more in all, A more of CB
    for letter, *occupancies in sides:
        for atom, occupancy in zip(residue("SER", 1, only="CB OG"), occupancies):
            rest.append(replace(atom, altloc=letter, occupancy=occupancy, xyz=("AB".index(letter), 0, 0)))
    assert load(rest).positions[4:, 0].tolist() == [1, 1]


def test_alternative_locations_may_be_listed_apart(load):
    first, second = residue("SER", 1), residue("GLY", 2)
    atoms = [replace(a, altloc="A", occupancy=0.6) for a in [*first, *second]]
    atoms += [replace(a, altloc="B", occupancy=0.4) for a in [*first, *second]]
    assert sizes(load(atoms)) == [6, 4]


def test_of_two_residues_in_one_place_the_fullest_is_taken(load):
    atoms = [replace(a, altloc="A", occupancy=0.4) for a in residue("SER", 1)]
    atoms += [replace(a, altloc="B", occupancy=0.6) for a in residue("TRP", 1)]
    assert sizes(load([*atoms, *residue("GLY", 2)])) == [14, 4]


def test_insertion_codes_are_residues_of_their_own(write):
    atoms = [*residue("GLY", 52), *residue("ALA", 52, insertion="A"), *residue("SER", 52, insertion="B")]
    assert sizes(workloads.from_file(write(pdb(atoms)))) == [4, 5, 6]
    bare = [replace(a, label_seq=".") for a in atoms]  # as programs other than the PDB's write it
    assert sizes(workloads.from_file(write(mmcif(bare), "user.cif"))) == [4, 5, 6]
    numbered = [replace(a, label_seq=str(1 + "GAS".index(a.residue[0]))) for a in atoms]
    assert sizes(workloads.from_file(write(mmcif(numbered), "user.cif"))) == [4, 5, 6]


def test_only_the_first_model_counts(write):
    atoms = [replace(a, model=model) for model in (1, 2) for a in TRIPEPTIDE]
    shorter = [*TRIPEPTIDE, *(replace(a, model=2) for a in residue("GLY", 1))]
    for content in (atoms, shorter):
        assert workloads.from_file(write(pdb(content, models=True))).n_atom == 23
        assert workloads.from_file(write(mmcif(content), "user.cif")).n_atom == 23


@pytest.mark.parametrize("name", ["MSE", "SEP", "TPO", "PTR", "HYP", "MLY", "SEC", "PYL", "UNK"])
def test_modified_residues_count_as_the_proteins(load, name):
    atoms = [*residue("GLY", 1), *residue(name, 2, hetero=True), *residue("GLY", 3)]
    count = int(templates().count[templates().index[name]])
    assert sizes(load(atoms)) == [4, count, 4]
    assert sizes(load(atoms, "atom14")) == [14, 14, 14]


def test_a_modified_residue_without_a_template_keeps_the_files_geometry(load):
    atoms = [*residue("GLY", 1), *residue("NVA", 2, template="ARG", only="N CA C O CB CG"), *residue("GLY", 3)]
    work = load(atoms)
    assert sizes(work) == [4, 6, 4]
    np.testing.assert_allclose(
        work.ref_pos[4:10] - work.ref_pos[5], work.positions[4:10] - work.positions[5], atol=1e-3
    )


def test_a_chromophore_has_atoms_but_no_backbone(write):
    chromophore = [
        Atom(name, "CRO", 2, (0, 0, at), element=name[0], hetero=True)
        for at, name in enumerate(("N1", "CA1", "C1", "N2", "CA2", "C2", "O2", "N3", "CA3", "C3", "O3"))
    ]
    path = write(mmcif([*residue("GLY", 1), *chromophore, *residue("GLY", 3)]), "user.cif")
    assert sizes(workloads.from_file(path)) == [4, 11, 4]
    assert sizes(workloads.from_file(path, "backbone")) == [4, 0, 4]


def test_force_field_names_are_understood(load):
    atoms = [*residue("HSD", 1, template="HIS"), *residue("CYX", 2, template="CYS"), *residue("HID", 3, template="HIS")]
    assert sizes(load(atoms)) == [10, 6, 10]
    names = ("N", "CA", "C", "OT1", "CB", "CG1", "CG2", "CD", "OT2")
    odd = [Atom(name, "ILE", 1, (at, 0, 0), element=name[0]) for at, name in enumerate(names)]
    work = load(odd, "atom14")
    assert work.element.tolist() == [7, 6, 6, 8, 6, 6, 6, 6, 0, 0, 0, 0, 0, 0]
    assert load(odd).n_atom == 9


def test_a_force_fields_name_that_the_dictionary_gave_to_another_compound_is_judged_by_its_atoms(load):
    phosphorus = Atom("P", "HIP", 1, (9, 9, 9), element="P")  # phosphohistidine, not protonated histidine
    atoms = [*residue("HIP", 1, template="HIS"), phosphorus]
    assert load(atoms).element[-1] == ATOMIC_NUMBER["P"]
    assert sizes(load(atoms[:-1])) == [10]


def test_ligands_water_and_nucleic_acids_are_left_out(load):
    others = [
        Atom("O", "HOH", 101, (0, 0, 0), element="O", hetero=True),
        Atom("CA", "CA", 102, (0, 0, 0), element="CA", hetero=True),
        Atom("C1'", "DA", 1, (0, 0, 0), chain="B", element="C"),
        Atom("P", "G", 2, (0, 0, 0), chain="B", element="P"),
        Atom("C1", "HEM", 103, (0, 0, 0), element="C", hetero=True),
    ]
    assert load([*TRIPEPTIDE, *others]).n_atom == len(TRIPEPTIDE)


def test_a_free_amino_acid_is_a_ligand(write):
    ligand = residue("GLU", 200, hetero=True)
    assert workloads.from_file(write(pdb([*TRIPEPTIDE, *ligand]))).n_res == 3
    unnumbered = [replace(a, label_seq=".", chain="C") for a in ligand]
    assert workloads.from_file(write(mmcif([*TRIPEPTIDE, *unnumbered]), "user.cif")).n_res == 3


def test_elements_and_occupancies_may_be_left_out(write):
    text = pdb([replace(a, element="") for a in TRIPEPTIDE])
    hydrogen = Atom("1HB", "ALA", 1, (0, 0, 0))
    for name, written in {"a.cif": mmcif, "a.pdb": pdb}.items():
        atoms = [replace(a, element="") for a in [*TRIPEPTIDE[:5], hydrogen, *TRIPEPTIDE[5:]]]
        assert workloads.from_file(write(written(atoms), name)).n_atom == len(TRIPEPTIDE)
    bare = "\n".join(line[:54] if line.startswith("ATOM") else line for line in text.splitlines())
    for content in (text, bare, bare.replace("\n", "\r\n")):
        work = workloads.from_file(write(content))
        assert work.element.tolist() == [ATOMIC_NUMBER[a.element] for a in TRIPEPTIDE]


def test_gzip_and_binary_cif(write):
    pytest.importorskip("biotite")
    from biotite.structure.io.pdb import PDBFile
    from biotite.structure.io.pdbx import BinaryCIFFile, set_structure

    binary = BinaryCIFFile()
    set_structure(binary, PDBFile.read(io.StringIO(pdb(TRIPEPTIDE))).get_structure(model=1))
    stream = io.BytesIO()
    binary.write(stream)
    for name, content in {
        "a.pdb.gz": gzip.compress(pdb(TRIPEPTIDE).encode()),
        "b.cif.gz": gzip.compress(mmcif(TRIPEPTIDE).encode()),
        "c.bcif": stream.getvalue(),
        "d.bcif.gz": gzip.compress(stream.getvalue(), mtime=0),
        "e.ENT": pdb(TRIPEPTIDE),
        "f.mmcif": mmcif(TRIPEPTIDE),
    }.items():
        assert workloads.from_file(write(content, name)).n_atom == len(TRIPEPTIDE)


def test_known_positions_reach_the_encoder_scaled(load):
    torch = pytest.importorskip("torch")
    work = load(TRIPEPTIDE)
    inputs = workloads.encoder_inputs(work, batch=2, c_token=4, c_pair=4, dtype=torch.float64)
    expected = (work.positions - work.positions.mean(0)) / 16
    np.testing.assert_allclose(inputs["r_scaled"].numpy(), np.stack([expected] * 2), atol=1e-6)


WATER = [Atom("O", "HOH", 1, (0, 0, 0), element="O", hetero=True)]
DNA = [Atom(n, "DA", 1, (0, 0, at), element=n[0]) for at, n in enumerate(("P", "C1'", "N9"))]
STRANGE = [replace(a, residue="Z%Z") for a in residue("ALA", 2)]
GOOD_PDB, GOOD_CIF = pdb(TRIPEPTIDE), mmcif(TRIPEPTIDE)


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.pdb", pdb(WATER), r"no protein atom \(residues found: HOH\)"),
        ("a.cif", mmcif(WATER), "no protein atom"),
        ("a.pdb", pdb(DNA), r"no protein atom \(residues found: DA\)"),
        ("a.cif", mmcif(DNA), "no protein atom"),
        ("a.pdb", pdb([replace(a, element="H") for a in TRIPEPTIDE]), "no protein atom"),
        ("a.pdb", pdb([*TRIPEPTIDE, *STRANGE]), "residue Z%Z A 2: unknown residue"),
        ("a.cif", mmcif(STRANGE), "residue Z%Z A 2: unknown residue"),
        ("a.pdb", pdb([*TRIPEPTIDE[:5], *TRIPEPTIDE[:5]]), "residue ALA A 1: atom N occurs twice"),
        ("a.cif", mmcif([*TRIPEPTIDE[:5], TRIPEPTIDE[1]]), "residue ALA A 1: atom CA occurs twice"),
        ("a.pdb", "", "empty file"),
        ("a.cif", "\n\n", "empty file"),
        ("a.bcif", b"", "empty file"),
        ("a.pdb", "HEADER\nEND\n", "no ATOM or HETATM record"),
        ("a.pdb", GOOD_CIF.replace("ATOM ", "XTOM "), "expected PDB, got mmCIF"),
        ("a.cif", GOOD_PDB, "expected mmCIF, got PDB"),
        ("a.cif", "data_x\n_cell.a 1\n", "no atom_site category"),
        ("a.cif", "just some prose", "garbled mmcif file|no atom_site"),
        ("a.cif", GOOD_CIF[:-40], "garbled mmcif file"),
        ("a.cif", GOOD_CIF.replace("_atom_site.Cartn_y\n", ""), "garbled mmcif file"),
        ("a.cif", GOOD_CIF.replace("Cartn_y", "Fract_y"), "garbled mmcif file"),
        ("a.cif", GOOD_CIF.replace("label_atom_id", "other"), "atom_site has no label_atom_id or auth_atom_id"),
        ("a.cif", GOOD_CIF.replace(" 0.125 ", " abc "), "garbled mmcif file"),
        ("a.cif", GOOD_CIF.replace(" 0.125 ", " 1e30 "), "residue ALA A 1: expected coordinates within"),
        ("a.pdb", GOOD_PDB.replace("   0.125", "     inf"), "residue ALA A 1: expected coordinates within"),
        ("a.pdb", GOOD_PDB.replace("   0.125", "  x.yzwq"), "garbled pdb file"),
        ("a.pdb", GOOD_PDB.replace("A   1 ", "A  &1 "), "garbled pdb file"),
        ("a.pdb", b"\x7fELF\0\0\0" * 50, "expected text, got binary data"),
        ("a.cif", b"\x89PNG\r\n\0\0" * 50, "expected text, got binary data"),
        ("a.bcif", b"\x89PNG\r\n\0\0" * 50, "garbled bcif file"),
        ("a.pdb.gz", gzip.compress(GOOD_PDB.encode(), mtime=0)[:-20], "cut off"),
        ("a.cif.gz", gzip.compress(GOOD_CIF.encode(), mtime=0)[:100], "cut off"),
        ("a.cif.gz", b"\x1f\x8b" + bytes(100), "garbled gzip"),
    ],
)
def test_bad_content_is_named_with_its_cause(write, name, content, cause):
    path = write(content, name)
    with pytest.raises(WorkloadError, match=cause) as caught:
        workloads.from_file(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("library", "file"), [("gemmi", "a.cif"), ("biotite", "a.bcif")])
def test_without_its_library_the_extra_is_named(write, monkeypatch, library, file):
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(WorkloadError, match=rf"needs {library}.*pallatom-bench\[structures\]"):
        workloads.from_file(write(GOOD_CIF, file))
    assert workloads.from_file(write(GOOD_PDB)).n_res == 3  # columns alone


@pytest.mark.parametrize("name", ["missing.pdb", "water.pdb"])
def test_the_command_line_says_so_and_exits_with_2(tmp_path, name):
    (tmp_path / "water.pdb").write_text(pdb(WATER))
    command = [sys.executable, "-m", "benchmarks", "check", "--device", "cpu", "--structure", str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_protein_or_a_workload_error(tmp_path_factory, content):
    for name in ("x.pdb", "x.cif", "x.bcif"):
        path = tmp_path_factory.getbasetemp() / name
        for prefix in (b"", b"data_x\nloop_\n_atom_site.id\n", b"ATOM  ", b"\x1f\x8b\x08"):
            path.write_bytes(prefix + content)
            with contextlib.suppress(WorkloadError):
                check_layout(workloads.from_file(path))


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from(["x.pdb", "x.cif"]), atoms=st.sampled_from(workloads.ATOM_SETS))
def test_a_file_with_a_few_bytes_broken_is_a_protein_or_a_workload_error(tmp_path_factory, data, name, atoms):
    content = bytearray((GOOD_PDB if name == "x.pdb" else GOOD_CIF).encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(bytes(content))
    with contextlib.suppress(WorkloadError):
        check_layout(workloads.from_file(path, atoms))
