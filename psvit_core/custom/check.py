"""The oracle for models of the users' own: removed must equal silenced before a number is shown.

In float64 on made images: the physically pruned model and the full model whose BatchNorms are
zeroed at the removed units must give the same logits, the same spike counts and the same input
currents in every neuron layer. A silent network passes every equality, so neurons must fire and
the removal must change the logits, or the group is refused.
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

from psvit_core.custom.layers import countable
from psvit_core.custom.model import CustomModel, first_line
from psvit_core.custom.structure import Found, GroupReport, Structure
from psvit_core.custom.trace import Candidate
from psvit_core.errors import ModelError, PsvitError
from psvit_core.groups import COMPUTE_LAYERS, find_groups
from psvit_core.neurons import NEURONS
from psvit_core.records import ChannelGroup, PrunePlan
from psvit_core.surgery import Silenced, apply_plan, silencing_edits
from psvit_core.zoo.base import SpikingModel
from psvit_core.zoo.checkpoint import weights_hash

TOLERANCE = 1e-9
LEAST_CHANGE = 1e-6  # of the logits, for a removal to prove anything
N_IMAGES = 2
_SEED = 0
_SCALES = (
    1.0,
    0.3,
    0.1,
    3.0,
)  # dim to glaring images: a mean of spikes is a whole number by chance

Kept = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Answer:
    """What a model says and what its neuron layers see and send."""

    logits: Tensor
    spikes: dict[str, float]
    currents: dict[str, float]

    def differs_from(self, other: Answer) -> str:
        """How, in words; empty where all is equal."""
        far = float((self.logits - other.logits).abs().max())
        if not far <= TOLERANCE:
            return f"the logits differ by {far:.1e}"
        for name, count in self.spikes.items():
            if count != other.spikes.get(name):
                return f"{name} fires {count:g} times instead of {other.spikes.get(name)}"
            near = max(1.0, abs(self.currents[name])) * TOLERANCE
            if not abs(self.currents[name] - other.currents[name]) <= near:
                return f"{name} gets another input current"
        return ""


def check_groups(model: SpikingModel) -> GroupReport:
    """Check every channel group of a model, alone and all together, now.

    Args:
        model: Of the zoo or of the user's own; not changed.

    Returns:
        Accepted groups; refused ones with reasons, with those that were left out when the model
        was loaded from its registered name (a pruned file knows only the accepted ones).
    """
    groups = find_groups(model)
    oracle = _Oracle(model)
    refused = dict(getattr(model, "refused", {}))
    refused |= {g.group_id: r for g in groups if (r := oracle.why_not(g))}
    single = [g for g in groups if g.group_id not in refused]
    refused |= oracle.why_not_together(single)
    return GroupReport(
        model=model.name,
        accepted=tuple(g.group_id for g in groups if g.group_id not in refused),
        refused=refused,
        silent=oracle.silent,
        uncounted=tuple(getattr(model, "uncounted", ())),
    )


def accept(model: CustomModel, candidates: Sequence[Candidate]) -> CustomModel:
    """``model`` with the candidates that are exact; the others in ``refused`` with reasons."""
    oracle = _Oracle(model)
    unfit = oracle.unfit()
    accepted: list[Found] = []
    refused: dict[str, str] = {}
    owners: dict[tuple[str, int], str] = {}  # of each layer's axis
    for candidate in candidates:
        shared = [owners[key] for key in candidate.axes() if key in owners]
        reason = f"It shares a layer with {shared[0]}." if shared else candidate.reason or unfit
        for heads in [] if reason else candidate.heads:
            found = candidate.found(heads)
            reason = oracle.why_not_found(found)
            if not reason:
                accepted.append(found)
                owners |= dict.fromkeys(candidate.axes(), candidate.group_id)
                break
        if reason:
            refused[candidate.group_id] = reason
    if accepted:
        whole = oracle.restructured(accepted)
        refused |= whole.why_not_together(whole.groups())
    groups = tuple(found for found in accepted if found.group_id not in refused)
    structure = Structure(groups=groups, batch_coupled=oracle.batch_coupled())
    real_fed = find_real_fed(model.with_structure(structure))
    structure = dataclasses.replace(structure, real_fed=real_fed, T=model.T)
    return model.with_structure(structure, refused)


def check_images(model: SpikingModel, dtype: torch.dtype = torch.float64) -> Tensor:
    """Made images, (N_IMAGES, C, H, W): seeded, normal, as normalised pixels are."""
    random = torch.Generator().manual_seed(_SEED)
    return torch.randn(N_IMAGES, *model.input_shape, generator=random).to(dtype)


class _Oracle:
    def __init__(self, model: SpikingModel) -> None:
        self._model = copy.deepcopy(model).cpu().double().eval()
        self._hash = weights_hash(self._model)
        self._x = check_images(model)
        self._base = self._ask(self._model)
        self.silent = tuple(name for name, n in self._base.spikes.items() if not n)

    def groups(self) -> tuple[ChannelGroup, ...]:
        return find_groups(self._model)

    def restructured(self, found: Sequence[Found]) -> _Oracle:
        """An oracle for the same model with these groups.

        Raises:
            ModelError: If the layers cannot be split as the groups need it.
        """
        assert isinstance(self._model, CustomModel)
        other = copy.copy(self)
        other._model = self._model.with_structure(Structure(groups=tuple(found)))
        if any(member.parts > 1 for f in found for member in f.members):
            other._hash = weights_hash(other._model)
            try:
                same = other._ask(other._model)
            except Exception as error:  # whatever the user's forward raises
                raise ModelError(f"A layer cannot be split: {first_line(error)}") from error
            if different := same.differs_from(self._base):
                raise ModelError(f"Splitting a layer changes the result: {different}.")
        return other

    def why_not_found(self, found: Found) -> str:
        """Why a group is not exact in this form; empty where it is."""
        try:
            trial = self.restructured([found])
            return trial.why_not(trial.groups()[0])
        except PsvitError as error:
            return str(error)

    def unfit(self) -> str:
        """Why no group of this model can be checked; empty where they can."""
        for name, module in self._model.named_modules():
            if not isinstance(module, neuron.BaseNode):
                continue
            reset, threshold = module.v_reset, getattr(module, "v_threshold", 1.0)
            if reset not in (0, None) or not float(threshold) > 0:
                return (
                    f"Neuron {name} has v_reset={reset}, v_threshold={threshold}: without input "
                    "it may fire, so that units cannot be silenced. Needs v_reset 0 and a "
                    "threshold above 0."
                )
        if not self._base.spikes:
            return "It has no neuron derived from SpikingJelly's BaseNode; no other is known here."
        if len(self.silent) == len(self._base.spikes):
            return (
                "No neuron fires on the images of the check, so that nothing can be proved. Load "
                "trained weights, or warm the BatchNorm statistics."
            )
        if self._ask(self._model).differs_from(self._base):
            return "Two runs on the same images differ; a check needs a forward without chance."
        return ""

    def batch_coupled(self) -> bool:
        """Whether an image's logits depend on the batch around it."""
        with torch.no_grad():
            alone = self._model(self._x[:1])
        return float((alone - self._base.logits[:1]).abs().max()) > TOLERANCE

    def why_not(self, group: ChannelGroup) -> str:
        """Why a group is not exact; empty where it is."""
        change = 0.0
        for removed in _removals(group):
            different, changed = self._compare({group.group_id: _rest(group, removed)})
            if different:
                return different
            change = max(change, changed)
        if change > LEAST_CHANGE:
            return ""
        most = _most(group)
        if not most:
            return "Nothing can be removed: it has one unit" + (" a head." if group.heads else ".")
        different, change = self._compare({group.group_id: _rest(group, most)})
        if different or change > LEAST_CHANGE:
            return different
        return (
            "Removing its units changes nothing on the images of the check (they do not fire or "
            "nothing reads them), so that nothing is proved."
        )

    def why_not_together(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """Groups that are not exact together with the others."""
        third = {g.group_id: _rest(g, gone) for g in groups for gone in [*_removals(g)][:1]}
        refused: dict[str, str] = {}
        if not self._compare(third)[0]:
            return refused
        kept: Kept = {}
        for group_id, units in third.items():
            different, _ = self._compare({**kept, group_id: units})
            if different:
                refused[group_id] = f"Together with the groups before it: {different}"
            else:
                kept[group_id] = units
        return refused

    def _compare(self, kept: Kept) -> tuple[str, float]:
        """How the pruned model differs from the silenced one, and the change of the logits."""
        plan = PrunePlan(
            model=self._model.name, weights_hash=self._hash, criterion="given", kept=kept
        )
        edits = silencing_edits(self._model, plan)
        expected = self._ask(Silenced(self._model, edits).eval())
        try:
            got = self._ask(apply_plan(self._model, plan))
        except Exception as error:  # whatever the user's forward raises at other widths
            return f"It cannot run with fewer units: {first_line(error)}", 0.0
        change = float((got.logits - self._base.logits).abs().max())
        different = got.differs_from(expected)
        return f"Removing is not silencing: {different}." if different else "", change

    def _ask(self, model: nn.Module) -> Answer:
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
                watch(name.removeprefix("model."))  # of a silenced model
        try:
            with torch.no_grad():
                logits = model(self._x)
        finally:
            for handle in handles:
                handle.remove()
        return Answer(logits=logits, spikes=spikes, currents=currents)


def _removals(group: ChannelGroup) -> Iterator[list[int]]:
    """Units to remove: seeded, about a third.

    Without heads so many that no number of heads divides what stays: a group whose heads are not
    known must fail. With heads the same number of each.
    """
    heads = group.heads or 1
    width = group.n_units // heads
    third = max(1, width // 3)
    odd = next(n for n in range(third, 0, -1) if math.gcd(width - n, width) == 1 or n == 1)
    for count in dict.fromkeys((odd, third) if heads == 1 else (third,)):
        if count < width:
            yield _seeded(heads, width, count)


def _most(group: ChannelGroup) -> list[int]:
    """All units but one (of each head)."""
    heads = group.heads or 1
    return _seeded(heads, group.n_units // heads, group.n_units // heads - 1)


def _seeded(heads: int, width: int, count: int) -> list[int]:
    random = torch.Generator().manual_seed(_SEED)
    order = [torch.randperm(width, generator=random) + head * width for head in range(heads)]
    return [unit for head in order for unit in head[:count].tolist()]


def _rest(group: ChannelGroup, removed: Sequence[int]) -> tuple[int, ...]:
    gone = set(removed)
    return tuple(i for i in range(group.n_units) if i not in gone)


def find_real_fed(model: CustomModel) -> dict[str, int]:
    """Layers that read other values than counts of spikes, with how often an image runs each.

    One run as it is, one in which every neuron fires at random: a mean of spikes that all fire, or
    of none, would pass for a spike. Layers whose spikes cannot be counted exactly (dilated,
    grouped, padded otherwise than with zeros) are among them: they count as dense.
    """
    random = torch.Generator().manual_seed(_SEED)
    real: set[str] = set()
    rows: dict[str, int] = {}
    calls: dict[str, int] = {}

    def watch(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if not countable(layer) or not bool(((x >= 0) & (x == x.round())).all()):
                real.add(name)
            rows[name] = rows.get(name, 0) + len(x)
            calls[name] = calls.get(name, 0) + 1

        return layer.register_forward_pre_hook(hook)

    def fire(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return (torch.rand(output.shape, generator=random) < 0.5).to(output.dtype)

    x = check_images(model, torch.float32)
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
            calls_a_step = getattr(layer, "hooked", calls[name] // 2)
            runs[name] = rows[name] // (2 * len(x)) // calls_a_step
    return runs


def _is_neuron(module: nn.Module) -> bool:
    return isinstance(module, (neuron.BaseNode, *NEURONS))
