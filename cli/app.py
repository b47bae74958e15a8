"""The program: a group whose commands are imported when they are asked for, and where errors become one line.

Only click is imported here, so that ``elastic-ir --help`` and shell completion answer at once. The one-line helps
therefore stand in a table of their own; a test compares it with the commands' own. The flags of a whole run are here
too: they hold wherever something is printed or written, and no function passes them on.
"""

from __future__ import annotations

import errno
import importlib
import re
from collections.abc import Callable
from typing import Any

import click

from elastic_ir import __version__
from elastic_ir.errors import printable

#: Command name -> one-line help. The module of a command is :data:`MODULES`, or else has its name.
COMMANDS = {
    "inspect": "Show stages, units, depth, parameters and sparsity.",
    "stretch": "Make a network deeper by cloning its units.",
    "squeeze": "Make a network shallower by deleting units.",
    "undo": "Take back a change of depth, by its record.",
    "follow": "Carry an adapter of PEFT over to a changed base.",
    "apply": "Run a pipeline of passes.",
    "report": "Write a page that shows a network, or two side by side.",
    "export": "Write a network as ONNX or as Python source.",
    "verify": "Compare a checkpoint with its origins.",
    "diff": "Compare two networks: stages, names, tensors.",
    "passes": "List the passes and their options.",
    "lottery": "Find winning tickets and compare them in studies.",
    "demo": "Make a sparse network, and show what can be done with it.",
    "completion": "Have the shell complete names by the Tab key.",
    "doctor": "Show versions, extras and devices, and what does not fit.",
}
MODULES = {"stretch": "resize", "squeeze": "resize", "passes": "apply"}

DEBUG = "elastic_ir.debug"  #: key in ``Context.meta``, set where ``--debug`` was given
#: key in ``Context.meta``, set where the same command continues what was interrupted
GO_ON = "elastic_ir.go_on"
JSON = "elastic_ir.json"  #: key in ``Context.meta``, set where ``--json`` was given
QUIET = "elastic_ir.quiet"  #: as these, for ``--quiet``
VERBOSE = "elastic_ir.verbose"
FORCE = "elastic_ir.force"  #: key in ``Context.meta``, set where ``--force`` was given

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

EPILOG = """\
\b
Examples:
  elastic-ir inspect model.pt
  elastic-ir stretch model.pt --to-depth 56
  elastic-ir squeeze resnet50.pt --to-stages 2,2,2,2 -o small.pt
  elastic-ir stretch Qwen/Qwen3-0.6B --to-units 36

SOURCE is a file (.pt .pth .safetensors .gguf .ticket .onnx), a Hugging Face model folder, a model of the hub
(ORG/NAME, ORG/NAME@REVISION, hf:ORG/NAME), timm:NAME, torchvision:NAME or package.module:factory. The last three are
networks with fresh weights, good for --arch and --like, or the library's trained ones with --pretrained. Every command
has a --help of its own with examples.

\b
Completion by the Tab key, for bash, zsh and fish:
  elastic-ir completion --install
"""


def given(key: str) -> bool:
    """Whether a flag was given to the command that runs; outside of any command none was."""
    context = click.get_current_context(silent=True)
    return context is not None and key in context.meta


def _flag(key: str, *names: str, text: str) -> Decorator:
    def note(context: click.Context, _param: click.Parameter, value: bool) -> None:
        if value:
            context.meta[key] = True

    return click.option(*names, is_flag=True, expose_value=False, is_eager=True, callback=note, help=text)


def _be_verbose(context: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        import logging

        context.meta[VERBOSE] = True
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


_RUN_FLAGS = (
    _flag(JSON, "--json", text="Print the result as one JSON object, for programs."),
    _flag(QUIET, "-q", "--quiet", text="Print nothing but errors, and the object of --json."),
    click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, is_eager=True, callback=_be_verbose,
        help="Show how long each step took, and what the libraries in use log.",
    ),
    _flag(DEBUG, "--debug", text="Show the traceback of an error in place of one line."),
)  # fmt: skip


def run_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags that every command has."""
    for add in reversed(_RUN_FLAGS):
        command = add(command)
    return command


FORCE_OPTION = _flag(
    FORCE, "--force",
    text="Write over what is there already: a file, or a model folder, which is replaced when the new one is whole.",
)  # fmt: skip


class Program(click.Group):
    """A group that lists its commands from a table, and imports one only to run it or to show its help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, line in COMMANDS.items():
            self.add_command(click.Command(name, short_help=line))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table, which is the order in which a newcomer needs them."""
        return list(COMMANDS)

    def load(self, name: str) -> click.Command:
        """The command itself, from its module."""
        module = importlib.import_module(f"elastic_ir.cli.{MODULES.get(name, name)}")
        command: click.Command = getattr(module, name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, with the command itself in the place of its line in the list."""
        name, command, rest = super().resolve_command(ctx, args)
        if "--json" in rest:  # known before a wrong option ends the parsing
            ctx.meta[JSON] = True
        return name, self.load(name) if name in COMMANDS else command, rest

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong becomes one line and an exit code, unless ``--debug`` was given."""
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            # what was typed may be the name of a file; click means nobody else to change it
            error.message = printable(error.message)  # type: ignore[misc]
            _tell_programs(error.message)
            raise  # a usage error (2)
        except (click.exceptions.Exit, click.Abort):
            raise  # click's own way of ending: --help (0)
        except KeyboardInterrupt:
            hint = "; run the same command to go on" if ctx.meta.get(GO_ON) else ""
            _say(f"interrupted{hint}")
            _tell_programs("interrupted")
            ctx.exit(130)
        except Exception as error:
            if ctx.meta.get(DEBUG) or getattr(error, "errno", None) == errno.EPIPE:
                raise  # click itself ends quietly where a reader such as `head` has gone
            text = describe(error)
            if MODULES.get(ctx.invoked_subcommand or "") == "resize":  # elsewhere they are options of a pass
                text = re.sub(r"(?<![\w.'\"-])to_(depth|stages|units)(?![\w.'\"])", r"--to-\1", text)
            _say(f"error: {text}")
            _tell_programs(text)
            ctx.exit(1)


def _tell_programs(error: str) -> None:
    """With ``--json``, an object in place of the result."""
    if given(JSON):
        import json

        click.echo(json.dumps({"error": printable(error)}))


def _say(line: str) -> None:
    click.echo(printable(line), err=True)


def describe(error: Exception) -> str:
    """The line that a user reads: our own messages as they are, the system's with the file in front, and the pass."""
    from elastic_ir.errors import ElasticError, noted_pass

    head = noted_pass(error)
    if isinstance(error, ElasticError):
        return f"{head}{error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{head}{error.filename}: {error.strerror}" if error.filename else f"{head}{error.strerror}"
    text = " ".join(str(error).split()) or "no message"
    return f"{head}unexpected {type(error).__name__}: {text} (run again with --debug for the traceback)"


@click.group(cls=Program, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="elastic-ir")
def elastic_ir() -> None:
    """Change the depth of a trained or sparse network.

    ElasticIR finds by itself which parts of a network repeat, and makes it deeper or shallower by cloning or
    deleting them together with their weights and sparse masks. Start with "elastic-ir inspect SOURCE".
    """
