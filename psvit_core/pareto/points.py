"""Records of the points of an archive: how a plan was made, and what it achieved."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from psvit_core.errors import UnknownNameError
from psvit_core.records import AXES, Interval, Measurement, PrunePlan, Record, make_target
from psvit_core.storage.store import digest


@dataclass(frozen=True, kw_only=True)
class PlanOrigin(Record):
    """Origin of a plan, and the changes to the model after pruning."""

    policy: str = "by hand"
    criterion: str = ""
    scope: str = "all"
    memory_saving: float | None = None  # target: fraction of the float32 bytes; or
    max_drop: float | None = None  # target: accuracy drop as a fraction; or
    saving: float | None = None  # target: fraction of ``resource``
    resource: str = "memory"
    locked: dict[str, float] = field(default_factory=dict)  # group -> fixed prune ratio
    bounds: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # group -> smallest, largest
    round_to: int = 1
    seed: int = 0  # of the calibration images
    tried: bool = False  # a candidate that the planner measured but did not choose
    recovery: str = "none"
    finetuning: str = ""  # description; empty without fine-tuning
    epochs: float = 0.0  # fine-tuning epochs of the stored weights
    weights: str = ""  # hash of the weights if recovery or fine-tuning changed them
    savings: dict[str, float] = field(default_factory=dict)  # further targets: resource -> fraction

    @property
    def target(self) -> str:
        """The target as text; empty without one."""
        several = (self.memory_saving, self.saving, self.max_drop, *self.savings.values())
        if sum(value is not None for value in several) > 1:
            return make_target(
                memory_saving=self.memory_saving,
                saving=self.saving,
                max_drop=self.max_drop,
                resource=self.resource,
                savings=self.savings,
            ).text
        if self.memory_saving is not None:
            return f"memory saving {self.memory_saving:.4g}"
        if self.saving is not None:
            return f"{self.resource} saving {self.saving:.4g}"
        if self.max_drop is None:
            return ""
        most = "" if self.resource == "memory" else f", most {self.resource} saved"
        return f"largest drop {self.max_drop:.4g}{most}"

    @property
    def limits(self) -> str:
        """Locked ratios and bounds as text; empty without any."""
        locked = [f"{group}={ratio:g}" for group, ratio in self.locked.items()]
        bounded = [f"{group}={low:g}:{high:g}" for group, (low, high) in self.bounds.items()]
        return " ".join(locked + bounded)


@dataclass(frozen=True, kw_only=True)
class ParetoPoint(Record):
    """One measured plan with all its origins."""

    measurement: Measurement  # with its plan
    made: tuple[PlanOrigin, ...]

    @property
    def plan(self) -> PrunePlan:
        """The measured plan."""
        assert self.measurement.plan is not None
        return self.measurement.plan

    @property
    def point_id(self) -> str:
        """Identifier, equal for equal kept units and weights."""
        kept = {group: list(units) for group, units in self.plan.kept.items()}
        recovery, weights = self.measurement.conditions.recovery, self.stored_weights
        named = [x for x, plain in ((recovery, "none"), (weights, "float32")) if x != plain]
        return digest([kept, self.made[0].weights, *named])

    @property
    def stored_weights(self) -> str:
        """``float32``, or the kind of quantized weights that was measured."""
        return self.measurement.conditions.weights

    @property
    def plain(self) -> bool:
        """True if neither recovery nor fine-tuning followed pruning."""
        return self.recovery == "none" and not self.made[0].weights

    @property
    def recovery(self) -> str:
        """The recovery that was asked for, one of ``RECOVERIES``; ``none`` without one."""
        stated = self.measurement.conditions.recovery
        if stated == "none" and self.made[0].weights:  # measured before it was a condition
            return re.split(r"\W", self.made[0].recovery)[0]  # such as "auto (lsq), seed 1"
        return stated

    @property
    def accuracy_interval(self) -> Interval:
        """Measured accuracy with its interval, a fraction."""
        return self.measurement.accuracy

    @property
    def accuracy(self) -> float:
        """Measured accuracy, a fraction."""
        return self.measurement.accuracy.value

    def value(self, axis: str) -> float | None:
        """Return the point's value on an axis of ``AXES``; None if it was not profiled.

        ``latency`` is the median forward pass of one image, ``peak`` its peak activation bytes.

        Raises:
            UnknownNameError: If the axis is unknown.
        """
        if axis not in AXES:
            raise UnknownNameError("axis", axis, AXES)
        m, profile = self.measurement, self.measurement.profile
        if axis == "latency":
            times = profile.latency_ms.get("1") if profile else None  # absent in shipped profiles
            return times.median if times else None
        if axis == "peak":
            return profile.peak_activation_bytes["1"] if profile else None
        values = {"bytes": m.size.bytes, "macs": m.size.macs, "energy": m.energy_pj, "sops": m.sops}
        return values[axis]


@dataclass(frozen=True, kw_only=True)
class FrontPoint(Record):
    """A point of a front."""

    point: ParetoPoint
    value: float  # on the front's axis
    overlaps: bool  # its accuracy interval overlaps that of a neighbour on the front


@dataclass(frozen=True, kw_only=True)
class Unreached(Record):
    """A target that a policy could not reach."""

    made: PlanOrigin
    reason: str
