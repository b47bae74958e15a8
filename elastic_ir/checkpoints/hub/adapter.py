"""An adapter of the hub: its settings, its tensors and what lies beside them, whole in the hub's cache."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from elastic_ir.checkpoints.hub.refusals import no_adapter, not_cached
from elastic_ir.checkpoints.hub.repository import listed
from elastic_ir.checkpoints.side_files import is_side_file
from elastic_ir.errors import SourceError
from elastic_ir.formats.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_weights
from elastic_ir.formats.hub_cache import HubName, is_offline, snapshot_of


def adapter_of_hub(name: HubName) -> Path:
    """The folder in the cache with an adapter: the cached one, else the hub's; beside it what can be had.

    Raises SourceError, one line: what keeps a model from being fetched, or a repository without an adapter.
    """
    folder = snapshot_of(name)
    if folder is not None and adapter_weights(folder) is not None:
        if not is_offline():
            with contextlib.suppress(SourceError):  # the adapter itself is here
                repository = listed(replace(name, revision=folder.name))
                repository.fetch(filter(is_side_file, repository.files or ()))
        return folder
    if is_offline():
        raise SourceError(not_cached(name, folder))
    repository = listed(name)
    files = repository.files or {}
    weights = next((file for file in ADAPTER_WEIGHTS if file in files), None)
    if ADAPTER_CONFIG not in files or weights is None:
        raise SourceError(no_adapter(name, files))
    repository.begin([ADAPTER_CONFIG])
    repository.fetch([weights, *filter(is_side_file, files)])
    return repository.folder
