"""Protein sequences in FASTA, checked letter by letter."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .atoms import WorkloadError
from .templates import templates

MAX_COPIES = 10_000
NUCLEOTIDES = frozenset("ACGTUN")
AMBIGUOUS_NUCLEOTIDES = NUCLEOTIDES | frozenset("RYSWKMBDHV")  # of IUPAC
SHORTEST_PRIMER, SHORTEST_REPEAT = 12, 20
MOST_BASES = 0.7  # of a sequence that is still a protein
NO_PROTEIN = frozenset(["ccd", "smiles", "dna", "rna", "ligand", "glycan"])


@dataclass(frozen=True)
class Record:
    """One sequence: its header, its residues as rows of the templates, and how often it occurs."""

    header: str
    residues: np.ndarray
    copies: int

    @property
    def name(self) -> str:
        """The header's first word up to a bar."""
        return self.header.split("|")[0].split(" ")[0]


@dataclass(frozen=True)
class Sequences:
    """The proteins of a FASTA text, and what else it holds, in words."""

    records: list[Record]
    left_out: list[str]


def parse(text: str, origin: str) -> Sequences:
    """The protein records of a FASTA text.

    Letters are the 20 amino acids, U (selenocysteine), O (pyrrolysine), X (unknown: taken as alanine),
    and B, Z, J (taken as N, Q, L; the other readings have equally many atoms), in either case; one ``*``
    may end a sequence. A header's ``|copies=3`` makes three chains of it. A record whose header calls it a ligand or a
    nucleic acid, as Boltz (``>B|ccd``) and Chai (``>dna|name=B``) do, is left out beside proteins.

    Raises
    ------
    WorkloadError
        Naming ``origin``, the record and what is wrong with it.
    """
    before, *blocks = re.split(r"^[ \t]*>", text, flags=re.MULTILINE)
    if before.strip():
        raise WorkloadError(f"{origin}: expected FASTA, a line that starts with '>'; got {_short(before.strip())}")
    if not blocks:
        raise WorkloadError(f"{origin}: empty, expected FASTA records (>name, then a sequence)")
    records, left_out, line = [], [], 1 + before.count("\n")
    for number, block in enumerate(blocks, 1):
        header, _, body = block.partition("\n")
        header = header.strip()
        where = f"{origin}, line {line}: record {number} ({_short(header or 'no name')})"
        kind = _kind(header)
        if kind is None:
            records.append(_record(header, body, where))
        else:
            left_out.append(f"record {number} ({kind})")
        line += block.count("\n")
    if not records:
        raise WorkloadError(f"{origin}: expected at least one protein, got {', '.join(left_out)}")
    return Sequences(records, left_out)


def _kind(header: str) -> str | None:
    """What a header says that its record is, in one of its first two fields; None for a protein."""
    return next((field for field in header.lower().split("|")[:2] if field.strip() in NO_PROTEIN), None)


def _record(header: str, body: str, where: str) -> Record:
    sequence = "".join(body.split()).upper().removesuffix("*")
    if not sequence:
        raise WorkloadError(f"{where}: no sequence")
    letters = templates().letters
    for at, letter in enumerate(sequence, 1):
        if letter not in letters:
            raise WorkloadError(f"{where}: residue {at} is {letter!r}, {_why_illegal(letter)}")
    if _is_nucleic(sequence):
        raise WorkloadError(f"{where}: nucleotides only, expected a protein's amino acids")
    return Record(header, np.array([letters[letter] for letter in sequence]), _copies(header, where))


def _is_nucleic(sequence: str) -> bool:
    """Whether a sequence is of nucleotides by its composition, since each of their letters is an amino acid's too.

    In proteins, A, C, G, T and U are a quarter. A primer has three of them at least, and an ambiguity code now and
    then. Repeats of one letter, or of two, are nucleic acids too; but not of G and A, which silk is made of.
    """
    kinds = set(sequence)
    if not kinds <= AMBIGUOUS_NUCLEOTIDES:
        return False
    bases = kinds & NUCLEOTIDES
    share = sum(letter in NUCLEOTIDES for letter in sequence) / len(sequence)
    if len(bases - {"N"}) >= 3:
        return len(sequence) >= SHORTEST_PRIMER and share >= MOST_BASES
    return len(sequence) >= SHORTEST_REPEAT and kinds <= NUCLEOTIDES and kinds != {"A", "G"}


def _why_illegal(letter: str) -> str:
    if letter in "-.":
        return "an alignment gap: expected the sequence without gaps"
    if letter == "*":
        return "a stop inside the sequence: expected at most one, at its end"
    return "expected an amino acid's letter (the 20, U, O, X, B, Z, J)"


def _copies(header: str, where: str) -> int:
    found = re.search(r"\|copies=(\S*)", header)
    if found is None:
        return 1
    text = found[1].split("|")[0]
    if not (text.isascii() and text.isdigit() and 1 <= len(text) <= 9 and 1 <= int(text) <= MAX_COPIES):
        raise WorkloadError(f"{where}: copies: expected a number from 1 to {MAX_COPIES:,}, got {_short(text)}")
    return int(text)


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "…")
