"""Verifies channel groups of custom models: removed must equal silenced.

In float64, on random images, the physically pruned model and the full model with zeroed BatchNorms
must have the same logits, and the same spike counts and input currents in every neuron layer. A
silent network would pass every comparison. Therefore neurons must fire and the removal must change
the logits; otherwise the group is rejected.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from psvit_core.custom.layers import is_countable
from psvit_core.custom.model import CustomModel
from psvit_core.custom.network import unsupported_neurons
from psvit_core.custom.sharing import sharing_layers
from psvit_core.custom.structure import CustomGroup, GroupReport, Structure
from psvit_core.custom.trace import Candidate
from psvit_core.custom.users_code import one_line
from psvit_core.errors import ModelError, PsvitError
from psvit_core.groups import COMPUTE_LAYERS, find_groups
from psvit_core.neurons import NEURONS, stays_silent
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.surgery import Silenced, apply_plan, silencing_edits
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

TOLERANCE = 1e-9
LEAST_CHANGE = 1e-6  # of the logits; a removal that changes less proves nothing
N_IMAGES = 2
_SEED = 0

Kept = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelOutput:
    """Logits of a model, with the spike count and input current of every neuron layer."""

    logits: Tensor
    spikes: dict[str, float]
    currents: dict[str, float]

    def difference(self, other: ModelOutput) -> str:
        """Describe the first difference from ``other``; empty if there is none."""
        distance = float((self.logits - other.logits).abs().max())
        if not distance <= TOLERANCE:
            return f"the logits differ by {distance:.1e}"
        for name, count in self.spikes.items():
            if count != other.spikes.get(name):
                return f"{name} fires {count:g} times instead of {other.spikes.get(name)}"
            tolerance = max(1.0, abs(self.currents[name])) * TOLERANCE
            if not abs(self.currents[name] - other.currents[name]) <= tolerance:
                return f"{name} has another input current"
        return ""


def check_groups(model: SpikingModel) -> GroupReport:
    """Check every channel group of a model, alone and all together.

    Args:
        model: A model of the zoo or a custom one; not changed.

    Returns:
        Accepted groups, and rejected ones with reasons. Groups that were rejected when the model
        was loaded from its registered name are included; a pruned file only knows accepted ones.
    """
    groups = find_groups(model)
    checker = _GroupChecker(model)
    refused = dict(getattr(model, "refused", {}))
    refused |= {g.group_id: fault for g in groups if (fault := checker.fault(g))}
    single = [g for g in groups if g.group_id not in refused]
    refused |= checker.joint_faults(single)
    return GroupReport(
        model=model.name,
        accepted=tuple(g.group_id for g in groups if g.group_id not in refused),
        refused=refused,
        silent=checker.silent,
        uncounted=tuple(getattr(model, "uncounted", ())),
    )


def accept_groups(model: CustomModel, candidates: Sequence[Candidate]) -> CustomModel:
    """Return ``model`` with the candidates that are exact, and the others in ``refused``."""
    checker = _GroupChecker(model)
    model_fault = checker.model_fault()
    accepted: list[CustomGroup] = []
    refused: dict[str, str] = {}
    owners: dict[tuple[str, int], str] = {}  # group of each layer's axis
    sharing = sharing_layers(model.net)
    for candidate in candidates:
        shared = [owners[key] for key in candidate.axes() if key in owners]
        fault = f"It shares a layer with {shared[0]}." if shared else ""
        tied = [sharing[path] for path, _ in candidate.axes() if path in sharing]
        if tied:
            fault = f"{tied[0]}, so their widths cannot differ."
        group, fault = checker.first_exact(candidate, fault or candidate.reason or model_fault)
        if group:
            accepted.append(group)
            owners |= dict.fromkeys(candidate.axes(), candidate.group_id)
        else:
            refused[candidate.group_id] = fault
    if accepted:
        combined = checker.with_groups(accepted)
        refused |= combined.joint_faults(combined.groups())
    groups = tuple(group for group in accepted if group.group_id not in refused)
    structure = Structure(groups=groups, batch_coupled=checker.batch_coupled())
    real_fed = find_real_fed(model.with_structure(structure))
    structure = dataclasses.replace(structure, real_fed=real_fed, T=model.T)
    return model.with_structure(structure, refused)


def random_images(model: SpikingModel, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return seeded normal images (N_IMAGES, C, H, W), distributed like normalized pixels."""
    random = torch.Generator().manual_seed(_SEED)
    return torch.randn(N_IMAGES, *model.input_shape, generator=random).to(dtype)


class _GroupChecker:
    def __init__(self, model: SpikingModel) -> None:
        self._model = copy.deepcopy(model).cpu().double().eval()
        self._hash = weights_hash(self._model)
        self._x = random_images(model)
        try:
            self._baseline = self._run(self._model)
        except ModelError as error:
            raise ModelError(
                f"{error}. Groups are checked in float64, so the forward must not change types: "
                "write x.to(layer.weight.dtype) in place of x.float() or x.half()."
            ) from error
        self.silent = tuple(name for name, n in self._baseline.spikes.items() if not n)

    def groups(self) -> tuple[ChannelGroup, ...]:
        return find_groups(self._model)

    def with_groups(self, groups: Sequence[CustomGroup]) -> _GroupChecker:
        """Return a checker for the same model with these groups.

        Raises:
            ModelError: If the groups need layers split that cannot be split.
        """
        assert isinstance(self._model, CustomModel)
        other = copy.copy(self)
        other._model = self._model.with_structure(Structure(groups=tuple(groups)))
        if any(member.parts > 1 for group in groups for member in group.members):
            other._hash = weights_hash(other._model)
            try:
                output = other._run(other._model)
            except Exception as error:  # any error of the user's forward
                raise ModelError(f"A layer cannot be split: {one_line(error)}") from error
            if difference := output.difference(self._baseline):
                raise ModelError(f"Splitting a layer changes the result: {difference}.")
        return other

    def first_exact(self, candidate: Candidate, fault: str) -> tuple[CustomGroup | None, str]:
        """Return the first form of a candidate that is exact, or None and the last fault.

        Args:
            candidate: The candidate, tried with each of its numbers of heads.
            fault: A fault that is already known, or empty.
        """
        for heads in [] if fault else candidate.heads:
            group = candidate.with_heads(heads)
            try:
                trial = self.with_groups([group])
                fault = trial.fault(trial.groups()[0])
            except PsvitError as error:
                fault = str(error)
            if not fault:
                return group, ""
        return None, fault

    def model_fault(self) -> str:
        """Return the reason why no group of this model can be checked; empty if they can."""
        for name, module in self._model.named_modules():
            if isinstance(module, neuron.BaseNode) and not stays_silent(module):
                threshold = getattr(module, "v_threshold", 1.0)
                return (
                    f"Neuron {name} has v_reset={module.v_reset}, v_threshold={threshold}. It may "
                    "fire without input, so its units cannot be silenced. Use v_reset 0 and a "
                    "threshold above 0."
                )
        if not self._baseline.spikes:
            kinds = unsupported_neurons(self._model)
            return (
                "It has no neuron derived from SpikingJelly's BaseNode"
                f"{f' (only {kinds})' if kinds else ''}; no others are supported."
            )
        if len(self.silent) == len(self._baseline.spikes):
            return (
                "No neuron fires on the test images, so nothing can be verified. Load trained "
                "weights, or run some training images to set the BatchNorm statistics."
            )
        if self._run(self._model).difference(self._baseline):
            return "Two runs on the same images differ. The forward must be deterministic."
        return ""

    def batch_coupled(self) -> bool:
        """Return True if an image's logits depend on the other images of its batch."""
        with torch.no_grad():
            alone = self._model(self._x[:1])
        return float((alone - self._baseline.logits[:1]).abs().max()) > TOLERANCE

    def fault(self, group: ChannelGroup) -> str:
        """Return the reason why a group is not exact; empty if it is."""
        change = 0.0
        for removed in _trial_removals(group):
            difference, changed = self._compare({group.group_id: _kept_units(group, removed)})
            if difference:
                return difference
            change = max(change, changed)
        if change > LEAST_CHANGE:
            return ""
        removed = _all_but_one(group)
        if not removed:
            return "Nothing can be removed: it has one unit" + (
                " per head." if group.heads else "."
            )
        difference, change = self._compare({group.group_id: _kept_units(group, removed)})
        if difference or change > LEAST_CHANGE:
            return difference
        return (
            "Removing its units changes nothing on the test images (they do not fire, or nothing "
            "reads them), so it cannot be verified."
        )

    def joint_faults(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """Return the groups that are not exact together with the others, with reasons."""
        trial = {
            g.group_id: _kept_units(g, removed)
            for g in groups
            for removed in [*_trial_removals(g)][:1]
        }
        refused: dict[str, str] = {}
        if not self._compare(trial)[0]:
            return refused
        kept: Kept = {}
        for group_id, units in trial.items():
            difference, _ = self._compare({**kept, group_id: units})
            if difference:
                refused[group_id] = f"Together with the groups before it: {difference}"
            else:
                kept[group_id] = units
        return refused

    def _compare(self, kept: Kept) -> tuple[str, float]:
        """Return the pruned model's difference from the silenced one, and the logits' change."""
        plan = PrunePlan(
            model=self._model.name, weights_hash=self._hash, criterion="given", kept=kept
        )
        edits = silencing_edits(self._model, plan)
        expected = self._run(Silenced(self._model, edits).eval())
        try:
            pruned = self._run(apply_plan(self._model, plan))
        except Exception as error:  # any error of the user's forward at other widths
            return f"It cannot run with fewer units: {one_line(error)}", 0.0
        change = float((pruned.logits - self._baseline.logits).abs().max())
        difference = pruned.difference(expected)
        return f"Removing is not silencing: {difference}." if difference else "", change

    def _run(self, model: nn.Module) -> ModelOutput:
        spikes: dict[str, float] = {}
        currents: dict[str, float] = {}
        handles = []

        def watch(name: str) -> None:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                spikes[name] = spikes.get(name, 0.0) + float(output.sum())
                currents[name] = currents.get(name, 0.0) + float(inputs[0].sum())

            handles.append(module.register_forward_hook(hook))

        for name, module in model.named_modules():
            if _is_neuron(module):
                watch(name.removeprefix("model."))  # prefix of a silenced model
        try:
            with torch.no_grad():
                logits = model(self._x)
        finally:
            for handle in handles:
                handle.remove()
        return ModelOutput(logits=logits, spikes=spikes, currents=currents)


def _trial_removals(group: ChannelGroup) -> Iterator[list[int]]:
    """Yield sets of units to remove: random but seeded, about a third.

    With heads, each head loses the same number. Without heads, the first number is such that no
    number of heads divides the rest, so that a group whose heads are unknown fails.
    """
    heads = group.heads or 1
    width = group.n_units // heads
    third = max(1, width // 3)
    coprime = next(n for n in range(third, 0, -1) if math.gcd(width - n, width) == 1 or n == 1)
    for count in dict.fromkeys((coprime, third) if heads == 1 else (third,)):
        if count < width:
            yield _random_units(heads, width, count)


def _all_but_one(group: ChannelGroup) -> list[int]:
    """Return all units but one (of each head)."""
    heads = group.heads or 1
    return _random_units(heads, group.n_units // heads, group.n_units // heads - 1)


def _random_units(heads: int, width: int, count: int) -> list[int]:
    random = torch.Generator().manual_seed(_SEED)
    order = [torch.randperm(width, generator=random) + head * width for head in range(heads)]
    return [unit for head in order for unit in head[:count].tolist()]


def _kept_units(group: ChannelGroup, removed: Sequence[int]) -> tuple[int, ...]:
    gone = set(removed)
    return tuple(i for i in range(group.n_units) if i not in gone)


def find_real_fed(model: CustomModel) -> dict[str, int]:
    """Return the layers that read values other than counts of spikes, with their runs per image.

    The model runs twice, the second time with every neuron firing at random. Otherwise a mean of
    spikes could be mistaken for a spike where all of them fire, or none.

    Layers whose spikes cannot be counted exactly (dilated, grouped, or padded with values other
    than zeros) are included and count as dense.
    """
    random = torch.Generator().manual_seed(_SEED)
    real: set[str] = set()
    rows: dict[str, int] = {}
    calls: dict[str, int] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if not is_countable(layer) or not bool(((x >= 0) & (x == x.round())).all()):
                real.add(name)
            rows[name] = rows.get(name, 0) + len(x)
            calls[name] = calls.get(name, 0) + 1

        return layer.register_forward_pre_hook(hook)

    def fire(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (torch.rand(output.shape, generator=random) < 0.5).to(output.dtype)

    x = random_images(model, model.dtype)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, COMPUTE_LAYERS)]
    handles = [watch(name, layer) for name, layer in layers]
    with torch.no_grad():
        model(x)
        handles += [m.register_forward_hook(fire) for m in model.modules() if _is_neuron(m)]
        model(x)
    for handle in handles:
        handle.remove()
    runs: dict[str, int] = {}
    for name, layer in layers:
        if name in real:
            calls_per_step = getattr(layer, "calls_per_step", calls[name] // 2)
            runs[name] = rows[name] // (2 * len(x)) // calls_per_step
    return runs


def _is_neuron(module: nn.Module) -> bool:
    return isinstance(module, (neuron.BaseNode, *NEURONS))
