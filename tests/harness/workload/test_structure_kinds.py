"""Kinds of structure files that were once read wrongly: the smallest input of each, and the right value beside it."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.harness.workload import cif_table, workloads
from benchmarks.harness.workload.workloads import WorkloadError
from tests.harness.workload.test_structures import TRIPEPTIDE, Atom, mmcif, pdb, residue, sizes, write

pytest.importorskip("gemmi")
__all__ = ["write"]  # a fixture

GLY_SER = [*residue("GLY", 1), *residue("SER", 2)]
WATER = Atom("O", "HOH", 90, (50, 0, 0), element="O", hetero=True)
Read = Callable[[str, str], workloads.Workload]


@pytest.fixture
def read(write) -> Read:
    return lambda content, name="user.pdb": workloads.from_file(write(content, name))


def chains(work: workloads.Workload) -> list[int]:
    """Residues of each chain."""
    return [residues for residues, _ in work.chain_sizes]


def left_out(work: workloads.Workload) -> str:
    assert work.account is not None
    return work.account.partition("left out: ")[2]


def ter(*parts: list[Atom], tail: str = "") -> str:
    """A PDB text with TER behind each part."""
    return "".join(pdb(part).replace("END\n", "TER\n") for part in parts) + tail + "END\n"


def moved(atoms: list[Atom], by: float) -> list[Atom]:
    return [replace(a, xyz=(a.xyz[0] + by, *a.xyz[1:])) for a in atoms]


# -- 1. tags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("_atom_site.", "  _atom_site."),
        lambda text: text.replace("_atom_site.", "\t_ATOM_SITE.").replace("loop_", " LOOP_"),
        lambda text: text.replace("label_atom_id", "Label_Atom_ID").replace("Cartn_x", "cartn_X"),
        lambda text: text.replace("data_test", "DATA_test"),
        lambda text: text.replace(
            "data_test\n", "data_test\n_a.note\n;\nloop_\n_atom_site.id\n_atom_site.Cartn_x\n;\n"
        ),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(" CA ", ' "CA" '),
    ],
    ids=["indented", "tabs and capitals", "mixed case", "block", "text field", "carriage returns", "quotes"],
)
def test_tags_are_found_wherever_they_stand(read, change):
    text = change(mmcif(TRIPEPTIDE))
    assert sizes(read(text, "a.cif")) == [5, 14, 4]


# -- 2. what is no amino acid ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DPP", "OLE", "UNK", "POP", "NVA"])
def test_a_name_alone_makes_no_residue(read, name):
    lipid = [Atom(n, name, 9, (60, 0, at), element=n[0]) for at, n in enumerate(("C1", "C2", "O3", "P8"))]
    for text, file in ((pdb([*TRIPEPTIDE, *lipid]), "a.pdb"), (mmcif([*TRIPEPTIDE, *lipid]), "a.cif")):
        work = read(text, file)
        assert (sizes(work), left_out(work)) == ([5, 14, 4], f"1 ligand ({name})")


def test_what_is_in_a_polypeptide_needs_no_name_but_a_ca(read):
    cap = [Atom(n, "ACE", 1, (0, 0, at), element=n[0], hetero=True) for at, n in enumerate(("C", "O", "CH3"))]
    new = residue("ZZ9", 2, template="ALA", hetero=True)
    table = mmcif([*cap, *new, *residue("GLY", 3)]).replace("data_test\n", "data_test\n_entity_poly.entity_id 1\n"
                  "_entity_poly.type 'polypeptide(L)'\n_struct_asym.id A\n_struct_asym.entity_id 1\n")  # fmt: skip
    work = read(table, "a.cif")
    assert (sizes(work), left_out(work)) == ([5, 4], "1 ligand (ACE)")


# -- 3. frames ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["END\n", "ENDMDL\n", "END   \n", "ENDMDL\nTITLE     next\n"])
def test_frames_are_no_chains(read, end):
    frame = pdb(TRIPEPTIDE).replace("END\n", end)
    work = read("CRYST1\n" + 3 * frame)
    assert (chains(work), left_out(work)) == ([3], "2 other models")


# -- 4. where chains end --------------------------------------------------------------------------


def test_ter_ends_a_chain_without_a_letter(read):
    first = [replace(a, chain=" ") for a in GLY_SER]
    second = [replace(a, chain=" ", number=a.number + 10) for a in TRIPEPTIDE]
    assert chains(read(ter(first, second))) == [2, 3]


def test_ter_ends_a_chain_whose_numbers_go_on_without_a_gap_or_begin_again(read):
    for by in (2, 0):
        assert chains(read(ter(GLY_SER, [replace(a, number=a.number + by) for a in TRIPEPTIDE]))) == [2, 3]


def test_ter_at_a_gap_inside_one_numbered_chain_ends_nothing(read):
    assert chains(read(ter(GLY_SER, [replace(a, number=a.number + 9) for a in TRIPEPTIDE]))) == [5]


def test_segments_are_chains(read):
    lines = pdb([replace(a, chain=" ", number=a.number + 1) for a in [*GLY_SER, *TRIPEPTIDE]]).splitlines()
    marked = [f"{line[:72]}{'PRO' + 'AB'[at >= 10]}{line[76:]}" for at, line in enumerate(lines[:-1])]
    assert chains(read("\n".join(marked))) == [2, 3]


def test_a_chain_may_have_two_letters(read):
    lines = pdb([*GLY_SER, *TRIPEPTIDE]).splitlines()
    marked = [f"{line[:20]}{'A' + 'AB'[at >= 10]}{line[22:]}" for at, line in enumerate(lines[:-1])]
    assert chains(read("\n".join(marked))) == [2, 3]


def test_a_residues_name_may_have_four_letters(read):
    text = pdb([*residue("HIS", 1), *residue("GLY", 2)]).replace("HIS A", "HISBA")
    assert chains(read(text)) == [2]


# -- 5. modified residues -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MET", "MSE", "22Q"])
@pytest.mark.parametrize("atoms", [None, "CA", "CA C O CB"])
def test_hetatm_before_ter_is_part_of_the_chain(read, name, atoms):
    odd = residue(name, 3, template="MET", only=atoms, hetero=True)
    size = [4, 6, len(odd)]
    declared = f"SEQRES   1 A    3  GLY SER {name}\n"
    assert sizes(read(declared + ter([*GLY_SER, *odd]))) == size
    assert sizes(read(f"MODRES 1ABC {name} A    3  MET\n" + pdb([*GLY_SER, *odd]))) == size


def test_a_chromophore_is_known_by_the_dictionarys_atoms(read):
    names = ("N1", "CA1", "C1", "N2", "CA2", "C2", "O2", "N3", "CA3", "C3", "O3")
    chromophore = [Atom(n, "CRO", 3, (3, 0, at), element=n[0], hetero=True) for at, n in enumerate(names)]
    assert sizes(read(ter([*GLY_SER, *chromophore, *residue("GLY", 6)]))) == [4, 6, 11, 4]


def test_a_peptide_of_hetatm_alone_is_read_where_ter_or_bonds_say_so(read):
    peptide = [replace(a, hetero=True) for a in TRIPEPTIDE]
    assert sizes(read(ter(peptide))) == sizes(read(pdb(peptide))) == [5, 14, 4]
    apart = [replace(a, xyz=(30.0 * a.number, *a.xyz[1:])) for a in peptide]
    with pytest.raises(WorkloadError, match=r"no protein atom.*ALA, TRP, GLY: free amino acids, in no chain"):
        read(pdb(apart))


# -- 6. free amino acids --------------------------------------------------------------------------


def test_free_amino_acids_are_ligands_however_many_share_a_place(read):
    free = [Atom(a.name, a.residue, 1, a.xyz, "L", a.element, hetero=True) for a in residue("GLU", 1)]
    blank = mmcif([*TRIPEPTIDE, *(replace(a, label_seq=".") for a in [*free, *moved(free, 9)])])
    assert left_out(read(blank, "a.cif")) == "1 ligand (GLU)"
    behind = ter(TRIPEPTIDE, tail=pdb([replace(a, chain="A", number=201) for a in moved(free, 90)])[:-4])
    work = read(behind)
    assert (sizes(work), left_out(work)) == ([5, 14, 4], "1 ligand (GLU)")
    assert sizes(read(behind.replace("END\n", "TER\nEND\n"))) == [5, 14, 4]  # some end each molecule with TER


# -- 7. no coordinates ----------------------------------------------------------------------------


@pytest.mark.parametrize("blank", ["?", ".", "nan", "NaN"])
def test_atoms_without_coordinates_are_unresolved(read, blank):
    work = read(mmcif(TRIPEPTIDE).replace(" 0.125 ", f" {blank} "), "a.cif")  # the three CA
    assert (sizes(work), left_out(work)) == ([4, 13, 3], "3 atoms without coordinates")
    work = read(pdb(TRIPEPTIDE).replace("   0.125", "     nan"))
    assert (sizes(work), left_out(work)) == ([4, 13, 3], "3 atoms without coordinates")


# -- 9. what was read -----------------------------------------------------------------------------


def test_one_line_says_what_was_read_and_what_was_not(read):
    nucleotide = [Atom(n, "DA", 1, (0, 0, at), "B", n[0]) for at, n in enumerate(("P", "C1'", "N9"))]
    zinc = [Atom("ZN", "ZN", 91, (9, 9, 9), element="ZN", hetero=True)]
    other = [replace(a, altloc=letter, occupancy=0.5) for letter in "AB" for a in residue("ALA", 4)]
    hydrogen = [Atom("HA", "ALA", 1, (0, 0, 0), element="H"), Atom("DA", "ALA", 1, (0, 0, 0), element="D")]
    atoms = [*TRIPEPTIDE, *hydrogen, *other, *nucleotide, WATER, *zinc]
    atoms += [replace(a, model=2) for a in TRIPEPTIDE]
    second = mmcif(TRIPEPTIDE).replace("data_test", "data_second")
    work = read(mmcif(atoms) + second, "a.cif")
    assert work.account == (
        "4 residues in 1 chain, 28 atoms (heavy); left out: 5 atoms of alternative locations, 1 nucleotide, 1 water, "
        "1 ligand (ZN), 1 further data block, 1 other model, 2 hydrogens"
    )
    assert read(pdb(TRIPEPTIDE)).account == "3 residues in 1 chain, 23 atoms (heavy); left out: nothing"


# -- 10. small ------------------------------------------------------------------------------------

BEADS = [Atom(n, "ALA", 1 + at // 2, (at, 0, 0)) for at, n in enumerate(("BB", "SC1", "BB", "SC1"))]


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("a.pdb", mmcif(TRIPEPTIDE), r"expected PDB, got mmCIF: its name should end in \.cif"),
        ("a.cif", pdb(TRIPEPTIDE), r"expected mmCIF, got PDB: its name should end in \.pdb"),
        ("a.pdb", pdb(TRIPEPTIDE).replace("   0.250", "  *.****", 1),
         r"line 3: garbled pdb file: expected a coordinate in columns 39–46, got '\*\.\*\*\*\*'"),
        ("a.pdb", pdb(TRIPEPTIDE).replace("  1.00  0", "  1.x0  0", 1), "line 1: .*expected an occupancy in"),
        ("a.pdb", pdb(TRIPEPTIDE).replace("A   2 ", "A  %2 ", 1), "line 6: .*expected a residue's number"),
        ("a.pdb", pdb(TRIPEPTIDE)[:-40], r"line 23: .*expected a coordinate in columns"),
        ("a.cif", mmcif(TRIPEPTIDE).replace(" 0.125 ", " abc ", 1),
         "line 20: garbled mmcif file: expected a number as Cartn_y, got 'abc'"),
        ("a.cif", mmcif(TRIPEPTIDE).replace("\n#", "\n'#"), r", line \d+: garbled mmcif file"),
        ("a.pdb", pdb(BEADS), "residue ALA A 1: expected atoms of ALA, got BB, SC1: coarse-grained beads are not read"),
        ("a.cif", mmcif(BEADS), "coarse-grained beads are not read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(read, name, content, cause):
    with pytest.raises(WorkloadError, match=cause):
        read(content, name)


def test_blocks_of_one_name_are_further_blocks(read):
    assert left_out(read(3 * mmcif(TRIPEPTIDE), "a.cif")) == "2 further data blocks"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda text: text.replace("Cartn_y", "Cartn_x"), "line 2.*duplicate tag _atom_site.Cartn_x"),
        (lambda text: text.replace("data_test\n", "data_test\n_a.b\n_a.c 1\n"), "line 2.*_a.b has no value"),
        (lambda text: text.replace(" 1.0 1\n", " x 1\n", 1), "line 19: .*expected a number as occupancy, got 'x'"),
    ],
)
def test_what_gemmi_finds_in_a_well_formed_file_is_said_too(read, change, cause):
    with pytest.raises(WorkloadError, match=cause):
        read(change(mmcif(TRIPEPTIDE)), "a.cif")


def test_a_chain_without_atoms_of_the_set_leaves_no_hole(write):
    side = residue("SER", 1, only="CB OG", chain="B")
    path = write(pdb([*TRIPEPTIDE, *side, *residue("GLY", 1, chain="C")]))
    assert workloads.from_file(path, "backbone").chain.tolist() == [0] * 12 + [1] * 4


def test_deuterium_is_hydrogen_whatever_the_columns_say(read):
    named = [Atom(name, "ALA", 1, (0, 0, 0)) for name in ("D", "DA", "DB1", "1DB", "D1")]
    work = read(pdb([*TRIPEPTIDE[:5], *named, *TRIPEPTIDE[5:]]))
    assert (sizes(work), left_out(work)) == ([5, 14, 4], "5 hydrogens")


def test_large_files_are_read_in_pieces_with_the_same_result(read, monkeypatch):
    text = mmcif([replace(a, number=a.number + 3 * n) for n in range(20) for a in TRIPEPTIDE])
    parts = [text, text.replace(" CA ", "\nCA "), text + "data_b\n_a.b 1\n", "data_a\n_a.n\n;\nloop_\n;\n" + text]
    whole = [read(part, "a.cif") for part in parts]
    monkeypatch.setattr(cif_table, "BYTES_AT_ONCE", 500)
    for part, expected in zip(parts, whole):
        found = read(part, "a.cif")
        np.testing.assert_array_equal(found.positions, expected.positions)
        assert (found.n_res, found.account) == (60, expected.account)
    with pytest.raises(WorkloadError, match=r"line \d+: garbled mmcif file"):
        read(text[:-40], "a.cif")


def test_what_is_no_utf_8_is_read_all_the_same(read):
    remark = "REMARK   1 AUTH   J.M\xfcller\n"
    content = (remark + pdb(TRIPEPTIDE)).encode("latin-1")
    assert sizes(read(content, "a.pdb")) == sizes(read(gzip.compress(content, mtime=0), "a.pdb.gz")) == [5, 14, 4]
    named = mmcif(TRIPEPTIDE).replace("data_test\n", "data_test\n_citation.author 'M\xfcller'\n").encode("latin-1")
    assert sizes(read(named, "a.cif")) == [5, 14, 4]
