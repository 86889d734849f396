"""Registering a model of the user's own, and loading the Python file that does."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from psvit_core.custom.check import accept, check_images
from psvit_core.custom.model import CustomModel, first_line, logits
from psvit_core.custom.structure import Structure
from psvit_core.custom.trace import trace
from psvit_core.errors import CheckpointError, ModelError, PsvitError
from psvit_core.records import DIGITS_TRANSFORM, Transform
from psvit_core.store import ENGINE_VERSION, Store, digest
from psvit_core.zoo.cards import ModelCard, list_models, model_card, register_card
from psvit_core.zoo.checkpoint import CUSTOM, weights_hash

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object without a text of its own
_LIBRARIES = ("torch", "torchvision", "spikingjelly", "timm", "psvit_core")


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
    """Register a spiking network of one's own under a name.

    After it, ``load_model(name)`` finds its channel groups and checks each; ``find_groups``,
    ``sweep``, ``apply_plan``, ``measure``, ``save_pruned`` and the command line (with
    ``--plugin``) take it as any other model.

    Args:
        name: Letters, digits, ``_`` and ``-``; not one of the zoo. An own one is replaced.
        build: Makes the network with its weights, the same each time it is called. In evaluation
            mode the network takes images (B, C, H, W), or sequences with ``T``, and gives logits
            (B, num_classes) or (T, B, num_classes), over which the mean is taken.
        input_shape: (channels, height, width) of the images; square.
        num_classes: Length of the logits.
        transform: Evaluation transform of the images; by default resized to ``input_shape``,
            with the usual mean and standard deviation of ImageNet, or of the digits where grey.
        T: Repeat each image so often and give sequences (T, B, C, H, W). None where the network
            takes images and repeats them itself; its attribute ``T`` then says how often.
        data: Default of ``--data``: ``digits``, ``folder:DIR``, ...
        title: For display.

    Raises:
        ModelError: If the name is taken or unusable, or the shape is not square.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise ModelError(f"A model's name has letters, digits, _ and -; got {name!r}.")
    channels, height, width = input_shape
    if height != width or min(input_shape) < 1 or num_classes < 1 or (T is not None and T < 1):
        raise ModelError(
            f"{name}: input_shape is (channels, side, side), num_classes and T are at least 1; got "
            f"{input_shape}, {num_classes}, {T}."
        )
    arguments: dict[str, Any] = {
        "name": name, "in_channels": channels, "img_size_h": height, "img_size_w": width,
        "num_classes": num_classes, **({"T": T} if T else {}),
    }  # fmt: skip
    own = Transform(resize=height, crop=height)
    if channels == 1:
        grey = DIGITS_TRANSFORM
        own = dataclasses.replace(own, channels=1, mean=grey.mean, std=grey.std)
    register_card(
        ModelCard(
            name=name, title=title or name, family=CUSTOM, arguments=arguments, parameters=0,
            transform=transform or own, data=data or "", paper="", licence="the user's",
            own=Registered(name=name, build=build, arguments=arguments),
        )
    )  # fmt: skip


@dataclass(frozen=True)
class Registered:
    """What builds a registered model; stands on its card."""

    name: str
    build: Callable[[], nn.Module]
    arguments: Mapping[str, Any]

    def load(self, tensors: Mapping[str, Tensor] | None, image_size: int | None) -> CustomModel:
        """The model with its own weights or with ``tensors``; groups found and checked.

        Raises:
            ModelError: If the network cannot be built or run.
            CheckpointError: If ``tensors`` do not fit.
        """
        if image_size not in (None, self.arguments["img_size_h"]):
            raise ModelError(f"{self.name} is registered for {self.arguments['img_size_h']} px.")
        arguments = {**self.arguments, "structure": json.dumps(Structure().to_dict())}
        net = self._net()
        if tensors is not None:
            try:
                net.load_state_dict(dict(tensors), strict=True)
            except RuntimeError as error:
                told = " ".join(str(error).split())[:300]
                raise CheckpointError(f"The file does not fit {self.name}: {told}") from error
        empty = CustomModel(copy.deepcopy(net), arguments, code=_code_of(net, self.build))
        x = check_images(empty, torch.float32)[:2]
        try:
            with torch.no_grad():
                empty.eval()(x)
            if known := _recall(empty):
                return known
            candidates = trace(net, x, functools.partial(logits, T=self.arguments.get("T")))
        except PsvitError:
            raise
        except Exception as error:  # whatever the user's forward raises
            raise ModelError(f"{self.name} fails on images: {first_line(error)}") from error
        return _remember(empty, accept(empty, candidates))

    def rebuild(self, arguments: Mapping[str, Any], widths: Mapping[str, int]) -> CustomModel:
        """The empty model that a pruned file was written from, on the meta device.

        Raises:
            ModelError: If the file's groups are not those of the registered network.
        """
        with torch.device("cpu"):
            net = self._net()
            taken = {key: arguments[key] for key in ("structure", "T") if key in arguments}
            try:
                whole = CustomModel(
                    net, {**self.arguments, **taken}, code=_code_of(net, self.build)
                )
                return whole.resized(widths)
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise ModelError(
                    f"Its groups are not those of {self.name} as it is registered now "
                    f"({first_line(error)})."
                ) from error

    def _net(self) -> nn.Module:
        try:
            net = self.build()
        except Exception as error:  # of the user's code
            raise ModelError(f"{self.name} cannot be built: {first_line(error)}") from error
        if not isinstance(net, nn.Module):
            raise ModelError(f"build of {self.name} gives a {type(net).__name__}, not a module.")
        functional.reset_net(net)
        return net.cpu().eval()


def _code_of(net: nn.Module, build: Callable[[], nn.Module]) -> str:
    """Digest of the user's files that make the network, and of what it was made with.

    A changed forward is another model, and so is another ``tau`` from a file that holds no module:
    what the network prints of itself counts, and every number that a module keeps.
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


_store: Store | None = None  # where structures that passed the check are kept, if anywhere


def _key(empty: CustomModel) -> str:
    libraries = [version(name) for name in ("torch", "spikingjelly", "torch-pruning")]
    arguments = {k: v for k, v in empty.arguments.items() if k != "structure"}
    parts = [ENGINE_VERSION, Structure.version, libraries, arguments, weights_hash(empty)]
    return "custom/" + digest(parts)


def _recall(empty: CustomModel) -> CustomModel | None:
    """The model with the groups that passed the check before: same weights, same code."""
    known = _store.get(_key(empty)) if _store else None
    if known is None:
        return None
    return empty.with_structure(Structure.from_dict(known["structure"]), known["refused"])


def _remember(empty: CustomModel, checked: CustomModel) -> CustomModel:
    if _store:
        found = {"structure": checked.structure.to_dict(), "refused": checked.refused}
        _store.put(_key(empty), found)
    return checked


_loaded: dict[str, ModuleType] = {}


def load_plugin(plugin: str, store: Store | None = None) -> None:
    """Import the Python file or module that registers models; once a process.

    It is the user's own code and runs with all rights: never take its name from elsewhere.

    Args:
        plugin: Path of a ``.py`` file, or a module's dotted name.
        store: Keep there which groups passed the check, for all later loading in this process.

    Raises:
        ModelError: If there is none, it fails, or it registers no model.
    """
    global _store
    _store = store or _store
    path = Path(plugin)
    is_file = path.suffix == ".py" or path.exists()
    key = str(path.resolve()) if is_file else plugin
    if key in _loaded:
        return
    if is_file and not path.is_file():
        raise ModelError(f"There is no plugin file {plugin}.")
    try:
        module = _import_file(Path(key)) if is_file else importlib.import_module(plugin)
    except PsvitError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (plugin == error.name or plugin.startswith(f"{error.name}.")):
            raise ModelError(
                f"There is no plugin {plugin!r}. Give a module that can be imported, or the path "
                "of a .py file."
            ) from error
        raise ModelError(f"Plugin {plugin} cannot be imported: {first_line(error)}") from error
    except Exception as error:  # of the user's code
        raise ModelError(f"Plugin {plugin} cannot be imported: {first_line(error)}") from error
    if not any(model_card(name).own for name in list_models()):
        raise ModelError(
            f"Plugin {plugin} registers no model. It has to call psvit_core.register_model(...)."
        )
    _loaded[key] = module


def _import_file(path: Path) -> ModuleType:
    """Import a file as Python runs one: its folder is where it imports from."""
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
