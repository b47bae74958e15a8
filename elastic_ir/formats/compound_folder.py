"""Folders of several networks: pipelines of diffusers, and models of sentence-transformers. Which parts they have.

``model_index.json`` names the folders of a pipeline, ``modules.json`` those of the modules that run one after the
other, of which one may lie in the folder itself; ``router_config.json`` those among which a module chooses. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from elastic_ir.errors import SourceError
from elastic_ir.formats.files import read_json
from elastic_ir.formats.model_folder import MODULES, PIPELINE, RECORD, ROUTER, is_checkpoint, layout_of
from elastic_ir.formats.training_folder import refuse_folders_inside

#: The files that state which parts a folder has.
STATEMENTS = (PIPELINE, MODULES, ROUTER)
#: Entries of a configuration that name the class of a network with layers; modules behind one (Dense) have none.
_CLASS = {"model_type", "architectures", "_class_name", "architecture", "model_cfg"}


def parts_of(folder: Path) -> list[str]:
    """The folders of a compound folder's parts, by their paths inside it; none where it is no compound folder.

    Only those that are there. Raises SourceError as :func:`named_parts` does.
    """
    return [name for name in named_parts(folder) if (folder / name).is_dir()]


def named_parts(folder: Path) -> list[str]:
    """The parts that a folder's statements name, there or not.

    Raises SourceError, one line, for a statement that is damaged or leads out of the folder.
    """
    named: list[str] = []
    for file, names in ((PIPELINE, _of_pipeline), (MODULES, _of_modules), (ROUTER, _of_router)):
        path = folder / file
        if not path.is_file():
            continue
        try:
            found = list(names(read_json(path)))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise SourceError(
                f"{path} is damaged: it does not list the parts of its folder ({error})"
            ) from error
        for name in found:
            if any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
                raise SourceError(f"{path} names the part {name!r}; parts lie inside its own folder")
        named += found
    return list(dict.fromkeys(named))


def networks_of(folder: Path) -> list[str]:
    """The parts that are networks, with weights and a configuration that names a class."""
    return [name for name in parts_of(folder) if _is_network(folder / name)]


def network_in(folder: Path, component: str | None = None) -> Path:
    """The folder of the network that is meant: of the component, the folder itself, or the only network in it.

    Without ``component``, of several networks the one that a record of ElasticIR lies beside. Raises SourceError where
    there is no such component, or which one is meant is not known.
    """
    if component is None and (is_checkpoint(folder) or not folder.is_dir()):
        return folder
    networks = networks_of(folder)
    if component is not None:
        name = component.strip("/")
        if name in networks:
            return folder / name
        refuse_folders_inside(folder)
        has = f"its networks are {', '.join(networks)}" if networks else "it has none; leave out --component"
        raise SourceError(f"{folder} has no component {component!r}; {has}")
    if len(networks) < 2:
        return folder / networks[0] if networks else folder
    changed = [name for name in networks if (folder / name / RECORD).is_file()]
    if len(changed) == 1:
        return folder / changed[0]
    raise SourceError(
        f"{folder} holds several networks; state which is meant, by --component {networks[0]} (component=): "
        + ", ".join(networks)
    )


def _is_network(folder: Path) -> bool:
    return is_checkpoint(folder) and names_class(folder / layout_of(folder).config)


def names_class(config: Path) -> bool:
    """Whether a configuration names a class of networks with layers."""
    try:
        found = read_json(config)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool(_CLASS & found.keys())


def _of_pipeline(table: dict[str, Any]) -> Iterable[str]:
    """``"unet": ["diffusers", "UNet2DConditionModel"]``; what a pipeline does without is ``[null, null]``."""
    for name, value in table.items():
        if isinstance(value, list) and len(value) == 2 and all(isinstance(one, str) for one in value):
            yield name


def _of_modules(modules: list[dict[str, Any]]) -> Iterable[str]:
    """``{"path": "1_Pooling", ...}``; the path of what lies in the folder itself is empty."""
    return [path for path in (str(module["path"]).strip("/") for module in modules) if path]


def _of_router(table: dict[str, Any]) -> Iterable[str]:
    """``{"types": {"query_0_Transformer": ...}, ...}``."""
    return [str(name) for name in table.get("types", {})]
