"""Small models of transformers' types, and which of their numbered lists follow which count in the configuration.

Nothing here knows ElasticIR, or a model type: a default configuration is shrunk entry by entry, whatever it belongs to,
and what a count counts is what grows when the model is built again (on the meta device) with one more.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
import transformers
from torch import nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto

LAYERS = 4
LARGEST = 150_000_000  #: parameters; what is larger was not shrunk
MOST_MORE = 8  #: by so much a count is raised to see what grows
_GROUPED = r"num_key_value_heads|(.*_)?(num_)?(key_value|kv)_heads"
#: What an entry of the configuration becomes, by its name, where it is larger.
SMALL = [
    (re.compile(pattern), most)
    for pattern, most in (
        (_GROUPED, 2),
        (r"(.*_)?(num_|n_|n)?(attention_)?heads?|.*_attention_heads|nhead", 4),
        (r"head_dim|.*_head_dim|d_kv|kv_channels|attention_head_size", 8),
        (r"(num_)?experts_per_tok(en)?|(.*_)?top_?k", 2),
        (r"(n|num)_((local|routed|shared)_)?experts|.*num_experts", 4),
        (r"intermediate_size|.*intermediate_size|(.*_)?ffn_dim|d_ff|d_inner|n_inner|(.*_)?mlp_dim", 48),
        (r"dim_feedforward|feed_?forward_.*", 48),
        (
            r"hidden_size|d_model|n_embd|dim|width|.*hidden_size|.*_dim|.*embed(ding)?_size|hidden_channels",
            32,
        ),
        (r"(.*_)?vocab_size.*", 120),
        (r".*shared_layers", 1),
        (r"depth|.*num_hidden_layers|n_layers?|.*_layers|.*_depth|num_.*blocks|n_blocks", LAYERS),
        (r"image_size|img_size|input_size", 32),
        (r"patch_size", 8),
        (r"max_.*(positions|embeddings|length)|n_positions", 64),
        (r"num_mel_bins", 16),
        (r"prediction_length", 8),
        (r"sliding_window|.*window.*", 4),
        (r".*rank", 8),
    )
]
#: Entries that count layers, of whatever part of the network.
COUNTS = re.compile(r".*(layer|block|depth).*")
_PER_LAYER = re.compile(r".*(layer|block|attention|mlp|pattern).*")
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

#: What a configuration derives from its number of layers, and keeps as text of the number that it had.
_DERIVED = ("stage_names", "out_features", "_out_features", "out_indices", "_out_indices")

#: Where an entry of a configuration stands: names of sub-configurations, the entry's, a place in its list.
Place: TypeAlias = tuple[str | int, ...]
#: A numbered list, as a checkpoint names it: what stands before the number.
Head: TypeAlias = str


def small_configs(kind: str) -> Iterator[Any]:
    """Small configurations of a model type, the smallest first; the class derives again what follows from others."""
    made = transformers.CONFIG_MAPPING[kind]
    layers = [rule for rule in SMALL if "layer" in rule[0].pattern]
    few = [rule for rule in SMALL if rule[0].pattern != _GROUPED]
    large = [rule for rule in SMALL if rule in layers or rule[1] > 100]
    for rules, whole in ((SMALL, False), (few, False), (large, False), (layers, False), (SMALL, True)):
        with contextlib.suppress(Exception):  # a class whose own defaults do not fit together
            shrunk = made()
            _shrink(shrunk, rules, whole)
            plain = shrunk.to_dict()
            _underive(plain)
            with contextlib.suppress(
                Exception
            ):  # one that checks what it is given, and does not like its own
                yield made.from_dict(plain)
            yield shrunk


def _underive(plain: dict[str, Any]) -> None:
    """Take out what a class derives from the number of layers, and what layers have that are gone."""
    for name in _DERIVED:
        plain.pop(name, None)
    for name, value in plain.items():
        if _by_layer(value):
            plain[name] = _first_layers(value)
        elif isinstance(value, dict):
            _underive(value)


def _by_layer(value: Any) -> bool:
    """Whether a value is a table with layers' numbers as keys."""
    return isinstance(value, dict) and bool(value) and all(re.fullmatch("[0-9]+", str(key)) for key in value)


def _first_layers(table: dict[Any, Any]) -> dict[Any, Any]:
    return {key: one for key, one in table.items() if int(key) < LAYERS}


def _shrink(config: Any, rules: list[tuple[re.Pattern[str], int]], whole: bool) -> None:
    """Shrink a configuration where it stands; ``whole`` gives entries that are left open a value too."""
    counted = set()
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            _shrink(value, rules, whole)
        elif name.startswith("_"):
            continue
        elif name in _TOKENS and isinstance(value or 0, int):
            _set(config, name, min(int(value or 0), _TOKENS[name]))
        elif type(value) is int or (value is None and whole):
            most = next((most for pattern, most in rules if pattern.fullmatch(name)), value)
            if value is not None and most == LAYERS < value and COUNTS.fullmatch(name):
                counted.add(value)
            _set(config, name, most if value is None or most is None else min(value, most))
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and not name.startswith("_") and len(value) > LAYERS:
            if _PER_LAYER.fullmatch(name) or len(value) in counted:
                _set(config, name, value[:LAYERS])
        elif _by_layer(value):
            _set(config, name, _first_layers(value))


def _set(config: Any, name: str, value: Any) -> None:
    with contextlib.suppress(Exception):  # an entry that is computed from others stays as it is
        setattr(config, name, value)


def small_model(kind: str) -> nn.Module:
    """A small model of a type, with random weights; the last error where none is built."""
    last: Exception = ValueError("no configuration")
    for config in small_configs(kind):
        try:
            type(config).from_dict(config.to_dict())  # as it will be read, with the checks of its class
            size = sum(tensor.numel() for tensor in on_meta(config).parameters())
            if size > LARGEST:
                raise ValueError(f"{size / 1e6:.0f} million parameters at the smallest")
            torch.manual_seed(0)
            model: nn.Module = class_of(config.__class__)._from_config(config).eval()
            return model
        except Exception as error:  # whatever a class raises: the next configuration may do
            last = error
    raise last


@functools.cache
def class_of(config: Any) -> Any:
    """The class that a configuration is of: that of ``AutoModel``, of another automatic class, or in its module."""
    automatic = [modeling_auto.MODEL_MAPPING]
    automatic += [
        value
        for name, value in sorted(vars(modeling_auto).items())
        if re.fullmatch("MODEL_FOR_.*_MAPPING", name)
    ]
    for mapping in automatic:
        if config in mapping:
            found = mapping[config]
            return found[0] if isinstance(found, tuple) else found
    module = importlib.import_module(config.__module__.replace(".configuration_", ".modeling_"))
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, transformers.PreTrainedModel)
        and value.__dict__.get("config_class", value.__annotations__.get("config"))
        in (config, config.__name__)
        and not value.__name__.endswith("PreTrainedModel")
    ]
    if not own:
        raise ValueError("no class has such a configuration")
    return own[-1]  # those before are its parts


def on_meta(config: Any) -> nn.Module:
    """The model of a configuration without weights."""
    with torch.device("meta"), no_init_weights():
        model: nn.Module = class_of(config.__class__)._from_config(copy.deepcopy(config))
    return model


def stored(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's tensors as ``save_pretrained`` would write them, tied ones included."""
    state = dict(model.state_dict())
    return {
        name: tuple(tensor.shape)
        for name, tensor in revert_weight_conversion(model, state).items()  # type: ignore[arg-type]
    }


def numbered(shapes: Mapping[str, tuple[int, ...]]) -> dict[Head, dict[int, dict[str, tuple[int, ...]]]]:
    """All numbered lists: for each number the names inside, with their shapes."""
    found: dict[Head, dict[int, dict[str, tuple[int, ...]]]] = defaultdict(lambda: defaultdict(dict))
    for name, shape in shapes.items():
        for match in re.finditer(r"[0-9]+(?=\.|$)", name):
            found[name[: match.start()]][int(match[0])][name[match.end() :]] = shape
    return found


@dataclass
class Count:
    """An entry of a configuration that counts layers: the lists that grow with it, and what is built with more."""

    place: Place
    default: int  #: what the default configuration has
    grown: dict[Head, int] = field(default_factory=dict)  #: by how much each list grew at the smallest step
    before: dict[Head, int] = field(default_factory=dict)
    step: int = 1

    @property
    def name(self) -> str:
        return ".".join(map(str, self.place))


def table(config: Any, place: Place) -> Any:
    """What holds the entry: a configuration, or a list in one."""
    for key in place[:-1]:
        config = getattr(config, str(key))
    return config


def value_at(config: Any, place: Place) -> Any:
    """The entry at a place; None where there is none."""
    try:
        held, last = table(config, place), place[-1]
        return held[last] if isinstance(last, int) else getattr(held, last)
    except (AttributeError, IndexError, KeyError, TypeError):
        return None


def places(config: Any, before: Place = ()) -> Iterator[Place]:
    """The entries of a configuration, and of those inside it, that may count layers."""
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            yield from places(value, (*before, name))
        elif name.startswith("_") or not COUNTS.fullmatch(name):
            continue
        elif type(value) is int and 0 < value <= 64:
            yield (*before, name)
        elif isinstance(value, list) and value and all(type(one) is int and 0 < one <= 64 for one in value):
            yield from ((*before, name, at) for at in range(len(value)))


def changed(config: Any, place: Place, by: int) -> Iterator[Any]:
    """Configurations with an entry raised; its lists with an entry a layer go on, or stay as they are."""
    old = value_at(config, place)
    for carry_on in (True, False):
        made = copy.deepcopy(config)
        held = table(made, place)
        if isinstance(held, list):
            held[int(place[-1])] = old + by
        else:
            if carry_on:
                for name, value in list(vars(held).items()):
                    if isinstance(value, list) and len(value) == old and _PER_LAYER.fullmatch(name):
                        _set(held, name, longer(value, by))
            _set(held, str(place[-1]), old + by)
        yield made
        if isinstance(held, list):
            return


def longer(values: list[Any], by: int) -> list[Any]:
    """A list of layers' kinds that goes on with its period, or with its last entry; shorter where ``by`` is below 0."""
    if by < 0:
        return values[:by]
    count = len(values)
    period = next((n for n in range(1, count) if values[n:] == values[:-n]), count)
    period = period if 2 * period <= count else 1
    made = list(values)
    for _ in range(by):
        made.append(made[-period])
    return made


def deeper(config: Any, place: Place, by: int) -> nn.Module | None:
    """The model with an entry changed, on the meta device; None where the class does not build it."""
    for made in changed(config, place, by):
        try:
            return on_meta(made)
        except Exception:  # a step that the class does not take
            continue
    return None


def counts(config: Any, default: Any) -> list[Count]:
    """The entries that a list of layers follows, each with the lists that grew by its smallest possible step.

    A list inside the blocks of a list that grows is a part of those (experts), and not a stack of its own.
    """
    old = {head: set(layers) for head, layers in numbered(stored(on_meta(config))).items()}
    found = []
    for place in places(config):
        for step in range(1, MOST_MORE + 1):
            model = deeper(config, place, step)
            if model is None:
                continue
            new = {head: set(layers) for head, layers in numbered(stored(model)).items()}
            grown = {h: len(new[h] - layers) for h, layers in old.items() if new.get(h, set()) > layers}
            inside = {h for h in grown if any(re.match(re.escape(o) + r"[0-9]+\.", h) for o in grown)}
            grown = {h: more for h, more in grown.items() if h not in inside}
            if grown:
                of_default = value_at(default, place)
                of_default = of_default if type(of_default) is int else value_at(config, place)
                found.append(Count(place, of_default, grown, {h: len(old[h]) for h in grown}, step))
            break
    return found
