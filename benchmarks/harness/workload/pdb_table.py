"""PDB: fixed columns, and records whose order says where frames and chains end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from .atoms import WorkloadError
from .files import Content
from .structure_tables import FREE, IN_CHAIN, UNSAID, WATER, Atoms, Words, counted, elements, first_letter, words
from .templates import ATOMIC_NUMBER, templates

_MMCIF = re.compile(rb"^[ \t]*(data_\S|_atom_site\.)", re.MULTILINE | re.IGNORECASE)
# Hybrid-36 numbers begin with a letter, from 10,000 on; an insertion code may follow any number.
_NUMBER = re.compile(r"(-?\d+|[A-Za-z][0-9A-Za-z]{3}) *[0-9A-Za-z]?")
_FRAME_ENDS = (b"END   ", b"ENDMDL", b"MODEL ")
# Protonation states of GROMOS, in the name's fourth column, which is otherwise the first of a two-letter chain's.
_FOUR_LETTERS = re.compile("LYSH|ASPH|GLUH|ARGN|CYS[12H]|HIS[ABH12DEP]")


class Lines:
    """The lines of a text as columns of bytes; ``kind`` holds each line's first six."""

    def __init__(self, text: bytes) -> None:
        self._bytes = np.frombuffer(text + b"\n", np.uint8)
        self._stop = np.flatnonzero(self._bytes == ord("\n"))
        self._start = np.concatenate([[0], self._stop[:-1] + 1])
        self.kind = self.field(np.arange(len(self._stop)), 1, 6)

    def field(self, lines: np.ndarray, first: int, last: int) -> np.ndarray:
        """Columns ``first … last`` of these lines, counted from 1 as the format does; blank past a line's end."""
        at = self._start[lines, None] + np.arange(first - 1, last)
        text = np.where(at < self._stop[lines, None], self._bytes[np.minimum(at, len(self._bytes) - 1)], ord(" "))
        return np.ascontiguousarray(text.astype(np.uint8)).view(f"S{last - first + 1}")[:, 0]

    def of_kind(self, *kinds: bytes) -> np.ndarray:
        return np.flatnonzero(np.isin(self.kind, kinds))

    def texts(self, lines: np.ndarray, first: int, last: int) -> Words:
        return words(self.field(lines, first, last).tolist(), _text)


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip()


def pdb_table(content: Content) -> Atoms:
    """The atoms of the first frame: what comes before END, ENDMDL or a second MODEL.

    Raises
    ------
    WorkloadError
    """
    lines = Lines(content.plain)
    # A serial number of six digits runs into the record's name.
    atoms = np.flatnonzero(np.isin(lines.kind.astype("S4"), [b"ATOM", b"HETA"]))
    if _MMCIF.search(content.plain, 0, 2**20):
        raise WorkloadError(f"{content.origin}: expected PDB, got mmCIF: its name should end in .cif")
    if not len(atoms):
        raise WorkloadError(f"{content.origin}: no ATOM or HETATM record, expected a PDB file")
    ends = lines.of_kind(*_FRAME_ENDS)
    ends = ends[ends > atoms[0]]
    frames = len(np.unique(np.searchsorted(ends, atoms))) - 1
    ters = lines.of_kind(b"TER   ")
    if len(ends):
        atoms, ters = atoms[atoms < ends[0]], ters[ters < ends[0]]
    table = replace(
        _columns(lines, atoms, content.origin),
        peptides=frozenset(_declared(lines)),
        elsewhere=(counted(frames, "other model"),) if frames else (),
    )
    modified = lines.of_kind(b"MODRES")
    listed = set(zip(*(map(_text, lines.field(modified, *at).tolist()) for at in ((16, 17), (19, 23)))))
    strand, last, loose = _strands(table, atoms, ters)
    said = said_by_order(table, last, listed)
    return replace(table, strand=strand, said=np.where(loose & (said == IN_CHAIN), UNSAID, said))


def _declared(lines: Lines) -> Iterator[str]:
    """Names that the file says are residues of a chain: modified ones, and those of SEQRES."""
    yield from lines.texts(lines.of_kind(b"MODRES"), 13, 15).words
    for names in lines.texts(lines.of_kind(b"SEQRES"), 20, 70).words:
        yield from names.split()


def _columns(lines: Lines, atoms: np.ndarray, origin: str) -> Atoms:
    number = lines.texts(atoms, 23, 27)
    wrong = number.map(lambda text: _NUMBER.fullmatch(text) is None)
    if wrong.any():
        row = int(wrong.argmax())
        raise _garbled(origin, atoms[row], "a residue's number in columns 23–27", number[row])
    four, letter = lines.texts(atoms, 18, 21), lines.texts(atoms, 22, 22)
    is_four = _four_letters(four, letter)
    three, two = lines.texts(atoms, 18, 20), lines.texts(atoms, 21, 22)
    chain = words(np.where(is_four, letter.map(str), two.map(str)).tolist())
    starts = np.concatenate([[True], (np.diff(number.code) != 0) | (np.diff(chain.code) != 0)])
    segment = lines.texts(atoms, 73, 76).code[starts][np.cumsum(starts) - 1]  # one for all atoms of a residue
    raw = words(lines.field(atoms, 13, 16).tolist(), lambda name: name.decode("latin-1"))
    return Atoms(
        strand=words(zip(chain.code.tolist(), segment.tolist())).code,
        said=np.zeros(len(atoms), np.int8),
        hetero=lines.kind[atoms].astype("S4") == b"HETA",
        chain=chain,
        number=number,
        residue=words(np.where(is_four, four.map(str), three.map(str)).tolist()),
        name=words(raw.map(str.strip).tolist()),
        altloc=lines.texts(atoms, 17, 17),
        element=elements(lines.texts(atoms, 77, 78), raw, _element_of_name),
        occupancy=_numbers(lines, atoms, (55, 60), "an occupancy", origin, b"1"),
        xyz=np.stack([_numbers(lines, atoms, at, "a coordinate", origin) for at in ((31, 38), (39, 46), (47, 54))], -1),
    )


def _four_letters(four: Words, letter: Words) -> np.ndarray:
    """Where column 21 belongs to the residue's name (CHARMM's POPC, GROMOS' HISB), not to a chain of two letters."""
    known = templates().index
    long = {text for text in four.words if len(text) == 4}
    chains = any(text[:3] in known and not _FOUR_LETTERS.fullmatch(text) for text in long)
    fits = four.map(lambda text: text in long and (not chains if text[:3] in known else True))
    return fits & (letter.map(bool) | (not chains))


def _numbers(
    lines: Lines, atoms: np.ndarray, at: tuple[int, int], what: str, origin: str, blank: bytes = b""
) -> np.ndarray:
    text = np.char.strip(lines.field(atoms, *at))
    try:
        return np.where(text == b"", blank, text).astype(np.float64)
    except ValueError:
        for line, value in zip(atoms.tolist(), text.tolist()):
            try:
                float(value or blank)
            except ValueError:
                where = f"{what} in columns {at[0]}–{at[1]}"
                raise _garbled(origin, line, where, value.decode("latin-1")) from None
        raise


def _garbled(origin: str, line: int, expected: str, got: str) -> WorkloadError:
    return WorkloadError(f"{origin}, line {line + 1}: garbled pdb file: expected {expected}, got {got!r}")


def _element_of_name(raw: str) -> int:
    """By the name's four columns: a symbol of two letters begins in the first."""
    two = raw[:2].strip().upper()
    if raw[:1].isalpha() and len(two) == 2 and len(raw.strip()) < 4 and two[0] not in "HD":
        return ATOMIC_NUMBER.get(two) or first_letter(raw.strip())
    return first_letter(raw.strip())


def _strands(table: Atoms, atoms: np.ndarray, ters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each atom's chain; of each atom's chain letter the last row before a TER (-1: it has none); and which HETATM
    stand behind a TER and not behind a further ATOM, so that being before a later TER says nothing of them.

    TER ends a chain, unless one letter goes on behind it with a higher number: then it stands at a gap, as some
    programs write it. Numbers that go on without one belong to another chain, numbered through.
    """
    strand, last, loose = table.strand.astype(np.int64), np.full(len(atoms), -1), np.zeros(len(atoms), bool)
    before = np.unique(np.searchsorted(atoms, ters)) - 1
    before = before[(before >= 0) & ~table.residue.map(lambda name: name in WATER)[before]]  # some end each with TER
    rows_of = {code: np.flatnonzero(table.strand == code) for code in np.unique(table.strand[before])}
    for row in before.tolist():
        rows = rows_of[table.strand[row]]
        last[rows] = row
        behind = rows[rows > row]
        polymer = behind[~table.hetero[behind]]
        loose[behind[: np.searchsorted(behind, polymer[0])] if len(polymer) else behind] = True
        loose[polymer] = False
        if len(polymer) and not (table.chain[row] and _at_a_gap(table.number[row], table.number[polymer[0]])):
            strand[behind] = strand.max() + 1
    return strand, last, loose


def _at_a_gap(before: str, behind: str) -> bool:
    try:
        return int(behind) > int(before) + 1
    except ValueError:  # an insertion code
        return False


def said_by_order(table: Atoms, last: np.ndarray, listed: set[tuple[str, str]]) -> np.ndarray:
    """What the order of rows says: ATOM is in a chain; HETATM before its chain's TER, or before a later ATOM of an
    amino acid, too; one after TER is in none, unless MODRES lists its place."""
    amino = ~table.hetero & table.residue.map(lambda name: name in templates().index)
    final = np.full(int(table.strand.max()) + 1, -1)
    np.maximum.at(final, table.strand[amino], np.flatnonzero(amino))
    row = np.arange(len(table))
    named = np.zeros(len(table), bool)
    for chain, number in listed:
        named |= table.chain.map(chain.__eq__) & table.number.map(number.__eq__)
    inside = ~table.hetero | named | (row <= np.maximum(last, final[table.strand]))
    return np.where(inside, IN_CHAIN, np.where(last >= 0, FREE, UNSAID)).astype(np.int8)
