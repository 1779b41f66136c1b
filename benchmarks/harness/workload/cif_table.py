"""mmCIF through gemmi, BinaryCIF through biotite: the category ``atom_site``, and what others say of its entities."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .atoms import WorkloadError
from .files import Content
from .pdb_table import said_by_order
from .structure_tables import FREE, IN_CHAIN, IN_SEQUENCE, WATER, Atoms, Words, counted, elements, first_letter, words

NEWLINE = b"\n"
BLANK = ("", ".", "?")
BYTES_AT_ONCE = 2**23  # of atom_site: gemmi keeps 32 bytes and more of each value of a row
_SITE = re.compile(rb"^[ \t]*loop_\s+(?:_atom_site\.\S+\s+)+", re.MULTILINE | re.IGNORECASE)
_NO_ROW = re.compile(rb"^[ \t]*(?:[#_;]|loop_|data_|save_|stop_|global_)", re.MULTILINE | re.IGNORECASE)
_PDB = re.compile(rb"^(?:ATOM  |HETATM)[ \d]{5} .{15}[ \d]{4}", re.MULTILINE)
_WHERE = re.compile(r"^[^:]*:(\d+)(?::[^:]*| in [^:]*): *")  # gemmi: file:line:column, or line in block
FIELDS = (
    "group_PDB", "type_symbol", "label_atom_id", "auth_atom_id", "label_alt_id", "label_comp_id", "auth_comp_id",
    "label_asym_id", "auth_asym_id", "label_entity_id", "label_seq_id", "auth_seq_id", "pdbx_PDB_ins_code",
    "pdbx_PDB_model_num",
)  # fmt: skip
NUMBERS = ("Cartn_x", "Cartn_y", "Cartn_z", "occupancy")
# category: its key, and what of it is looked up
BESIDE = {"entity_poly": ("entity_id", "type"), "chem_comp": ("id", "type"), "struct_asym": ("id", "entity_id")}


@dataclass(frozen=True)
class _Site:
    """Rows of ``atom_site``, the small categories of ``BESIDE`` as dicts, and how many further blocks have one."""

    columns: dict[str, Words]
    numbers: np.ndarray  # those of NUMBERS; nan where nothing is said
    beside: dict[str, dict[str, str]]
    further: int = 0


def cif_table(content: Content) -> Atoms:
    """The atoms of the first model of the first data block that has any.

    Raises
    ------
    WorkloadError
    """
    return _table(_from_binary(content) if content.kind == "bcif" else _from_text(content), content.origin)


# -- reading --------------------------------------------------------------------------------------


def _from_text(content: Content) -> _Site:
    try:
        import gemmi  # noqa: F401
    except ModuleNotFoundError as error:
        raise _needs("gemmi", content.origin, error) from error
    text = content.plain if content.plain.isascii() else content.text.encode()
    rows = _rows(text) if len(text) > BYTES_AT_ONCE else None
    try:
        if rows is not None:
            with contextlib.suppress(ValueError):  # a row of several lines was cut, or the whole is garbled too
                pieces = map(_document, _pieces(text, *rows))
                return _joined([_site_of(piece, text, content.origin) for piece in pieces])
        return _site_of(_document(text), text, content.origin)
    except WorkloadError:
        raise
    except ValueError as error:
        if _PDB.search(text):
            raise WorkloadError(f"{content.origin}: expected mmCIF, got PDB: its name should end in .pdb") from error
        where = _WHERE.match(str(error))
        line = f", line {where[1]}" if where else ""
        cause = " ".join(_WHERE.sub("", str(error)).split())[:200]
        raise WorkloadError(f"{content.origin}{line}: garbled mmcif file ({cause})") from error


def _document(text: bytes) -> Any:
    """What gemmi reads; blocks of one name (frames, files put together) are no fault.

    Raises
    ------
    ValueError
    """
    from gemmi import cif

    try:
        return cif.read_string(text)
    except RuntimeError as error:  # it is well formed, but says something twice, or a tag and no value
        if "duplicate block name" in str(error):
            return cif.read_string(text, 0)
        raise ValueError(str(error)) from error


def _rows(text: bytes) -> tuple[bytes, int, int] | None:
    """The tags of the first loop of atoms, and where its rows begin and end; None if text fields are among them."""
    for found in _SITE.finditer(text):
        if text.count(b"\n;", 0, found.start()) % 2 == 0:  # not inside a text field
            end = _NO_ROW.search(text, found.end())
            last = len(text) if end is None else end.start()
            return None if text[last : last + 1] == b";" else (found[0], found.end(), last)
    return None


def _pieces(text: bytes, tags: bytes, first: int, last: int) -> Iterator[bytes]:
    """All but most rows of the atoms, then those, some at a time under the same tags."""
    cuts = [first]
    while (cut := text.find(b"\n", cuts[-1] + BYTES_AT_ONCE, last) + 1) > 0:
        cuts.append(cut)
    yield text[: [*cuts, last][1]] + text[last:]
    for start, stop in zip(cuts[1:], [*cuts[2:], last]):
        if text[start:stop].strip():
            yield b"data_\n" + tags + text[start:stop]


def _site_of(document: Any, text: bytes, origin: str) -> _Site:
    from gemmi import cif

    blocks = [block for block in document if len(block.find_values("_atom_site.Cartn_x"))]
    if not blocks:
        sites = [block for block in document if "_atom_site." in block.get_mmcif_category_names()]
        what = "no atom_site category, expected a structure in mmCIF"
        what = "garbled mmcif file: no row of atom_site has a Cartn_x" if sites else what
        raise WorkloadError(f"{origin}: {what}")
    block = blocks[0]

    def column(tag: str) -> Words | None:
        values = block.find_values(tag)
        return words(values, cif.as_string) if len(values) else None

    found = {field: column(f"_atom_site.{field}") for field in FIELDS}
    beside = {}
    for category, pair in BESIDE.items():
        beside[category] = {row.str(0): row.str(1) for row in block.find(f"_{category}.", list(pair))}
    numbers = [_numbers(block.find_values(f"_atom_site.{field}"), field, text, origin) for field in NUMBERS]
    size = len(numbers[0])
    numbers[-1] = numbers[-1] if len(numbers[-1]) else np.full(size, np.nan)
    for field, values in zip(NUMBERS, numbers):
        if len(values) != size:
            raise WorkloadError(f"{origin}: garbled mmcif file: atom_site has no {field}")
    return _Site({k: v for k, v in found.items() if v is not None}, np.stack(numbers, -1), beside, len(blocks) - 1)


def _numbers(values: Any, field: str, text: bytes, origin: str) -> np.ndarray:
    """Numbers as CIF writes them, ``1.234(5)`` and ``?`` too, which is nan."""
    try:
        return np.fromiter(map(float, values), np.float64, len(values))
    except ValueError:
        from gemmi import cif

        found = np.array([cif.as_number(value) for value in values])
        for row in np.flatnonzero(np.isnan(found)).tolist():
            if cif.as_string(values[row]).lower() not in (*BLANK, "nan"):
                where, got = f"row {row + 1} of atom_site", cif.as_string(values[row])
                rows = _rows(text)
                if rows is not None and text.count(NEWLINE, rows[1], rows[2]) == len(values):
                    where = f"line {text.count(NEWLINE, 0, rows[1]) + row + 1}"
                raise WorkloadError(
                    f"{origin}, {where}: garbled mmcif file: expected a number as {field}, got {got!r}"
                ) from None
        return found


def _joined(sites: list[_Site]) -> _Site:
    columns = {field: _merged([site.columns[field] for site in sites]) for field in sites[0].columns}
    return _Site(columns, np.concatenate([site.numbers for site in sites]), sites[0].beside, sites[0].further)


def _merged(parts: list[Words]) -> Words:
    index: dict[str, int] = {}
    codes = [np.array([index.setdefault(word, len(index)) for word in p.words], np.int32)[p.code] for p in parts]
    return Words(list(index), np.concatenate(codes))


def _from_binary(content: Content) -> _Site:
    try:
        from biotite.structure.io.pdbx import BinaryCIFFile
    except ModuleNotFoundError as error:
        raise _needs("biotite", content.origin, error) from error
    try:
        blocks = [block for block in BinaryCIFFile.read(io.BytesIO(content.data)).values() if "atom_site" in block]
        if not blocks:
            raise WorkloadError(f"{content.origin}: no atom_site category, expected a structure in BinaryCIF")
        site: Any = blocks[0]["atom_site"]
        columns = {field: words(site[field].as_array(str).tolist()) for field in FIELDS if field in site}
        said = [site[f].as_array(float, masked_value=np.nan) for f in NUMBERS if f != "occupancy" or f in site]
        numbers = np.stack([*said, np.full(site.row_count, np.nan)][: len(NUMBERS)], -1)
        beside: dict[str, dict[str, str]] = {}
        for category, pair in BESIDE.items():
            rows: Any = blocks[0].get(category) or {}
            known = all(field in rows for field in pair)
            beside[category] = dict(zip(*(rows[field].as_array(str).tolist() for field in pair))) if known else {}
        return _Site(columns, numbers, beside, len(blocks) - 1)
    except WorkloadError:
        raise
    except Exception as error:  # a parser fed with garbage may raise anything; whatever it is, the file is at fault
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise WorkloadError(f"{content.origin}: garbled bcif file ({cause})") from error


def _needs(library: str, origin: str, error: ModuleNotFoundError) -> WorkloadError:
    return WorkloadError(
        f"{origin}: reading this format needs {library} (found: {error}); "
        f"install the extra 'structures': pip install 'pallatom-bench[structures]', or pip install {library}"
    )


# -- meaning --------------------------------------------------------------------------------------


def _table(site: _Site, origin: str) -> Atoms:
    size = len(site.numbers)

    def column(*fields: str, default: str | None = None) -> Words:
        """The first of these columns that says anything, blanks as empty words."""
        found = [_plain(site.columns[field]) for field in fields if field in site.columns]
        if not found and default is None:
            raise WorkloadError(f"{origin}: atom_site has no {' or '.join(fields)}")
        found += [Words([default or ""], np.zeros(size, np.int32))] * (not found)
        return next((column for column in found if any(column.words)), found[0])

    hetero = column("group_PDB", default="ATOM").map(lambda word: word.upper() == "HETATM")
    listed = column("label_seq_id", default="")
    numbered = listed.map(bool)  # the sequence's own numbers, wherever the file has them
    author, code = column("auth_seq_id", "label_seq_id"), column("pdbx_PDB_ins_code", default="")
    first, second = ("label_asym_id", "auth_asym_id") if numbered.any() else ("auth_asym_id", "label_asym_id")
    chain = column(first, second, default="A")
    name = column("label_atom_id", "auth_atom_id")
    table = Atoms(
        strand=chain.code,
        said=np.zeros(size, np.int8),
        hetero=hetero,
        chain=chain,
        number=words(
            (listed.words[a] or author.words[b] + code.words[c])
            for a, b, c in zip(listed.code.tolist(), author.code.tolist(), code.code.tolist())
        ),
        residue=column("label_comp_id", "auth_comp_id"),
        name=name,
        altloc=column("label_alt_id", default=""),
        element=elements(column("type_symbol", default=""), name, first_letter),
        occupancy=np.where(np.isnan(site.numbers[:, 3]), 1.0, site.numbers[:, 3]),
        xyz=site.numbers[:, :3],
        peptides=frozenset(n for n, kind in site.beside["chem_comp"].items() if "peptide linking" in kind.lower()),
        elsewhere=(counted(site.further, "further data block"),) if site.further else (),
    )
    table = replace(table, said=_said(table, site, numbered))
    models = column("pdbx_PDB_model_num", default="1")
    others = len(np.unique(models.code)) - 1
    return table.only(models.code == models.code[0], counted(others, "other model")) if others else table


def _said(table: Atoms, site: _Site, numbered: np.ndarray) -> np.ndarray:
    """In a sequence where the file numbers it and calls its entity a polypeptide; in no chain where the file leaves
    the number out or calls the entity something else; by the order of rows in a file without such numbers, or with
    numbers for water too (PyMOL's)."""
    waters = table.residue.map(lambda name: name in WATER)
    if not numbered.any() or (numbered & waters).any():
        return said_by_order(table, np.full(len(table), -1), set())
    poly = site.beside["entity_poly"]
    kinds = {entity: IN_SEQUENCE if "peptide" in kind.lower() else FREE for entity, kind in poly.items()}
    entity_of = site.beside["struct_asym"]
    by_entity = site.columns.get("label_entity_id")
    if by_entity is None:
        said = table.chain.map(lambda chain: kinds.get(entity_of.get(chain, ""), IN_CHAIN))
    else:
        said = by_entity.map(lambda entity: kinds.get(entity, IN_CHAIN))
    return np.where(numbered, said, FREE).astype(np.int8)


def _plain(column: Words) -> Words:
    return Words(["" if word in BLANK else word for word in column.words], column.code)
