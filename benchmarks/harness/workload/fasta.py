"""Protein sequences in FASTA, checked letter by letter."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .atoms import WorkloadError
from .templates import templates

MAX_COPIES = 10_000
NUCLEOTIDES = frozenset("ACGTUN")
SHORTEST_GENE = 20


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


def parse(text: str, origin: str) -> list[Record]:
    """The records of a FASTA text.

    Letters are the 20 amino acids, U (selenocysteine), O (pyrrolysine), X (unknown: taken as alanine),
    and B, Z, J (taken as N, Q, L; the other readings have equally many atoms), in either case; one ``*``
    may end a sequence. A header's ``|copies=3`` makes three chains of it.

    Raises
    ------
    WorkloadError
        Naming ``origin``, the record and what is wrong with it.
    """
    if not text.strip():
        raise WorkloadError(f"{origin}: empty, expected FASTA records (>name, then a sequence)")
    before, *blocks = re.split(r"^[ \t]*>", text, flags=re.MULTILINE)
    if before.strip():
        raise WorkloadError(f"{origin}: expected FASTA, a line that starts with '>'; got {_short(before.strip())}")
    return [_record(block, number, origin) for number, block in enumerate(blocks, 1)]


def _record(block: str, number: int, origin: str) -> Record:
    header, _, body = block.partition("\n")
    header = header.strip()
    where = f"{origin}: record {number} ({_short(header or 'no name')})"
    sequence = "".join(body.split()).upper().removesuffix("*")
    if not sequence:
        raise WorkloadError(f"{where}: no sequence")
    letters = templates().letters
    for at, letter in enumerate(sequence, 1):
        if letter not in letters:
            raise WorkloadError(f"{where}: residue {at} is {letter!r}, {_why_illegal(letter)}")
    if len(sequence) >= SHORTEST_GENE and NUCLEOTIDES >= set(sequence) >= set("ACG"):
        raise WorkloadError(f"{where}: nucleotides only, expected a protein's amino acids")
    return Record(header, np.array([letters[letter] for letter in sequence]), _copies(header, where))


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
