"""A user's FASTA file: what is read, and what is said about one that cannot be."""

from __future__ import annotations

import contextlib
import gzip
import os
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness.workload import fasta, files, workloads
from benchmarks.harness.workload.templates import templates
from benchmarks.harness.workload.workloads import WorkloadError


@pytest.fixture
def write(tmp_path):
    def written(content: str | bytes, name: str = "user.fasta") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return written


def residues(text: str) -> list[list[str]]:
    names = list(templates().index)
    return [[names[row] for row in record.residues] for record in fasta.parse(text, "f").records]


def test_a_file_makes_one_chain_per_record(write):
    work = workloads.from_file(write(">a first\nMQIF\nVK\n>b|copies=2\nGG\n"), "heavy")
    assert (work.name, work.n_res, work.n_atom) == ("user.fasta", 10, 8 + 9 + 8 + 11 + 7 + 9 + 1 + 2 * (4 + 4 + 1))
    assert np.bincount(work.chain).tolist() == [53, 9, 9]
    assert work.positions is None


def test_load_takes_a_path_too(write):
    path = write(">a\nMQIF\n")
    assert workloads.load(path, "backbone").n_atom == workloads.from_file(path, "backbone").n_atom == 16


@pytest.mark.parametrize("suffix", [".fa", ".FASTA", ".faa", ".fas"])
def test_suffixes_are_told_apart_without_case(write, suffix):
    assert workloads.from_file(write(">a\nGG\n", f"user{suffix}")).n_res == 2


def test_gzip_is_known_by_its_bytes(write):
    text = b">a\nMQIF\n"
    for name, content in {
        "a.fasta.gz": gzip.compress(text, mtime=0),
        "b.fasta": gzip.compress(text, mtime=0),
        "c.fasta.gz": text,
        "d.fa.gz": gzip.compress(text[:4], mtime=0) + gzip.compress(text[4:], mtime=0),
    }.items():
        assert workloads.from_file(write(content, name)).n_res == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (">a\nmqif\n", [["MET", "GLN", "ILE", "PHE"]]),
        (">a\r\nMQ\r\nIF*\r\n\r\n", [["MET", "GLN", "ILE", "PHE"]]),
        ("\ufeff>a\nM Q\tI\n", [["MET", "GLN", "ILE"]]),
        ("\n\n>\nGA", [["GLY", "ALA"]]),
        (">a\nUOX\n", [["SEC", "PYL", "UNK"]]),
        (">a\nBZJ\n", [["ASN", "GLN", "LEU"]]),
        (">same\nGG\n>same\nGG\n", [["GLY", "GLY"]] * 2),
        (">a\n" + "GA" * 20, [["GLY", "ALA"] * 20]),
    ],
)
def test_letters(write, text, expected):
    assert workloads.from_file(write(text)).n_res == sum(map(len, expected))
    assert residues(text.removeprefix("\ufeff")) == expected


def test_ambiguous_letters_have_as_many_atoms_either_way():
    table = templates()
    for pair in (("ASN", "ASP"), ("GLN", "GLU"), ("LEU", "ILE")):
        assert len({int(table.count[table.index[name]]) for name in pair}) == 1


def test_an_unknown_residue_is_taken_as_alanine():
    table = templates()
    assert table.atoms[table.index["UNK"]] == ("N", "CA", "C", "O", "CB")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty file"),
        (b" \n\n\t", "empty file"),
        (b"MQIFVK\n", "a line that starts with '>'; got 'MQIFVK'"),
        (b"some prose\n>a\nMQ\n", "a line that starts with '>'; got 'some prose'"),
        (b">a\n>b\nMQ\n", r"record 1 \('a'\): no sequence"),
        (b">a\nMQ\n>b\n", r"record 2 \('b'\): no sequence"),
        (b">a\n*\n", "no sequence"),
        (b">", r"record 1 \('no name'\): no sequence"),
        (b">a\nMQ-F\n", "residue 3 is '-', an alignment gap"),
        (b">a\nMQ.F\n", "residue 3 is '.', an alignment gap"),
        (b">a\nMQ*F\n", r"residue 3 is '\*', a stop inside"),
        (b">a\nMQF**\n", r"residue 4 is '\*', a stop inside"),
        (b">a\nMQ1F\n", "residue 3 is '1', expected an amino acid's letter"),
        ("> ü\nMQÄF\n".encode(), "residue 3 is 'Ä'"),
        (b">a\nMQ\xc4F\n", "residue 3 is 'Ä'"),
        (b">a\nMQ\0F\n", "expected text, got binary data"),
        (b">a\n" + b"ACGT" * 10, "nucleotides only"),
        (b">a\n" + b"acgunu" * 10, "nucleotides only"),
        (b">a|copies=0\nMQ\n", "copies: expected a number from 1 to 10,000, got '0'"),
        (b">a|copies=1000000000000\nMQ\n", "copies: expected a number from 1 to 10,000"),
        (b">a|copies=two\nMQ\n", "copies: expected a number from 1 to 10,000, got 'two'"),
        (b">a|copies=\nMQ\n", "copies: expected"),
        (gzip.compress(b">a\nMQIFVKTL\n", mtime=0)[:-9], "cut off"),
        (gzip.compress(b">a\nMQIFVKTL\n", mtime=0)[:12], "cut off"),
        (b"\x1f\x8bgarbage", "garbled gzip"),
        (gzip.compress(b">a\nMQ\n", mtime=0) + b"more", "garbled gzip data"),
        (gzip.compress(b"", mtime=0), "empty file"),
    ],
)
def test_bad_content_is_named_with_its_cause(write, content, cause):
    path = write(content)
    with pytest.raises(WorkloadError, match=cause) as caught:
        workloads.from_file(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_paths_are_named_with_their_cause(tmp_path, write):
    for path, cause in {
        str(tmp_path / "missing.fasta"): "No such file or directory",
        str(tmp_path): "got a directory",
        write("x", "user.txt"): r"ends in \.fasta",
        write("x", "user"): r"ends in \.fasta",
        write("x", "user.gz"): r"ends in \.fasta",
        "a\0b.fasta": "null",
        "x" * 5000 + ".fasta": "File name too long",
        os.devnull: "device",
        "": "No such file or directory",
    }.items():
        with pytest.raises(WorkloadError, match=cause):
            workloads.from_file(path)
    fifo = tmp_path / "pipe.fasta"
    os.mkfifo(fifo)
    with pytest.raises(WorkloadError, match="regular file"):
        workloads.from_file(fifo)


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(write, monkeypatch):
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    path = write(gzip.compress(b">a\n" + b"G" * 100_000, mtime=0), "bomb.fasta.gz")
    with pytest.raises(WorkloadError, match="unpacks to more than 1,000 bytes"):
        workloads.from_file(path)


def test_far_too_many_atoms_are_refused_before_they_are_made(write):
    path = write(">a|copies=10000\n" + "W" * 2000)
    with pytest.raises(WorkloadError, match="expected 1 to 16,000,000 atoms, got 280,010,000"):
        workloads.from_file(path)


def test_fasta_needs_no_structure_library(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "biotite", None)
    assert workloads.from_file(write(">a\nMQIF\n")).n_res == 4


@pytest.mark.parametrize(
    ("text", "chains", "left_out"),
    [
        (">A|protein|empty\nMQIF\n>B|ccd\nATP\n>C|smiles\nCC(=O)O\n>D|dna\nACGT\n>E|RNA\nACGU\n", 1,
         "record 2 (ccd), record 3 (smiles), record 4 (dna), record 5 (rna)"),
        (">protein|name=a\nMQIF\n>ligand|name=b\nCCO\n>glycan|name=c\nMAN\n", 1,
         "record 2 (ligand), record 3 (glycan)"),
        (">A|protein\rMQ\rIF\r>B|protein\rGG\r", 2, "nothing"),
        (">sp|P0CG48|UBC\nMQIF\n", 1, "nothing"),
    ],
)  # fmt: skip
def test_records_that_call_themselves_no_protein_are_left_out_and_named(write, text, chains, left_out):
    work = workloads.from_file(write(text))
    assert work.account is not None
    assert (len(work.chain_sizes), work.account.partition("left out: ")[2]) == (chains, left_out)


@pytest.mark.parametrize(
    ("sequence", "nucleic"),
    [
        ("GTGYCAGCMGCCGCGGTAA", True), ("GGACTACNVGGGTWTCTAAT", True), ("CCTACGGGNGGCWGCAG", True),  # primers
        ("A" * 30, True), ("N" * 30, True), ("AT" * 15, True), ("ACGU" * 3, True), ("acgtn" * 20, True),
        ("GA" * 20, False), ("A" * 12, False), ("MKTAYIAKQRGATTACA", False), ("GATTACA", False),
        ("GAGAGYGAGAGAGSGAGAGS", False), ("DHKMRSVWYB" * 5, False), ("AVKRSWYDHA" * 3, False),
    ],
)  # fmt: skip
def test_nucleotides_are_known_by_their_composition(write, sequence, nucleic):
    path = write(f">a\n{sequence}\n")
    if not nucleic:
        assert workloads.from_file(path).n_res == len(sequence)
        return
    with pytest.raises(WorkloadError, match=r"line 1: record 1 \('a'\): nucleotides only"):
        workloads.from_file(path)


def test_a_file_without_any_protein_is_refused(write):
    with pytest.raises(WorkloadError, match=r"expected at least one protein, got record 1 \(ccd\), record 2 \(dna\)"):
        workloads.from_file(write(">A|ccd\nATP\n>B|dna\nACGT\n"))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))))
def test_arbitrary_bytes_are_a_protein_or_a_workload_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "arbitrary.fasta"
    for prefix in (b"", b">", b">a\n", b"\x1f\x8b\x08"):
        path.write_bytes(prefix + content)
        with contextlib.suppress(WorkloadError):
            assert workloads.from_file(path).n_atom >= 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("DEFHIKLMPQRSVWYXOBZJ", min_size=1, max_size=30), min_size=1, max_size=5))
def test_any_sequence_comes_back_whole(sequences):
    text = "".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(sequences))
    assert [len(record.residues) for record in fasta.parse(text, "f").records] == [
        len(sequence) for sequence in sequences
    ]
