"""Saved files: what others read in them, what we read back, and what stays when writing fails."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import elastic_ir as eir
from elastic_ir.emit import files
from elastic_ir.errors import EmitError, OutputError, SourceError
from elastic_ir.zoo import CifarResNet, cifar_resnet
from tests.emit.nets import IMAGE, contents, image, network, same_tensors, some_masks, ticket

BOTH = pytest.mark.parametrize("name", ["out.pt", "out.safetensors"])

# -- round trips -------------------------------------------------------------------------------------------------------


@BOTH
def test_reading_and_writing_changes_nothing(tmp_path: Path, name: str) -> None:
    """Invariant 1: names, order, bytes and outputs."""
    model = network()
    eir.save(eir.trace(model, input_shape=IMAGE), tmp_path / name)
    graph = eir.load(tmp_path / name)
    same_tensors(graph.state_dict(), model.state_dict())
    again = graph.to_module().eval()
    assert type(again) is CifarResNet
    assert torch.equal(again(image()), model(image()))
    assert graph.masks() == {}
    assert graph.lineage() == {name: name for name in model.state_dict()}


def test_arguments_of_save_that_changed_places(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"save takes a graph or a module, and then the path, not \(str, Graph\)"
    ):
        eir.save("x.pt", ticket())  # type: ignore[arg-type]
    with pytest.raises(OutputError, match=r"and then the path, not \(Graph, int\)"):
        eir.save(ticket(), 3)  # type: ignore[arg-type]


def test_a_pt_is_a_plain_state_dict_for_everyone_else(tmp_path: Path) -> None:
    deeper = eir.stretch(ticket(), to_depth=20)
    assert eir.save(deeper, tmp_path / "out.pt") == [tmp_path / "out.pt"]
    state = torch.load(tmp_path / "out.pt", weights_only=True)
    assert type(state) is dict
    same_tensors(state, deeper.state_dict())
    native = cifar_resnet(20, width=4).eval()
    native.load_state_dict(state, strict=True)
    assert torch.equal(native(image()), deeper.to_module().eval()(image()))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.bfloat16])
def test_class_masks_and_graph_come_back(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    deeper = eir.stretch(ticket(dtype=dtype), to_depth=20)
    eir.save(deeper, tmp_path / name)
    read = eir.load(tmp_path / name)
    assert len(read) == len(deeper)
    assert (read.depth, [len(stage) for stage in read.stages]) == (20, [3, 3, 3])
    assert read.sparsity() == deeper.sparsity() > 0.6
    kind = dtype if name.endswith(".pt") else torch.bool  # the sidecar holds booleans
    same_tensors(read.masks(), {name: mask.to(kind) for name, mask in deeper.masks().items()})
    assert type(read.to_module()) is CifarResNet
    same_tensors(eir.squeeze(read, to_depth=14).state_dict(), ticket().state_dict())


@BOTH
def test_pruned_weights_are_zero_in_the_file(tmp_path: Path, name: str) -> None:
    graph = ticket()
    eir.save(graph, tmp_path / name)
    load = load_file if name.endswith("safetensors") else torch.load
    state = load(tmp_path / name)
    for weight, mask in graph.masks().items():
        assert not state[weight][mask == 0].any(), weight
        assert not state[weight][mask == 0].signbit().any(), weight


class Tied(nn.Module):
    """Two linear layers of one weight around blocks that repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3)))
        self.last = nn.Linear(6, 6, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(self.blocks(self.first(x)))
        return y


@pytest.fixture
def no_trust_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the classes of this file count as the package's own."""
    monkeypatch.setattr("elastic_ir.formats.pickles.allow_list.PACKAGES", ("torch.nn", Tied.__module__))


@BOTH
@pytest.mark.usefixtures("no_trust_needed")
def test_tied_weights_come_back_tied(tmp_path: Path, name: str) -> None:
    deeper = eir.stretch(eir.trace(Tied(), torch.zeros(1, 6)), to_units=5)
    eir.save(deeper, tmp_path / name)
    read = eir.load(tmp_path / name)
    module = read.to_module()
    assert type(module) is Tied
    assert module.last.weight is module.first.weight
    assert len(module.blocks) == 5
    assert read.weights["first.weight"].storage is read.weights["last.weight"].storage
    x = torch.randn(2, 6)
    assert torch.equal(module(x), deeper.to_module()(x))


@BOTH
@pytest.mark.usefixtures("no_trust_needed")
def test_copies_own_their_storage_in_a_file(tmp_path: Path, name: str) -> None:
    deeper = eir.stretch(eir.trace(Tied(), torch.zeros(1, 6)), to_units=5)
    eir.save(deeper, tmp_path / name)
    if name.endswith(".pt"):
        state = torch.load(tmp_path / name, weights_only=True)
    else:
        state = safetensors.torch.load_file(tmp_path / name)
    places: dict[int, set[str]] = {}
    for key, tensor in state.items():
        places.setdefault(tensor.untyped_storage().data_ptr(), set()).add(key)
    shared = [keys for keys in places.values() if len(keys) > 1]
    assert shared == ([{"first.weight", "last.weight"}] if name.endswith(".pt") else [])


@BOTH
def test_without_the_class_a_graph_module_of_the_same_outputs_comes_back(tmp_path: Path, name: str) -> None:
    graph = eir.trace(Tied(), torch.zeros(1, 6))
    deeper = eir.stretch(graph, to_units=5)
    eir.save(deeper, tmp_path / name)
    read = eir.load(tmp_path / name)  # its class is in no trusted package
    module = read.to_module()
    assert isinstance(module, torch.fx.GraphModule)
    assert "--trust" in read.info.class_note
    x = torch.randn(2, 6)
    assert torch.equal(module(x), deeper.to_module()(x))
    same_tensors(dict(module.state_dict()), dict(deeper.to_module().state_dict()))
    same_tensors(eir.squeeze(read, to_units=3).state_dict(), graph.state_dict())
    eir.save(read, tmp_path / f"again.{name}")
    assert torch.equal(eir.load(tmp_path / f"again.{name}").to_module()(x), module(x))


@BOTH
def test_a_class_that_is_gone_is_not_needed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "vanishing_net.py").write_text(
        textwrap.dedent(
            """
            from torch import nn
            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
                def forward(self, x):
                    return self.blocks(x)
            """
        )
    )
    x = torch.randn(2, 4)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(home)
        import vanishing_net  # type: ignore[import-not-found]

        model = vanishing_net.Net().eval()
        eir.save(eir.trace(model, x), tmp_path / name)
        assert type(eir.load(tmp_path / name, trust=["vanishing_net"]).to_module()) is vanishing_net.Net
    del sys.modules["vanishing_net"]
    (home / "vanishing_net.py").unlink()
    for trust in ([], ["vanishing_net"]):
        read = eir.load(tmp_path / name, trust=trust)
        assert isinstance(read.to_module(), torch.fx.GraphModule)
        assert torch.equal(read.to_module()(x), model(x))
    assert "cannot be imported" in read.info.class_note


@BOTH
def test_the_same_graph_gives_the_same_bytes(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = eir.stretch(ticket(), to_depth=20)
    eir.save(graph, tmp_path / name)
    first = contents(tmp_path)
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(later))
    eir.save(graph, tmp_path / name)
    assert contents(tmp_path) == first
    (tmp_path / "other").mkdir()
    eir.save(graph, tmp_path / "other" / name)
    assert contents(tmp_path / "other") == first


def test_safetensors_with_its_sidecar_of_masks(tmp_path: Path) -> None:
    graph = eir.stretch(ticket(), to_depth=20)
    out, sidecar = tmp_path / "out.safetensors", tmp_path / "out.masks.safetensors"
    assert eir.save(graph, out) == [out, sidecar]
    same_tensors({n: load_file(out)[n] for n in graph.state_dict()}, graph.state_dict())
    masks = load_file(sidecar)
    assert masks.keys() == graph.masks().keys()
    assert all(torch.equal(masks[name], mask.bool()) for name, mask in graph.masks().items())
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["elastic_ir.graph"])["version"] == 1


def test_a_sidecar_of_an_earlier_file_does_not_stay(tmp_path: Path) -> None:
    eir.save(ticket(), tmp_path / "out.safetensors")
    eir.save(eir.trace(network(), input_shape=IMAGE), tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]
    assert eir.load(tmp_path / "out.safetensors").masks() == {}


def test_every_dtype_of_torch_goes_through_safetensors(tmp_path: Path) -> None:
    names = [
        "bool",
        "uint8",
        "int8",
        "int16",
        "uint16",
        "float16",
        "bfloat16",
        "int32",
        "uint32",
        "float32",
        "int64",
        "uint64",
        "float64",
        "complex64",
        "float8_e4m3fn",
        "float8_e5m2",
    ]
    dice = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = {}
    for name in names:
        dtype = getattr(torch, name)
        raw = torch.randint(
            0, 2 if name == "bool" else 256, (3 * dtype.itemsize,), generator=dice, dtype=torch.uint8
        )
        state[f"layers.0.{name}"] = raw.view(dtype)
        state[f"layers.1.{name}"] = raw.flip(0).view(dtype)
    state["scalar"], state["empty"] = torch.tensor(3.5), torch.empty(0, 4)
    torch.save(state, tmp_path / "a.pt")
    eir.save(eir.load(tmp_path / "a.pt"), tmp_path / "b.safetensors")
    read = load_file(tmp_path / "b.safetensors")
    same_tensors({name: read[name] for name in state}, state)
    same_tensors(eir.load(tmp_path / "b.safetensors").state_dict(), state)


def test_a_bare_state_dict_is_stretched_without_torch(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(dict(network(14).state_dict()), tmp_path / "a.safetensors")
    save_file(
        {name: mask.bool() for name, mask in some_masks(network(14)).items()}, tmp_path / "m.safetensors"
    )
    code = """
    import sys
    import elastic_ir as eir
    graph = eir.load("a.safetensors", masks="m.safetensors")
    eir.save(eir.stretch(graph, to_stages=(3, 3, 3)), "b.safetensors")
    print("torch" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(eir.__file__).parent.parent)},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("False\n", 0), done.stderr
    native = cifar_resnet(20, width=4)
    native.load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)
    wanted = eir.stretch(ticket(), to_stages=(3, 3, 3))
    same_tensors(dict(native.state_dict()), wanted.state_dict())
    assert (tmp_path / "b.masks.safetensors").exists()


@BOTH
def test_a_file_may_be_written_over_its_own_source(tmp_path: Path, name: str) -> None:
    eir.save(ticket(), tmp_path / name)
    graph = eir.load(tmp_path / name)
    deeper = eir.stretch(graph, to_depth=20)
    wanted = deeper.state_dict()
    eir.save(deeper, tmp_path / name)
    same_tensors(eir.load(tmp_path / name).state_dict(), wanted)
    with pytest.raises(
        SourceError, match="was changed after it was read; read it again"
    ):  # and is not misread
        deeper.state_dict()


# -- what cannot be written --------------------------------------------------------------------------------------------


def test_an_extension_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"out\.txt: the extension \.txt cannot be written; use \.pt, \.safetensors"
    ):
        eir.save(ticket(), tmp_path / "out.txt")
    assert contents(tmp_path) == {}


@BOTH
def test_a_folder_that_does_not_exist(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"cannot be written: the folder .*/none does not exist"):
        eir.save(ticket(), tmp_path / "none" / name)
    assert contents(tmp_path) == {}


def test_a_folder_is_for_transformers_models(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="a folder is written for transformers models"):
        eir.save(ticket(), tmp_path / "out")
    assert contents(tmp_path) == {}


def test_a_class_that_does_not_run_all_is_not_written(tmp_path: Path) -> None:
    """A GraphModule is, and a folder of the class is not."""

    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks[:3]:
                x = block(x)
            return x

    deeper = eir.stretch(eir.trace(Short(), torch.zeros(1, 4)), to_units=5)
    with pytest.raises(
        OutputError, match=r"stands for the class: 2 of 5 blocks would never run, 'blocks\.3' first"
    ):
        eir.save(deeper, tmp_path / "out")
    assert contents(tmp_path) == {}
    eir.save(deeper, tmp_path / "out.pt")
    assert isinstance(eir.load(tmp_path / "out.pt").to_module(), torch.fx.GraphModule)


@pytest.fixture
def full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a file system of 64 KiB; where none may be mounted, one whose files cannot be flushed."""
    folder = tmp_path / "full"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and not subprocess.run(["mount", *options], capture_output=True).returncode
    if not mounted:

        def fail(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail)
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@BOTH
@pytest.mark.parametrize("depth", [14, 32])
def test_a_full_disk_leaves_what_was_there(full_disk: Path, name: str, depth: int) -> None:
    (full_disk / name).write_bytes(b"old" * 3000)
    (full_disk / "out.masks.safetensors").write_bytes(b"masks" * 1000)
    before = contents(full_disk)
    graph = ticket(depth)
    with pytest.raises(OutputError) as caught:
        eir.save(graph, full_disk / name)
    assert "could not be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(full_disk) == before


def test_the_message_of_a_full_disk(full_disk: Path) -> None:
    for name in ("out.pt", "out.safetensors"):
        with pytest.raises(OutputError, match=f"{name} could not be written: no space left on device"):
            eir.save(ticket(32), full_disk / name)


INSIDE = [
    ("out.pt", "elastic_ir.formats.torch_zip.write_state"),
    ("out.pt", "elastic_ir.formats.torch_zip.append_zip_records"),
    ("out.pt", "elastic_ir.emit.files._check_state"),
    ("out.pt", "os.fsync"),
    ("out.pt", "os.replace"),
    ("out.safetensors", "elastic_ir.formats.safetensors.write_safetensors"),
    ("out.safetensors", "elastic_ir.formats.safetensors.read_safetensors"),
    ("out.safetensors", "os.fsync"),
    ("out.safetensors", "os.replace"),
]


@pytest.mark.everyday(4)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize(("name", "where"), INSIDE)
def test_stopped_inside_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str, error: BaseException
) -> None:
    (tmp_path / name).write_bytes(b"old")
    (tmp_path / "out.masks.safetensors").write_bytes(b"masks")
    before = contents(tmp_path)

    def stop(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(where, stop)
    with pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt):
        eir.save(ticket(), tmp_path / name)
    monkeypatch.undo()
    assert contents(tmp_path) == before


def test_a_failure_after_the_masks_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks get their name only when the weights' bytes are on the disk too."""
    eir.save(ticket(), tmp_path / "out.safetensors")
    before = contents(tmp_path)
    genuine, flushed = os.fsync, 0

    def second_fails(descriptor: int) -> None:
        nonlocal flushed
        flushed += 1
        if flushed == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(OutputError, match="no space left on device"):
        eir.save(eir.stretch(ticket(), to_depth=20), tmp_path / "out.safetensors")
    monkeypatch.undo()
    assert contents(tmp_path) == before


@pytest.mark.slow
@BOTH
def test_a_real_interrupt(tmp_path: Path, name: str) -> None:
    """SIGINT while the bytes are being written, in a process of its own."""
    (tmp_path / name).write_bytes(b"old")
    code = f"""
    import os, signal, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    import elastic_ir as eir
    from elastic_ir.formats import safetensors, torch_zip
    from elastic_ir.zoo import cifar_resnet
    def slow(*arguments, genuine=None, **options):
        genuine(*arguments, **options)
        print("writing", flush=True)
        time.sleep(60)
    import functools
    torch_zip.write_state = functools.partial(slow, genuine=torch_zip.write_state)
    safetensors.write_safetensors = functools.partial(slow, genuine=safetensors.write_safetensors)
    eir.save(eir.trace(cifar_resnet(14, width=4)), {name!r})
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(Path(eir.__file__).parent.parent)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    assert len(contents(tmp_path)) == 2, "the temporary file is there"
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert contents(tmp_path) == {name: b"old"}


def test_the_sidecar_goes_by_the_files_name() -> None:
    assert files.mask_file(Path("a/b.c.safetensors")) == Path("a/b.c.masks.safetensors")


def test_saving_copies_no_parameter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is read from the source's own tensors; a check runs them, and leaves them as they are."""
    from elastic_ir.emit import module as emission

    model = cifar_resnet(14)
    graph = eir.stretch(eir.trace(model), to_depth=20)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made: list[torch.nn.Module] = []
    build = emission._build

    def noted(*args: Any, **options: Any) -> torch.nn.Module:
        made.append(build(*args, **options))
        return made[-1]

    monkeypatch.setattr(emission, "_build", noted)
    eir.save(graph, tmp_path / "checked.pt")
    held = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in held for parameter in made[0].parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    eir.save(graph, tmp_path / "plain.pt", check=False)
    assert all(parameter.is_meta for parameter in made[1].parameters())
    assert (tmp_path / "plain.pt").read_bytes() == (tmp_path / "checked.pt").read_bytes()
    own = graph.to_module()
    assert not held.intersection(parameter.data_ptr() for parameter in own.parameters())


class Counted(nn.Linear):
    """A layer that counts something which is no tensor of its own."""

    def get_extra_state(self) -> dict[str, int]:
        return {"runs": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state == {"runs": 3}


@pytest.mark.parametrize("name", ["out.pt", "out.safetensors", "out.ticket"])
def test_a_state_that_is_no_tensor_is_refused(tmp_path: Path, name: str) -> None:
    """A strict load wants it, and the module that is emitted has it."""
    model = nn.Sequential(*(Counted(4, 4) for _ in range(3)))
    graph = eir.stretch(eir.trace(model, torch.ones(1, 4)), to_units=4)
    said = r"the state dict has '0\._extra_state', which Counted makes by get_extra_state"
    with pytest.raises(EmitError, match=said):
        eir.save(graph, tmp_path / name)
    with pytest.raises(EmitError, match=said):
        graph.state_dict()
    assert list(tmp_path.iterdir()) == []
    deeper = nn.Sequential(*(Counted(4, 4) for _ in range(4)))
    deeper.load_state_dict(graph.to_module().state_dict(), strict=True)
