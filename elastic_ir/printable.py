"""Text from files made fit to be shown: a name may move the cursor, turn the reading order, or fill the screen."""

from __future__ import annotations

import re
import unicodedata

#: Characters of a word that are shown; a longer one is no name that anybody reads.
LONGEST = 300
_HEAD, _TAIL = 200, 60
_WORD = re.compile(rf"\S{{{LONGEST + 1},}}")
#: Controls, what changes the reading order or is not seen, halves of surrogate pairs, and ends of lines.
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    r"""One line that a terminal and a web page show as it is: controls as escapes, words that are too long cut short.

    >>> printable("layers.\x1b[31m0\n")
    'layers.\\x1b[31m0\\n'
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(_escaped(char) if unicodedata.category(char) in _HIDDEN else char for char in text)
    return _WORD.sub(_shortened, text) if len(text) > LONGEST else text


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode()


def _shortened(match: re.Match[str]) -> str:
    word = match[0]
    return f"{word[:_HEAD]}...({len(word) - _HEAD - _TAIL} more)...{word[-_TAIL:]}"
