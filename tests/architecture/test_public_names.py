"""The public API: names and parameters may be added; they are removed only in a new version."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import elastic_ir as eir
from elastic_ir import errors

ROOT = Path(__file__).parents[2]

FUNCTIONS: dict[str, tuple[str, ...]] = {
    "trace": ("model", "example_inputs", "example_kwargs", "masks"),
    "load": ("source", "arch", "masks"),
    "stretch": ("graph", "to_depth", "to_stages", "to_units", "like", "plan", "order", "replicate"),
    "squeeze": ("graph", "to_depth", "to_stages", "to_units", "like", "plan", "drop"),
    "report": ("network", "against", "out"),
    "save": ("graph", "path"),
    "verify_checkpoint": ("folder", "against"),
}
DEFAULTS = {("stretch", "order"): "append", ("stretch", "replicate"): None, ("squeeze", "drop"): "tail"}
PROPERTIES = ("stages", "depth")
METHODS: dict[str, tuple[str, ...]] = {
    "to_module": (),
    "state_dict": (),
    "masks": (),
    "report": ("against",),
    "lineage": (),
    "remap_optimizer_state": ("state", "names"),
}
ERRORS = (
    "ElasticError",
    "SourceError",
    "SourceChangedError",
    "UntrustedError",
    "BlockedError",
    "TraceError",
    "StructureError",
    "PlanError",
    "MaskError",
    "VerifyError",
    "EmitError",
    "OutputError",
)
COMMANDS = ("inspect", "stretch", "squeeze", "verify", "diff", "passes", "report")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    """The graph or source comes first; parameters added later must have a default."""
    parameters = inspect.signature(getattr(eir, name)).parameters
    assert next(iter(parameters)) == FUNCTIONS[name][0]
    assert set(FUNCTIONS[name]) <= set(parameters)
    added = set(parameters) - set(FUNCTIONS[name])
    required = [p for p in added if parameters[p].default is inspect.Parameter.empty]
    assert not required, f"{name} requires {required}, which existing callers do not pass"


@pytest.mark.parametrize(("function", "parameter"), DEFAULTS)
def test_default(function: str, parameter: str) -> None:
    found = inspect.signature(getattr(eir, function)).parameters[parameter].default
    assert found == DEFAULTS[function, parameter]


@pytest.mark.parametrize("name", PROPERTIES)
def test_property_of_a_graph(name: str) -> None:
    assert isinstance(inspect.getattr_static(eir.Graph, name), property)


@pytest.mark.parametrize("name", METHODS)
def test_method_of_a_graph(name: str) -> None:
    parameters = inspect.signature(getattr(eir.Graph, name)).parameters
    assert tuple(parameters)[: 1 + len(METHODS[name])] == ("self", *METHODS[name])
    for extra in list(parameters.values())[1 + len(METHODS[name]) :]:
        assert extra.default is not inspect.Parameter.empty


def test_emission_can_be_had_unmasked() -> None:
    for name in ("to_module", "state_dict"):
        assert inspect.signature(getattr(eir.Graph, name)).parameters["masked"].default is True


@pytest.mark.parametrize("name", ["name", "transition", "entry", "units", "__len__"])
def test_attribute_of_a_stage(name: str) -> None:
    assert name in dir(eir.Stage) or name in eir.Stage.__annotations__


@pytest.mark.parametrize("name", ERRORS)
def test_error(name: str) -> None:
    error = getattr(eir, name)
    assert error is getattr(errors, name)
    assert issubclass(error, errors.ElasticError)


def test_all_errors_are_public() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == set(ERRORS)


def test_what_is_declared_public_is_there() -> None:
    assert set(eir.__all__) >= {*FUNCTIONS, *ERRORS, "Graph", "Stage", "__version__"}
    for name in eir.__all__:
        assert getattr(eir, name) is not None
    assert set(dir(eir)) >= set(eir.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="strech"):
        _ = eir.strech


def test_version_is_the_distribution_s() -> None:
    assert eir.__version__ == version("elastic-ir")


def test_commands() -> None:
    code = "from elastic_ir.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for command in COMMANDS:
        assert f" {command} " in result.stdout
