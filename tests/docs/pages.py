"""Runs a page of the documentation: its blocks in order, in one process and one folder that is empty at first.

``python -m tests.docs.pages docs/inspect.md ...`` runs pages by hand; CONTRIBUTING.md says how they are marked.
"""

from __future__ import annotations

import ast
import contextlib
import io
import linecache
import os
import re
import shlex
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: Marks of a block, in comments directly above it. A colon is followed by a reason or by the name of a file.
MARKS = {
    "not run:": "the block is not run, for this reason",
    "figures vary:": "of what is printed the words are compared and the numbers are not, for this reason",
    "file:": "the block is the content of this file",
    "more of:": "the block is appended to this file",
    "kept in:": "the Python runs, and is appended to this file too",
    "part of:": "the block shows this file, with `...` for what is left out",
    "printed": "the block is what the Python since the last such block has printed",
}
_FENCE = re.compile(r"^( *)(```+)(\w*)[^\n]*\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(
    r"<!-- (not run:|figures vary:|file:|more of:|kept in:|part of:|printed)(.*?)-->", re.DOTALL
)
_NUMBER = re.compile(r"\d[\d,]*(?:\\\.\d+)?(?:e(?:\\-|\+)?\d+)?")
_SHELL = set("|&;<>$*`~()")


@dataclass(frozen=True)
class Block:
    """A fenced block, with the marks above it."""

    language: str
    text: str
    line: int  #: of its first line of content, from 1
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        """Whether something is run or compared."""
        return "not run:" not in self.marks


def blocks(text: str) -> list[Block]:
    """The blocks of a page in order; ValueError where one says neither how it runs nor why not."""
    found = []
    for match in _FENCE.finditer(text):
        indent, _, language, body = match.groups()
        line = text.count("\n", 0, match.start()) + 2
        body = "".join(part.removeprefix(indent) for part in body.splitlines(keepends=True))
        marks = {kind: " ".join(words.split()) for kind, words in _MARK.findall(_above(text, match.start()))}
        if any(kind.endswith(":") and not words for kind, words in marks.items()):
            raise ValueError(f"line {line}: the mark above the block gives no reason or name")
        if language not in ("python", "console") and not set(marks) - {"figures vary:"}:
            raise ValueError(
                f"line {line}: a block of {language or 'no language'!r} needs a mark: one of {', '.join(MARKS)}"
            )
        found.append(Block(language, body, line, marks))
    return found


def _above(text: str, at: int) -> str:
    """The comments that end directly above a place, with nothing but blanks between."""
    start = at
    while (head := text[:start].rstrip()).endswith("-->"):
        start = head.rindex("<!--")
    return text[start:at]


def agrees(shown: str, printed: str, *, numbers: bool = True) -> bool:
    """Whether a text is what is shown: ``...`` alone on a line stands for any lines, within one for anything.

    >>> agrees("a\\n...\\nz 1...3", "a\\nb\\nc\\nz 1 2 3")
    True
    >>> agrees("wrote: 3.5 MB", "wrote: 12 MB", numbers=False)
    True
    """
    pattern = []
    for line in shown.rstrip().splitlines():
        if line.strip() == "...":
            pattern.append(r"(?:[^\n]*\n)*?")
            continue
        parts = [re.escape(part) for part in line.rstrip().split("...")]
        if not numbers:
            parts = [_NUMBER.sub(r"\\d[\\d,.e+-]*", re.sub(r"(?:\\ )+", r"\\ +", part)) for part in parts]
        pattern.append("[^\n]*".join(parts) + "\n")
    lines = "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())
    return re.fullmatch("".join(pattern), lines) is not None


class Page:
    """A page that is being run, in the working folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.module = types.ModuleType("page")
        self.printed = io.StringIO()
        sys.modules["page"] = self.module

    def run(self) -> None:
        """Run all blocks; AssertionError with page and line where one fails or prints something else."""
        for block in blocks(self.path.read_text("utf-8")):
            where = f"{self.path.name}, line {block.line}"
            if not block.runs:
                continue
            for mark, mode in (("file:", "w"), ("more of:", "a"), ("kept in:", "a")):
                if mark in block.marks:
                    target = Path(block.marks[mark])
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open(mode, encoding="utf-8") as file:
                        file.write(block.text)
            if "file:" in block.marks or "more of:" in block.marks:
                continue
            if "part of:" in block.marks:
                whole = Path(block.marks["part of:"]).read_text("utf-8")
                assert agrees(f"...\n{block.text.rstrip()}\n...", whole), f"{where}: not a part of\n{whole}"
            elif "printed" in block.marks:
                self.compare(block, block.text, self.printed.getvalue(), where)
                self.printed = io.StringIO()
            elif block.language == "python":
                self.python(block)
            else:
                for line, command, shown in commands(block):
                    self.command(block, command, shown, f"{self.path.name}, line {line}")

    def compare(self, block: Block, shown: str, printed: str, where: str) -> None:
        """AssertionError where what was printed is not what is shown."""
        assert agrees(shown, printed, numbers="figures vary:" not in block.marks), (
            f"{where}: shown is\n{shown}\nand printed was\n{printed}"
        )

    def python(self, block: Block) -> None:
        """Run a block; an expression whose comment is a literal (``graph.depth  # 50``) has to have that value."""
        name = f"{self.path}:{block.line}"
        linecache.cache[name] = (len(block.text), None, block.text.splitlines(keepends=True), name)
        lines = block.text.splitlines()
        with contextlib.redirect_stdout(self.printed):
            for statement in ast.parse(block.text).body:
                comment = lines[(statement.end_lineno or 1) - 1][statement.end_col_offset or 0 :].strip()
                tree = ast.fix_missing_locations(ast.Module([statement], []))
                if not isinstance(statement, ast.Expr):
                    exec(compile(tree, name, "exec"), self.module.__dict__)
                    continue
                value = eval(compile(ast.Expression(statement.value), name, "eval"), self.module.__dict__)
                with contextlib.suppress(ValueError, SyntaxError):
                    wanted = ast.literal_eval(comment.removeprefix("#").strip())
                    assert value == wanted, f"{name}: {ast.unparse(statement)} is {value!r}, not {wanted!r}"

    def command(self, block: Block, command: str, shown: str, where: str) -> None:
        """Run a command and compare its output; it has to fail where an error is shown, and only there."""
        words = shlex.split(command, comments=True)
        if words[0] == "cd":
            os.chdir(words[1])
            return
        status, printed = run(words, command)
        fails = any(line.startswith(("error:", "Error:")) for line in shown.splitlines())
        assert bool(status) == fails, f"{where}: exit status {status} of {command}\n{printed}"
        if shown.strip():
            self.compare(block, shown, printed, where)


def commands(block: Block) -> Iterator[tuple[int, str, str]]:
    """Line number, command and shown output of each command of a console block."""
    found: list[tuple[int, str, str]] = []
    going_on = False
    for number, text in enumerate(block.text.splitlines(), start=block.line):
        if going_on or text.startswith("$ "):
            part = text.removeprefix("$ ")
            line, command, _ = found.pop() if going_on else (number, "", "")
            going_on = part.endswith("\\")
            found.append((line, f"{command}{part.removesuffix(chr(92)).strip()} ", ""))
        elif not found:
            raise ValueError(f"line {number}: a console block begins with a command, '$ ...'")
        else:
            line, command, shown = found.pop()
            found.append((line, command, f"{shown}{text}\n"))
    yield from ((line, command.strip(), shown) for line, command, shown in found)


def run(words: list[str], command: str) -> tuple[int, str]:
    """Exit status and output; a plain ``elastic-ir`` in this process, which has imported what takes long."""
    if words[0] == "elastic-ir" and not (_SHELL & set(re.sub(r"\"[^\"]*\"|'[^']*'|#.*", "", command))):
        from click.testing import CliRunner

        from elastic_ir.cli.app import elastic_ir
        from elastic_ir.passes import _loaded

        _loaded.clear()  # a process of its own would know no passes of files
        result = CliRunner().invoke(elastic_ir, words[1:], prog_name="elastic-ir")
        return result.exit_code, result.output
    done = subprocess.run(
        ["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )
    return done.returncode, done.stdout


def environment() -> dict[str, str]:
    """The environment of a page: no network, one thread, our commands first."""
    paths = [str(ROOT), str(ROOT / "tests/torchvision_cpu"), os.environ.get("PYTHONPATH", "")]
    programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PATH": os.pathsep.join(programs),
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "120", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


def run_here(path: Path, folder: Path, output: Path | None = None) -> None:
    """Run a page in a folder, in this process, which is good for nothing else then; what is printed goes to a file."""
    if output is not None:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    os.environ.update(environment())
    warnings.simplefilter("ignore")
    os.chdir(folder)
    sys.path.insert(0, "")
    Page(path).run()


def main(paths: list[str]) -> None:
    """Run each page in a process and a folder of its own."""
    if os.environ.get("PAGE_HERE"):
        return run_here(Path(paths[0]), Path())
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [sys.executable, "-m", "tests.docs.pages", str(Path(path).resolve())],
                cwd=folder, check=True, env={**environment(), "PAGE_HERE": "1"},
            )  # fmt: skip
        print(f"{path}: all blocks ran")
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
