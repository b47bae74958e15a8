"""Which library a configuration is of. No torch."""

from __future__ import annotations

from elastic_ir.checkpoints.libraries.library import Config, Library
from elastic_ir.checkpoints.libraries.of_diffusers import Diffusers
from elastic_ir.checkpoints.libraries.of_open_clip import OpenClip
from elastic_ir.checkpoints.libraries.of_timm import Timm
from elastic_ir.checkpoints.libraries.of_transformers import Transformers

#: transformers is the last: it is the one that a configuration without any mark of a library is taken for.
LIBRARIES: tuple[Library, ...] = (Diffusers(), OpenClip(), Timm(), Transformers())


def library_of(config: Config) -> Library:
    """The library that a configuration is of."""
    return next(library for library in LIBRARIES if library.recognises(config))
