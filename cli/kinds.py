"""What kind of source a word of the command line is, as far as it shows that, and having here what is read whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_ir.cli import tables
from elastic_ir.formats import GGUF

if TYPE_CHECKING:
    from elastic_ir.formats import Format
    from elastic_ir.formats.hub_cache import HubName


def hub_model(source: str) -> HubName | None:
    """The model on a hub that a source names; None for a path and for all others."""
    if os.path.exists(source):
        return None
    from elastic_ir.frontends.elsewhere import on_hub

    return on_hub(source)


def is_hub_folder(source: str) -> bool:
    """Whether a source is a model on a hub that has the form of a folder."""
    model = hub_model(source)
    return model is not None and not model.is_gguf


def is_gguf(source: str) -> bool:
    """Whether a source is a GGUF file, here, behind a URL or on a hub, as far as its name shows it."""
    if GGUF.names(as_path(source)):
        return True
    model = hub_model(source) if "/" in source or ":" in source else None
    return model is not None and model.is_gguf


def is_remote(name: str) -> bool:
    """Whether the name of a source or result is a URL, without the module that knows more of them."""
    return "://" in name and not os.path.exists(name)


def here(name: str) -> str:
    """The path that a URL of this machine's own files stands for; other names as they are."""
    scheme, _, path = name.partition("://")
    return path if scheme.lower() in ("file", "local") and path else name


def behind_url(url: str) -> Format | None:
    """The format of a file behind a URL, by its name; None for a folder."""
    from elastic_ir.frontends.elsewhere import form_behind

    return form_behind(url)


def as_path(source: str) -> Path:
    """A source as a path: of a URL that of the file, as it would be called here."""
    if not is_remote(source):
        return Path(source)
    from elastic_ir.formats.remote import path_of

    return Path(path_of(source).name)


def fetch(source: str, variant: str | None = None, component: str | None = None) -> None:
    """Have here what is read whole of a model of a hub, or behind a URL, with a bar on a terminal."""
    if os.path.exists(source):
        return
    from elastic_ir.frontends.elsewhere import fetched_file, needed_whole

    name = hub_model(source)
    if name is None and is_remote(source) and needed_whole(source):
        with tables.transfer(f"fetching {as_path(source)}") as tell:
            fetched_file(source, tell)
    if name is not None and not name.is_gguf:
        from elastic_ir.checkpoints.hub.model import snapshot

        with tables.transfer(f"fetching {source}") as tell:
            snapshot(name, tell=tell, variant=variant, component=component)


def hub_label(source: str) -> str:
    """``ORG/NAME@COMMIT`` of a source in a hub's cache, by its name or by its path; nothing for other sources."""
    if os.path.exists(source) and "models--" not in os.path.abspath(source) + os.path.realpath(source):
        return ""
    from elastic_ir.formats.model_folder import cached_model, label_of

    path: Path | None = Path(source)
    if not os.path.exists(source):
        from elastic_ir.formats.hub_cache import hub_name, snapshot_of

        name = hub_name(source) if "/" in source or ":" in source else None
        path = snapshot_of(name) if name is not None else None
        path = path / name.inner if path is not None and name is not None else None
    return label_of(path) if path is not None and cached_model(path) else ""
