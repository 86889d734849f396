"""Registers custom models, and loads the Python files that do so."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from psvit_core.custom.check import accept_groups, random_images
from psvit_core.custom.model import CustomModel, run_network
from psvit_core.custom.network import load_weights_, prepare_network
from psvit_core.custom.structure import Structure
from psvit_core.custom.trace import trace
from psvit_core.custom.users_code import one_line, users_code
from psvit_core.errors import ModelError, PsvitError
from psvit_core.files import is_file
from psvit_core.records import DIGITS_TRANSFORM, Transform
from psvit_core.storage.store import ENGINE_VERSION, Store, digest
from psvit_core.zoo.cards import (
    CUSTOM_FAMILY,
    ModelCard,
    list_models,
    model_card,
    register_card,
)
from psvit_core.zoo.checkpoint import weights_hash

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the default repr of an object
_CHECK_VERSION = 2  # raised when other groups are accepted, or refused for other reasons
_LIBRARIES = ("torch", "torchvision", "spikingjelly", "timm", "psvit_core")


@dataclass
class _PluginState:
    """Plugins of this process, and the store for checked structures."""

    store: Store | None = None
    loaded: dict[str, ModuleType] = field(default_factory=dict)


_state = _PluginState()


def register_model(
    name: str,
    build: Callable[[], nn.Module],
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    transform: Transform | None = None,
    T: int | None = None,
    data: str | None = None,
    title: str = "",
) -> None:
    """Register a spiking network under a name.

    Afterwards ``load_model(name)`` finds its channel groups and checks each. All functions and
    commands (with ``--plugin``) accept the name like that of any other model.

    Args:
        name: Letters, digits, ``_`` and ``-``; not the name of a built-in model. A custom model of
            the same name is replaced.
        build: Returns the network with its weights, the same at each call. In evaluation mode the
            network takes images (B, C, H, W), or sequences if ``T`` is given, and returns logits
            (B, num_classes) or (T, B, num_classes), which are averaged over T.
        input_shape: Image shape (channels, side, side).
        num_classes: Length of the logits.
        transform: Evaluation transform; its channels are those of ``input_shape``. The default
            resizes to ``input_shape`` and uses the mean and standard deviation of ImageNet, of the
            digits for grey images, and 0 and 1 for other numbers of channels (event frames).
        T: Repeat each image ``T`` times and pass sequences (T, B, C, H, W). None if the network
            takes images and repeats them itself, as many times as its attribute ``T`` says.
        data: Default of ``--data``: ``digits``, ``folder:DIR``, ...
        title: Name for display.

    Raises:
        ModelError: If the name is taken or invalid, the shape not square, or a number below 1.
    """
    arguments = _checked_arguments(name, input_shape, num_classes, T)
    card = ModelCard(
        name=name,
        title=title or name,
        family=CUSTOM_FAMILY,
        arguments=arguments,
        parameters=0,
        transform=_transform_for(name, transform, input_shape),
        data=data or "",
        paper="",
        licence="the user's",
        builder=CustomBuilder(name=name, build=build, arguments=arguments),
    )
    register_card(card)


def _checked_arguments(
    name: str, input_shape: tuple[int, int, int], num_classes: int, T: int | None
) -> dict[str, Any]:
    if not re.fullmatch(r"[\w-]+", name):
        raise ModelError(f"A model's name may contain letters, digits, _ and -; got {name!r}.")
    channels, height, width = input_shape
    if height != width or min(input_shape) < 1 or num_classes < 1 or (T is not None and T < 1):
        raise ModelError(
            f"{name}: input_shape must be (channels, side, side), and num_classes and T at least "
            f"1; got {input_shape}, {num_classes}, {T}."
        )
    return {
        "name": name,
        "in_channels": channels,
        "img_size_h": height,
        "img_size_w": width,
        "num_classes": num_classes,
        **({"T": T} if T else {}),
    }


def _transform_for(
    name: str, given: Transform | None, input_shape: tuple[int, int, int]
) -> Transform:
    """Return the transform for images of ``input_shape``; its own mean and std count if given.

    Raises:
        ModelError: If its mean or standard deviation is for another number of channels.
    """
    channels, side, _ = input_shape
    colour = Transform(resize=side, crop=side)
    chosen = dataclasses.replace(given or colour, channels=channels)
    if (chosen.mean, chosen.std) == (colour.mean, colour.std) and channels != len(colour.mean):
        grey = DIGITS_TRANSFORM
        mean, std = (
            (grey.mean, grey.std) if channels == 1 else ((0.0,) * channels, (1.0,) * channels)
        )
        return dataclasses.replace(chosen, mean=mean, std=std)
    if {len(chosen.mean), len(chosen.std)} - {1, channels}:
        raise ModelError(
            f"{name}: input_shape has {channels} channels, but the transform has mean "
            f"{chosen.mean} and std {chosen.std}. Give as many values as channels."
        )
    return chosen


@dataclass(frozen=True)
class CustomBuilder:
    """Builds a registered network; part of its card."""

    name: str
    build: Callable[[], nn.Module]
    arguments: Mapping[str, Any]

    def load(self, tensors: Mapping[str, Tensor] | None, image_size: int | None) -> CustomModel:
        """Load the model, and find and check its groups.

        Args:
            tensors: Weights of the network; None for those of ``build``.
            image_size: Must be the registered one, or None.

        Raises:
            ModelError: If the network cannot be built or run.
            CheckpointError: If ``tensors`` do not fit.
        """
        if image_size not in (None, self.arguments["img_size_h"]):
            raise ModelError(
                f"{self.name} is registered for images of {self.arguments['img_size_h']} px, not "
                f"{image_size}."
            )
        arguments = {**self.arguments, "structure": json.dumps(Structure().to_dict())}
        net = self._build()
        if tensors is not None:
            load_weights_(net, tensors, self.name)
        with users_code(f"{self.name} cannot be loaded"):
            empty = CustomModel(
                prepare_network(net, self.name), arguments, code=_code_digest(net, self.build)
            )
            x = random_images(empty, empty.dtype)
            with torch.no_grad():
                logits = empty.eval()(x)
            if bool(logits.isnan().any()):
                raise ModelError(
                    f"{self.name} returns NaN for random images, so nothing can be measured. Check "
                    "its weights and the variances of its BatchNorms."
                )
            if cached := _read_cached(empty):
                return cached
        with users_code(f"{self.name} cannot be traced"):
            run = functools.partial(run_network, T=self.arguments.get("T"))
            candidates = trace(net, x.float(), run)
        with users_code(f"{self.name} cannot be checked"):
            checked = accept_groups(empty, candidates)
        _write_cached(empty, checked)
        return checked

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the network by its own name.

        Raises:
            ModelError: If the network cannot be built, or its state cannot be read.
        """
        network = self._build()
        with users_code(f"{self.name} has no readable state"):
            return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    def rebuild(self, arguments: Mapping[str, Any], widths: Mapping[str, int]) -> CustomModel:
        """Return the empty model that a pruned file was written from, on the meta device.

        Args:
            arguments: Constructor arguments in the file's header.
            widths: Present widths in the file's header.

        Raises:
            ModelError: If the file's groups are not those of the registered network.
        """
        with torch.device("cpu"):
            net = self._build()
            stored = {key: arguments[key] for key in ("structure", "T") if key in arguments}
            merged = {**self.arguments, **stored}
            net = prepare_network(net, self.name)
            try:
                full = CustomModel(net, merged, code=_code_digest(net, self.build))
                return full.resized(widths)
            except Exception as error:  # of layers that are missing or have become others
                raise ModelError(
                    f"Its groups are not those of {self.name} as it is registered now, so the "
                    f"plugin has changed since the file was written ({one_line(error)}). Prune the "
                    "model again, or go back to the plugin as it was."
                ) from error

    def _build(self) -> nn.Module:
        with users_code(f"{self.name} cannot be built"):
            net = self.build()
            if not isinstance(net, nn.Module):
                raise ModelError(
                    f"The build function of {self.name} returns a {type(net).__name__}; it must "
                    "return a torch module."
                )
            functional.reset_net(net)
            return net.cpu().eval()


def _code_digest(net: nn.Module, build: Callable[[], nn.Module]) -> str:
    """Return a digest of the user's files that define the network, and of its parameters.

    A changed forward is another model, and so is another ``tau`` from a file that defines no
    module. Therefore the network's repr and all numbers in its modules' attributes are included.
    """
    modules = {type(module).__module__ for module in net.modules()}
    modules.add(getattr(build, "__module__", ""))
    total = hashlib.blake2b(digest_size=8)
    for name in sorted(modules):
        file = getattr(sys.modules.get(name), "__file__", None)
        if name.partition(".")[0] in _LIBRARIES or not file:
            continue
        total.update(Path(file).read_bytes())
    total.update(_ADDRESS.sub("", repr(net)).encode())
    for path, module in net.named_modules():
        numbers = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float))}
        total.update(f"{path}{sorted(numbers.items())}".encode())
    return total.hexdigest()


def _cache_key(empty: CustomModel) -> str:
    libraries = [version(name) for name in ("torch", "spikingjelly", "torch-pruning")]
    arguments = {k: v for k, v in empty.arguments.items() if k != "structure"}
    versions = [ENGINE_VERSION, Structure.version, _CHECK_VERSION]
    parts = [*versions, libraries, arguments, weights_hash(empty)]
    return "custom/" + digest(parts)


def _read_cached(empty: CustomModel) -> CustomModel | None:
    """Return the model with its stored groups, if the same weights and code passed the check."""
    stored = _state.store.get(_cache_key(empty)) if _state.store else None
    if stored is None:
        return None
    return empty.with_structure(Structure.from_dict(stored["structure"]), stored["refused"])


def _write_cached(empty: CustomModel, checked: CustomModel) -> None:
    if _state.store:
        result = {"structure": checked.structure.to_dict(), "refused": checked.refused}
        with _state.store.optional():
            _state.store.put(_cache_key(empty), result)


def load_plugin(plugin: str, store: Store | None = None) -> None:
    """Import the Python file or module that registers models, once per process.

    A plugin is the user's own code and runs without restrictions. Never take its name from
    untrusted input.

    Args:
        plugin: Path of a ``.py`` file, or the dotted name of a module.
        store: Cache for the groups that passed the check, used by all later loading in this
            process.

    Raises:
        ModelError: If the plugin is missing, fails, or registers no model.
    """
    _state.store = store or _state.store
    path = Path(plugin)
    is_path = path.suffix == ".py" or is_file(path)
    key = str(path.resolve()) if is_path else plugin
    if key in _state.loaded:
        return
    if is_path and not is_file(path):
        raise ModelError(f"There is no plugin file {plugin}. Check the path.")
    try:
        module = _import_file(Path(key)) if is_path else importlib.import_module(plugin)
    except PsvitError:
        raise
    except (Exception, SystemExit) as error:  # any error of the user's code
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (plugin == missing or plugin.startswith(f"{missing}.")):
            raise ModelError(
                f"There is no plugin {plugin!r}. Give a module that can be imported, or the path "
                "of a .py file."
            ) from error
        raise ModelError(f"Plugin {plugin} cannot be imported: {one_line(error)}") from error
    if not any(model_card(name).builder for name in list_models()):
        raise ModelError(
            f"Plugin {plugin} registers no model. It must call psvit_core.register_model(...)."
        )
    _state.loaded[key] = module


def _import_file(path: Path) -> ModuleType:
    """Import a file like Python runs a script: modules in its folder can be imported."""
    name = f"psvit_plugin_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
