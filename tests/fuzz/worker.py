"""A warm process that has the command line read damaged files, each in a process forked from it.

``python -m tests.fuzz.worker`` imports everything, then takes a line of JSON for each run of numbers on standard input,
``["state", 0, 100, 1, FOLDER]``, and answers with a line of JSON for each number.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import warnings
from pathlib import Path
from typing import Any

from elastic_ir.checkpoints.libraries.of_transformers import Transformers
from tests.fuzz.mutants import Mutant, mutant
from tests.fuzz.seeds import FORMATS

SECONDS = 10
MEMORY = 300  #: MB beyond what the imports take
_ROOM = (
    2 << 30
)  #: bytes of addresses after which the system says no, so that one file cannot take the machine
_LONGEST = 2000  #: characters of a message
_DEFECT = 70  #: the exit code of an exception that left the command line


def _memory(key: str) -> int:
    """MB of this process's memory, as the system counts it under ``VmRSS`` or ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) >> 10


def warm() -> None:
    """Run a sound file of each format once, so that nothing is left to import."""
    import onnxruntime  # noqa: F401
    import torch
    import torch.distributed.checkpoint.state_dict_loader
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    for form in FORMATS:
        done, number = 0, 0
        while done < 6:
            case = mutant(form, number)
            number += 1
            with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
                _write(case, Path(folder))
                done += 1
                _run(case.command)


@contextlib.contextmanager
def _inside(folder: Path) -> Any:
    before = Path.cwd()
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDWR)
    kept = [os.dup(1), os.dup(2)]
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for handle in (null, *kept):
            os.close(handle)
        os.chdir(before)


def _run(command: tuple[str, ...]) -> int:
    """The command line's exit code; an exception that leaves it is printed as the interpreter would."""
    from elastic_ir.cli.app import elastic_ir

    try:
        elastic_ir(list(command))
    except SystemExit as end:
        code = end.code
        return code if isinstance(code, int) else 1 if code else 0
    except BaseException:
        traceback.print_exc()
        return _DEFECT
    return 0


def _write(case: Mutant, folder: Path) -> None:
    for name, content in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _limited() -> None:
    """In a child: a time after which the system ends it, and room beyond which it gets no memory."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(6 * SECONDS)  # other work on the machine makes a run longer, but not that much
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + _ROOM, taken + _ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def examine(form: str, number: int, folder: Path) -> dict[str, Any]:
    """What came of one damaged file."""
    case = mutant(form, number)
    place = folder / "files"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    _write(case, place)
    log, told = folder / "log", folder / "told"
    told.unlink(missing_ok=True)
    begin = time.perf_counter()
    child = os.fork()
    if not child:
        code = _DEFECT
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            os.chdir(place)
            _limited()
            resting = _memory("VmRSS")
            code = _run(case.command)
            sys.stdout.flush()
            sys.stderr.flush()
            told.write_text(str(_memory("VmHWM") - resting))
        finally:
            os._exit(code)
    _, status, used = os.wait4(child, 0)
    seconds = min(time.perf_counter() - begin, used.ru_utime + used.ru_stime)
    code = os.waitstatus_to_exitcode(status)
    output = log.read_bytes().decode("utf-8", "backslashreplace")
    peak = int(told.read_text()) if told.exists() else 0
    defects = list(_defects(case, code, output, seconds, peak, place))
    compared = ""
    if code == 0 and case.output and (place / case.output).exists() and case.output != "out.onnx":
        compared = _compared(case, place, log)
        if compared:
            defects.append(f"oracle: {compared}")
    return {
        "form": form, "number": number, "command": " ".join(case.command), "code": code, "defects": defects,
        "output": output[-3000:], "seconds": round(seconds, 2), "peak": peak,
        "written": bool(case.output) and (place / case.output).exists(),
    }  # fmt: skip


def _defects(case: Mutant, code: int, output: str, seconds: float, peak: int, place: Path) -> Any:
    if code not in (0, 1, 2):
        yield f"the exit code is {code}"
    if "unexpected" in output or "Traceback" in output:
        yield "it says 'unexpected', or a traceback"
    if code == 1 and len([line for line in output.splitlines() if line.startswith("error: ")]) != 1:
        yield "a refusal is one line that begins with 'error: '"
    if "--json" not in case.command and max(map(len, output.splitlines()), default=0) > _LONGEST:
        yield "a line is too long"
    odd = {char for char in output if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char != "\n"}
    if odd:
        yield f"control characters reach the terminal: {sorted(map(ascii, odd))}"
    if seconds > SECONDS:
        yield f"it took {seconds:.1f} s"
    if peak > MEMORY:
        yield f"it took {peak} MB"
    found = {str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir()}
    left = sorted(found - case.files.keys())
    allowed = {case.output, f"{Path(case.output).stem}.masks.safetensors"} if case.output else set()
    if case.output.endswith(".gguf"):  # a model in parts becomes one in parts
        allowed |= {name for name in left if name.startswith("out-0000")}
    if code == 0 and "." not in case.output and case.output:
        left = [name for name in left if not name.startswith(f"{case.output}/")]
    if "--resume" in output:
        left = [name for name in left if not name.startswith(".out.partial")]
    if [name for name in left if code or name not in allowed] and "-depth30" not in str(left):
        yield f"it left {left}"
    for name, content in case.files.items():
        if name not in found or (place / name).read_bytes() != content:
            yield f"it changed {name}"


def _compared(case: Mutant, place: Path, log: Path) -> str:
    """What the oracle says, in a process of its own: what it reads is damaged, and it is not as careful."""
    from tests.fuzz.oracle import compare

    source = next((name for name in case.files if name.startswith("model")), "folder")
    child = os.fork()
    if not child:
        try:
            _limited()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                log.write_text(compare(place, source, case.output))
        except BaseException:
            log.write_text(traceback.format_exc()[-2000:])
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return log.read_text() if not status else f"the oracle ended with {status}"


def main() -> None:
    warm()
    # for each network a process would import transformers anew, for seconds
    Transformers.imports = "no_such_library"
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        form, first, behind, step, folder = json.loads(line)
        for number in range(first, behind, step):
            print(json.dumps(examine(form, number, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
