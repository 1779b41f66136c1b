"""What comes from outside reaches no terminal, drawing or page as anything but letters."""

from __future__ import annotations

import sys
import unicodedata
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest

from benchmarks.harness.schema.shown import INSTEAD, shown, shown_lines

EVERY = "".join(map(chr, range(sys.maxunicode + 1)))


def test_no_character_there_is_can_break_an_xml_parser_or_reach_a_terminal_as_a_command() -> None:
    for clean in (shown(EVERY), *shown_lines(EVERY).split("\n")):
        assert ElementTree.fromstring(f"<text>{escape(clean)}</text>").text == clean
        assert {unicodedata.category(c) for c in clean}.isdisjoint({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})
        clean.encode()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[enforce fail at alloc_cpu.cpp:117] [/red]", "[enforce fail at alloc_cpu.cpp:117] [/red]"),
        ("\x1b[31mred\x1b[0m", f"{INSTEAD}[31mred{INSTEAD}[0m"),
        ("a\r\nb\t c\n", "a b c"),
        ("abc\N{RIGHT-TO-LEFT OVERRIDE}def", f"abc{INSTEAD}def"),
        ("Größe × 3 … 水", "Größe × 3 … 水"),
        (None, "None"),
    ],
)
def test_a_text_becomes_one_line_of_what_can_be_seen(text: object, line: str) -> None:
    assert shown(text) == line


def test_lines_stay_lines() -> None:
    assert shown_lines("Traceback:\r\n\tat \x1b[1mx  \n\n  end") == f"Traceback:\n    at {INSTEAD}[1mx  \n\n  end"
