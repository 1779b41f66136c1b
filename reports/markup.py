"""Sentences with marks, and how each way out shows them.

A mark is a pair of control characters around what is bold or the name of a backend or commit. Text of records holds no
control characters once it is read (:func:`reports.read.load.cleaned`), so nothing in a record can be taken for a mark,
and each way out escapes what is special to it in one place: :func:`as_markdown`, and :func:`reports.page.page.mark_up`
for HTML.
"""

from __future__ import annotations

import re

BOLD, CODE = ("\x02", "\x03"), ("\x0e", "\x0f")
_MARKS = str.maketrans("", "", "".join(BOLD + CODE))
_VERBATIM = re.compile(r"[\w .,:;=+\-/()%×…–{}'\"@!?~]*")
_SPECIAL = re.compile(r"[\\`*\[\]~$|]|(?<!\w)_|_(?!\w)|^(?=[#+-])")


def bold(text: str) -> str:
    return BOLD[0] + text + BOLD[1]


def code(text: str) -> str:
    return CODE[0] + text + CODE[1]


def plain(text: str) -> str:
    """Without its marks, for a terminal."""
    return text.translate(_MARKS)


def as_markdown(text: object) -> str:
    """One line of Markdown that reads as ``text`` does: what Markdown or HTML would act on is escaped."""
    parts = re.split("([\x02\x03]|\x0e[^\x0f]*\x0f)", " ".join(str(text).split()) if "\n" in str(text) else str(text))
    return "".join(_part(p) for p in parts)


def _part(part: str) -> str:
    if part in BOLD:
        return "**"
    if part.startswith(CODE[0]):
        held = part[1:-1]
        return f"`{held}`" if held and _VERBATIM.fullmatch(held) else escaped(held)
    return escaped(part)


def escaped(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(lambda m: "\\" + m[0], text)
