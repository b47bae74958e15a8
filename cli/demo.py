"""``elastic-ir demo``: a sparse network made on the spot, and the commands of a first visit run on it.

It needs no data, no download and none of the extras. The files stay, so that a reader can go on with them.
"""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

import click

from elastic_ir.cli.app import COMMANDS, FORCE, FORCE_OPTION, elastic_ir, given, run_flags
from elastic_ir.cli.output import written_data
from elastic_ir.cli.tables import say, say_result, silent
from elastic_ir.errors import OutputError

DEPTH, SPARSITY = 32, 0.8
#: What is run, each with what a reader sees in it.
STEPS = (
    ("inspect model.pt", "what repeats in it: stages, blocks that may be cloned, depth"),
    ("stretch model.pt --to-depth 56", "its blocks are cloned, with weights, statistics and masks"),
    ("diff model.pt model-depth56.pt", "what the two have in common"),
    ("squeeze model-depth56.pt --to-depth 32 -o back.pt", "the clones are deleted again"),
    ("diff model.pt back.pt", "which gives the source, bit for bit"),
    ("export model-depth56.pt -o model-depth56.onnx", "the deeper network as ONNX"),
)
EPILOG = """\
\b
Examples:
  elastic-ir demo
  elastic-ir demo somewhere/else
"""


def make_ticket(path: Path) -> None:
    """A CIFAR ResNet-32 with random weights of which a mask prunes 80 %, by magnitude over the whole network."""
    import torch

    import elastic_ir as eir
    from elastic_ir.tickets import magnitude_masks
    from elastic_ir.zoo import cifar_resnet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cifar_resnet(DEPTH)
    masks = magnitude_masks(model, SPARSITY)
    eir.save(eir.trace(model, (torch.zeros(1, 3, 32, 32),), masks=masks), path)


@click.command("demo", short_help=COMMANDS["demo"], epilog=EPILOG)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default="elastic-ir-demo")
@FORCE_OPTION
@run_flags
def demo(folder: Path) -> None:
    """Make a sparse network, and show what can be done with it.

    A ResNet-32 of which a mask prunes 80 % is written to FOLDER/model.pt (elastic-ir-demo/model.pt), inspected,
    stretched to 56 layers, squeezed back and exported to ONNX. The files stay.
    """
    if folder.exists() and any(folder.iterdir()) and not given(FORCE):
        raise OutputError(
            f"{folder} is not empty; give another folder, elastic-ir demo FOLDER, or write over the files of an "
            "earlier demo with --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        say(f"model.pt: a ResNet-{DEPTH} with random weights, {SPARSITY:.0%} of them pruned by a mask")
        make_ticket(Path("model.pt"))
        for number, (command, why) in enumerate(STEPS, start=1):
            say("", f"# {number} of {len(STEPS)}: {why}")
            say(bold=f"$ elastic-ir {command}")
            words = shlex.split(command)
            if words[0] in ("stretch", "squeeze", "export") and given(FORCE):
                words.append("--force")
            if silent():
                words.append("--quiet")
            elastic_ir.main(words, prog_name="elastic-ir", standalone_mode=False)
    say("", f"The files are in {folder}; elastic-ir --help lists the commands.")
    say_result({"folder": str(folder), **written_data(sorted(folder.iterdir()))})
