"""What every library of classes has to answer about a folder's configuration, and the answers that most share.

A library is recognised by its configuration alone. Its network is built under a guard, see
:mod:`elastic_ir.safety.registered`; code that lies beside a configuration is never looked at. No torch at import.
"""

from __future__ import annotations

import abc
import importlib.util
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from elastic_ir.errors import SourceError
from elastic_ir.extras import install, missing
from elastic_ir.formats.model_folder import CONFIG

if TYPE_CHECKING:
    import torch

Config = Mapping[str, Any]
Shape = Sequence[int]
#: What loading reports: ``missing`` and ``unexpected`` names, in ``silent`` those of both that the library does not
#: report; ``shapes`` with name, held and expected shape; ``failed`` what could not be put together.
Report = dict[str, Any]


class Library(abc.ABC):
    """One library: what its configurations look like, and how it builds and loads."""

    name: ClassVar[str]  #: as it is imported, and as people are told
    extra: ClassVar[str]  #: of ElasticIR, which makes it available
    imports: ClassVar[str]  #: the module that has to be imported before a network is built
    code: ClassVar[str]  #: what the names of modules begin with that define its networks
    count: ClassVar[str]  #: an entry that may count layers, as an example
    file: ClassVar[str] = CONFIG  #: what its configurations are called
    sharded: ClassVar[bool] = True  #: whether it loads weights from several files

    @abc.abstractmethod
    def recognises(self, config: Config) -> bool:
        """Whether a configuration is one of this library's, as far as its entries show."""

    @abc.abstractmethod
    def network(self, config: Config, where: str, device: str = "meta") -> Any:
        """The network that a configuration describes; on the meta device, by default, and then without values.

        Raises SourceError where the library has no such class, is not there, or does not take the configuration.
        """

    def described(self, config: Config, where: str, device: str = "meta") -> Any:
        """The same with everything that the configuration has, dtypes too, and of no class but the one it names."""
        return self.network(config, where, device)

    def loading(self, module: Any, tensors: Mapping[str, Shape]) -> Report:
        """What loading tensors of these names and shapes into a network of the meta device would report.

        Here as :meth:`torch.nn.Module.load_state_dict` does, but that of tied names one is enough.
        """
        held = {name: tuple(shape) for name, shape in tensors.items()}
        own = module.state_dict(keep_vars=True)
        wanted = {name: tuple(tensor.shape) for name, tensor in own.items()}
        there = {id(tensor) for name, tensor in own.items() if name in held}
        missing = {name for name, tensor in own.items() if id(tensor) not in there}
        unexpected = held.keys() - wanted.keys()
        told = not_matched(unexpected, self.ignored(module))
        return {
            "missing": sorted(missing), "unexpected": sorted(told),
            "silent": {"missing": [], "unexpected": sorted(unexpected - told)},
            "shapes": sorted((name, held[name], wanted[name]) for name in held.keys() & wanted.keys()
                             if held[name] != wanted[name]),
            "failed": [],
        }  # fmt: skip

    def ignored(self, module: Any) -> Iterable[str]:
        """Regular expressions of names that a network may be given, and leaves out without a word."""
        return ()

    def stated(self, config: Config, module: Any, where: str) -> dict[str, Any]:
        """A configuration with entries that it leaves to the class, as the network that it built was given them."""
        return dict(config)

    def filled(self, config: Config, state: Mapping[str, torch.Tensor], where: str) -> torch.nn.Module:
        """A network with a checkpoint's tensors; SourceError as above, and where these are not the network's."""
        self._refuse_others(
            self.loading(self.network(config, where), {n: t.shape for n, t in state.items()}), where
        )
        module: torch.nn.Module = self.network(config, where, device="cpu")
        module.load_state_dict(state, strict=False)  # names that are tied or left out are all that differs
        return module

    def _refuse_others(self, report: Report, where: str) -> None:
        for what, names in (
            ("lacks", report["missing"]),
            ("holds beside it", report["unexpected"]),
            ("holds in another shape", [name for name, _, _ in report["shapes"]]),
        ):
            if names:
                raise SourceError(
                    f"{where} describes a network with tensors other than the folder's, which {what} "
                    f"{', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                )

    def missing(self) -> str | None:
        """What to install before a network can be built, in words; None where everything is there."""
        for name in dict.fromkeys(("torch", self.imports.partition(".")[0])):
            if importlib.util.find_spec(name) is None:
                return str(missing(name, "building it", install(self.extra)))
        return None


def not_matched(names: Iterable[str], patterns: Iterable[str] | None) -> set[str]:
    """The names in which none of some regular expressions is found."""
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())}
