"""Damaged files of twelve formats, the same for the same number: bytes changed, and contents that make no sense."""

from __future__ import annotations

import base64
import io
import json
import pickletools
import random
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.byte_changes import BYTE_CHANGES
from tests.fuzz.gguf_changes import gguf_change
from tests.fuzz.seeds import FORMATS, Files, seed
from tests.fuzz.trees import ODD_NAMES, changed, json_text

Change = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Mutant:
    """The files of a folder, one of them damaged, and the command that reads them there."""

    files: Files
    command: tuple[str, ...]
    output: str = ""  #: the name of what the command writes, if it writes


def mutant(form: str, number: int) -> Mutant:
    """The damaged files of that number."""
    chance = random.Random(f"{form} {number}")
    files = seed(form, chance.randrange(len(FORMATS[form])))
    first, *others = files
    damaged = chance.choice(others) if others and chance.random() < 0.2 else first
    changes = [*_CHANGES.get(damaged.rpartition(".")[2], ()), _bytes]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        try:
            files[damaged] = chance.choice(changes)(files[damaged], chance)
        except Exception:  # it is so damaged already that it cannot be taken apart
            files[damaged] = _bytes(files[damaged], chance)
    return Mutant(files, *_command(form, files, chance))


def _command(form: str, files: Files, chance: random.Random) -> tuple[tuple[str, ...], str]:
    source = next((name for name in files if name.startswith("model")), "folder")
    given: list[str] = []
    if form == "masks":
        given = ["--mask", next(name for name in files if name.startswith("mask."))]
    if form == "described" and chance.random() < 0.2:
        given = ["--mask", "model.masks.safetensors"]
    ending = chance.choice((".pt", ".pt", ".safetensors", ".ticket")) if source != "folder" else ""
    if form == "dcp":  # put together, or as it is
        ending = chance.choice((".pt", ".safetensors", "", "", ""))
    if form == "gguf":
        ending = ".gguf"
    output = f"out{ending}"
    if source == "folder":  # the comparison with the network's class imports transformers anew, for seconds
        given.append("--no-check")
    if form == "recipe":
        if source == "folder":
            return ("stretch", "recipe.yaml", "-o", output, "--no-check"), output
        return ("apply", source, "--recipe", "recipe.yaml", "-o", output), output
    counted = "4" if source == "folder" or form == "gguf" else "3"
    masks = [word for word in given if word != "--no-check"]
    plain: tuple[tuple[str, ...], ...] = (
        ("inspect", source, *masks), ("inspect", source, "--json", *masks), ("inspect", source, "--ghosts"),
        ("stretch", source, "--to-units", "6", "--dry-run", *given), ("stretch", source, "--to-depth", "30", *given),
    )  # fmt: skip
    if source == "folder":
        plain += (("verify", source, "--no-check"), ("diff", source, source))
    elif form == "gguf":
        plain += (("diff", source, source), ("verify", source), ("verify", source, "--against", "other.gguf"))
    else:
        plain += (("diff", source, source), ("export", source, "-o", "out.onnx"))
    if chance.random() < 0.3:
        chosen = chance.choice(plain)
        return chosen, "out.onnx" if chosen[0] == "export" else ""
    writing = chance.choice(
        (
            ("stretch", source, "--to-units", "6"),
            ("stretch", source, "--to-units", "5", "--order", "interpolate"),
            ("squeeze", source, "--to-units", "2"),
            ("stretch", source, "--plan", f"0-{int(counted) - 1},1"),
        )
    )
    return (*writing, "-o", output, *given), output


# -- what knows of formats ---------------------------------------------------------------------------------------------


def _bytes(data: bytes, chance: random.Random) -> bytes:
    made = bytearray(data)
    chance.choice(BYTE_CHANGES)(made, chance)
    return bytes(made)


def _safetensors(data: bytes, chance: random.Random) -> bytes:
    """The header says something else, or one of the JSON texts in its metadata does."""
    length = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + length], data[8 + length :]
    header = json.loads(text)
    told = header.get("__metadata__", {})
    inner = [key for key in told if key.startswith("elastic_ir.")]
    which = chance.random()
    if inner and which < 0.5:
        key = chance.choice(inner)
        packed = key.endswith(".zlib")
        content = zlib.decompress(base64.b64decode(told[key])) if packed else told[key].encode()
        content = json_text(content, chance)
        told[key] = (
            base64.b64encode(zlib.compress(content)).decode()
            if packed
            else content.decode("utf-8", "surrogatepass")
        )
        text = json.dumps(header).encode()
    elif which < 0.8:
        text = json_text(text, chance)
    elif which < 0.9:  # two tensors with each other's places, or a name that is another's
        one, other = (chance.choice(list(header)) for _ in range(2))
        header[one], header[other] = header[other], header[one]
        text = json.dumps(header).encode()
    else:
        name = chance.choice(list(header))
        header = {chance.choice(ODD_NAMES) if key == name else key: item for key, item in header.items()}
        text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + rest


def _torch(data: bytes, chance: random.Random) -> bytes:
    """A record of the zip, or of the older form's pickles, that is another."""
    if not data.startswith(b"PK"):
        return _pickle(data, chance)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = chance.randrange(len(records))
    name, content = records[at]
    which = chance.randrange(10)
    form = zipfile.ZIP_STORED
    if which == 0:
        del records[at]
    elif which == 1:
        records.append((name, chance.choice((b"", content[::-1], content * 2))))
    elif which == 2:
        other = chance.randrange(len(records))
        records[at], records[other] = (name, records[other][1]), (records[other][0], content)
    elif which == 3:
        records[at] = (
            chance.choice(("archive/../x", "data.pkl", "/", "x" * 300, "archive/data/99")),
            content,
        )
    elif which == 4:
        form = zipfile.ZIP_DEFLATED
    elif which == 5:
        records[at] = (name, _bytes(content, chance))
    else:  # what is read as text or as a pickle is the most telling
        told = [i for i, (record, _) in enumerate(records) if record.endswith((".json", ".pkl"))]
        at = chance.choice(told)
        name, content = records[at]
        change = json_text if name.endswith(".json") else _pickle
        records[at] = (name, change(content, chance))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", form) as archive:
        for record, text in records:
            archive.writestr(zipfile.ZipInfo(record), text, form)
    return file.getvalue()


def _pickle(data: bytes, chance: random.Random) -> bytes:
    """An operation of a pickle that is another, or has another argument."""
    found = list(pickletools.genops(data))
    ends = [place for _, _, place in found[1:]] + [None]
    at = chance.randrange(len(found))
    operation, argument, start = found[at]
    assert start is not None
    end = ends[at] if ends[at] is not None else start + 1
    codes = b"0)](}ebtsuaRoc2Q.\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94NIKM"
    which = chance.randrange(6)
    if which == 0:
        new = b""
    elif which == 1:
        new = data[start:end] * 2
    elif which == 2:
        new = bytes([chance.choice(codes)]) + data[start + 1 : end]
    elif isinstance(argument, str) and operation.name in ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"):
        name = chance.choice((*ODD_NAMES, argument[::-1], argument + ".0")).encode("utf-8", "surrogatepass")
        new = b"X" + len(name).to_bytes(4, "little") + name
    elif isinstance(argument, str) and operation.name == "GLOBAL":
        new = chance.choice((b"cos\nsystem\n", b"ctorch\nLongStorage\n", b"ctorch.nn.modules.linear\nLinear\n",
                             b"ccollections\nOrderedDict\n", b"c\n\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
                             b"ctorch\n\x1b[31m\n", b"celastic_ir.cli.__main__\nmain\n"))  # fmt: skip
    elif isinstance(argument, int):
        value = chance.choice((0, 1, -1, argument + 1, 2**31 - 1, -(2**31)))
        new = b"J" + value.to_bytes(4, "little", signed=True)
    else:
        new = bytes([chance.choice(codes)])
    return data[:start] + new + data[end:]


def _metadata(data: bytes, chance: random.Random) -> bytes:
    """What describes a checkpoint's entries, with another operation, a vast number, or texts that change places.

    It has no frames then, which would tell of every other length.
    """
    found = list(pickletools.genops(data))
    starts = [place or 0 for _, _, place in found] + [len(data)]
    pieces = [
        (op, arg, data[at:end]) for (op, arg, _), at, end in zip(found, starts, starts[1:], strict=False)
    ]
    pieces = [piece for piece in pieces if piece[0].name != "FRAME"]
    raw = [piece[2] for piece in pieces]
    which = chance.randrange(6)
    if which < 3:
        return _pickle(b"".join(raw), chance)
    kind = int if which == 3 else str
    places = [at for at, piece in enumerate(pieces) if type(piece[1]) is kind and "PUT" not in piece[0].name]
    one, other = chance.choice(places), chance.choice(places)
    if which == 3:
        number = chance.choice((2**40, 2**62, 2**63, -1, 0, 1))
        raw[one] = b"\x8a" + bytes([9]) + number.to_bytes(9, "little", signed=True)
    elif which == 4:
        raw[one] = raw[other]
    else:
        raw[one], raw[other] = raw[other], raw[one]
    return b"".join(raw)


def _distcp(data: bytes, chance: random.Random) -> bytes:
    """One of the entries of a rank's file is another, in the place that it has."""
    begins = [found.start() for found in re.finditer(rb"PK\x03\x04.{26}archive/data\.pkl", data, re.DOTALL)]
    at = chance.randrange(len(begins))
    begin, end = begins[at], [*begins, len(data)][at + 1]
    made = _torch(data[begin:end], chance)[: end - begin]
    return data[:begin] + made.ljust(end - begin, b"\0") + data[end:]


def _yaml(data: bytes, chance: random.Random) -> bytes:
    """A recipe that says something else, is deep, or expands to more than there is room for."""
    import yaml

    which = chance.randrange(10)
    if b"*a" in data:
        return _bytes(data, chance)  # it grows already, and is not to be written out here
    if which == 0:
        levels = chance.choice((100, 3000))
        return data + b"extra: " + b"[" * levels + b"]" * levels + b"\n"
    if which == 1:
        lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
        return data + "\n".join(lines).encode() + b"\npasses: *a39\n"
    if which == 2:
        lines = data.decode().splitlines()
        at = chance.randrange(len(lines))
        lines[at] = chance.choice(
            ("", "  " + lines[at], lines[at].strip(), "- " + lines[at], "&a *a", "!!python/object:os.system x",
             "? [a, b]\n: c", "\t" + lines[at], lines[at] + " *a", "<<: *b", "%YAML 9.9", "---", "passes: &p [*p]")
        )  # fmt: skip
        return "\n".join(lines).encode()
    if which == 3:
        model = chance.choice((b"'\\e[31m'", b'"\\e[31m\\u202e"', b"/dev", b"~"))
        return data.replace(b"model: folder", b"model: " + model)
    tree = yaml.safe_load(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        tree = changed(tree, chance)
    return yaml.safe_dump(tree, allow_unicode=chance.random() < 0.5, sort_keys=False).encode(
        "utf-8", "replace"
    )


#: By the ending of a file's name: the changes that know what it is.
_CHANGES: dict[str, tuple[Change, ...]] = {
    "safetensors": (_safetensors,) * 3,
    "ticket": (_safetensors,) * 3,
    "pt": (_torch,) * 3,
    "bin": (_torch,) * 3,
    "json": (json_text,) * 5,
    "yaml": (_yaml,) * 5,
    "gguf": (gguf_change,) * 5,
    "metadata": (_metadata,) * 5,
    "distcp": (_distcp,) * 3,
}
