"""The errors that ElasticIR raises: one line each that says what is wrong, where, and what to do.

The command line prints ``str(error)`` after ``error:`` and exits with 1, so every message has to stand alone. Text from
files is made fit to be shown (:func:`printable`): a name may move the cursor, turn the reading order, or fill the
screen. Users and passwords in URLs, and queries, as signed ones have, are left out.
"""

from __future__ import annotations

import re
import unicodedata

#: How the note begins that a pipeline puts on an exception that is none of ours: it says in which pass that was.
PASS_NOTE = "in pass "

_LONGEST_MESSAGE = 1500  #: characters of a message
#: Characters of a word that are shown; a longer one is no name that anybody reads.
LONGEST = 300
_HEAD, _TAIL = 200, 60
_WORD = re.compile(rf"\S{{{LONGEST + 1},}}")
#: Controls, what changes the reading order or is not seen, halves of surrogate pairs, and ends of lines.
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z\d+.-]+:/{1,2})[^\s/?#'\"]*@")
_QUERY = re.compile(r"(\b[a-zA-Z][a-zA-Z\d+.-]+:/{1,2}[^\s?'\"]*)\?[^\s'\"]*")
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(text: str) -> str:
    r"""One line that a terminal and a web page show as it is: controls as escapes, words that are too long cut short.

    Of URLs neither user and password nor the query is in it.

    >>> printable("layers.\x1b[31m0\n")
    'layers.\\x1b[31m0\\n'
    """
    text = without_secrets(text)
    if not (text.isascii() and text.isprintable()):
        text = "".join(_escaped(char) if unicodedata.category(char) in _HIDDEN else char for char in text)
    return _WORD.sub(_shortened_word, text) if len(text) > LONGEST else text


def without_secrets(text: str) -> str:
    """A text whose URLs have no user, no password and no query.

    >>> without_secrets("at s3://me:secret@bucket/x.pt, or 'https://host/x.pt?signature=1'")
    "at s3://bucket/x.pt, or 'https://host/x.pt'"
    """
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text)) if ":/" in text else text


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode()


def _shortened_word(match: re.Match[str]) -> str:
    word = match[0]
    return f"{word[:_HEAD]}...({len(word) - _HEAD - _TAIL} more)...{word[-_TAIL:]}"


def noted_pass(error: BaseException) -> str:
    """``pass 'NAME': `` where an exception has the note of a pass, else nothing."""
    notes = [note for note in getattr(error, "__notes__", ()) if str(note).startswith(PASS_NOTE)]
    return f"{notes[-1].removeprefix('in ')}: " if notes else ""


def reason(error: OSError | ValueError) -> str:
    """Why the system refused something, in lower case, as the end of a message."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def one_line(error: BaseException) -> str:
    """All that an exception says, on one line."""
    return " ".join(str(error).split()) or "no message"


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


class ElasticError(Exception):
    """Base of all errors that a user can cause; ``str()`` is one plain line, whatever names from a file stand in it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_shortened(printable(message)))


def _shortened(line: str) -> str:
    """A line that somebody reads: what a file holds may stand in it, and be as long as the file."""
    if len(line) <= _LONGEST_MESSAGE:
        return line
    return f"{line[: _LONGEST_MESSAGE - 400]}...({len(line) - _LONGEST_MESSAGE + 100} more)...{line[-300:]}"


class SourceError(ElasticError):
    """A source cannot be read: missing, truncated, of an unknown form, or not trusted."""


class SourceChangedError(SourceError):
    """A source is another than it was when it was looked at; what was made of it so far fits nothing."""


class UntrustedError(SourceError):
    """A pickle names something outside the allow-list; nothing of it was run."""


class BlockedError(SourceError, PermissionError):
    """Code of a library, given values from a file, tried to read, to run or to reach something (see ``guard``)."""


class TraceError(ElasticError):
    """A network could not be traced into a graph (the message says which ways were tried)."""


class StructureError(ElasticError):
    """Nothing in the network repeats, or a stage that was named does not exist."""


class PlanError(ElasticError):
    """A wanted depth, count, plan, order or drop does not fit the network's stages."""


class MaskError(ElasticError):
    """A mask does not fit: unknown name, wrong shape, or values other than 0 and 1."""


class VerifyError(ElasticError):
    """A graph breaks an invariant; the message names the node, value, weight or stage."""


class EmitError(ElasticError):
    """What would be written is not what a strict load expects, or a unit of the plan would not run."""


class OutputError(ElasticError):
    """The output cannot be written; what stood at the target before still stands there."""
