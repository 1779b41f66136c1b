"""Text that came from outside, on its way to a terminal, a page, a drawing or a table: the one place that cleans it.

A machine's name, a backend's file name or a compiler's message may hold what a terminal obeys (ESC), an XML parser
dies of (NUL), or what turns a line round before a reader's eyes (a bidi override). Records keep such text as it came;
whatever shows it passes it through here first, and then escapes it by the rules of its own medium: markup, HTML,
Markdown. Free of torch.
"""

from __future__ import annotations

import unicodedata

INSTEAD = "\N{REPLACEMENT CHARACTER}"  # that something stood there is seen
# Control, format (bidi, zero width), lone surrogate, no character, line and paragraph separators: nothing to read.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"})


def shown(text: object) -> str:
    """One line: every run of white space is one space, every character that is not to be seen is ``INSTEAD``."""
    return _seen(" ".join(str(text).split()))


def shown_lines(text: object) -> str:
    """The same for a text of many lines, which keeps its line breaks and indents."""
    return "\n".join(_seen(line.removesuffix("\r").expandtabs(4)) for line in str(text).split("\n"))


def _seen(line: str) -> str:
    if line.isascii() and line.isprintable():
        return line
    return "".join(INSTEAD if unicodedata.category(c) in _UNSEEN else c for c in line)
