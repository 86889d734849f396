"""Settings of all tasks: plain data that is sent between processes and is part of result keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from psvit_core.errors import InvalidRatioError, UnknownNameError
from psvit_core.records._base import Record
from psvit_core.records.names import POLICIES, RECOVERIES, RESOURCES, SCOPES

DEFAULT_MODEL = "sdt_v1_digits"
DEFAULT_RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DEFAULT_SAVINGS = (0.1, 0.224, 0.2668, 0.4, 0.55, 0.7)
DEFAULT_BUDGET = 20


@dataclass(frozen=True, kw_only=True)
class Subject(Record):
    """The model, its images, and how they are run."""

    model: str = DEFAULT_MODEL  # registered name, or path of a pruned file or checkpoint
    checkpoint: str | None = None
    data: str | None = None  # None: the data set of the model card
    split: str = "val"
    limit: int | None = None
    batch: int | None = None  # None: the model card's
    device: str = "cpu"
    precision: str = "float32"
    time_steps: int | None = None  # None: the model's
    image_size: int | None = None  # side in pixels; None: the model's
    num_heads: int | None = None  # None: the model card's
    ema: bool = False  # load the checkpoint's moving average of the weights
    entry: str | None = None  # state dict to load from a checkpoint with several
    workers: int = 0  # processes that load images
    bad_images: str = "stop"  # at unreadable images; or skip
    plugin: str | None = None  # file or module that registers custom models; its code runs
    #: Recovery after pruning, one of ``names.RECOVERIES``; a condition of results like T.
    recovery: str = "none"
    #: Further arguments of a checkpoint file that its tensors do not reveal, by the family's names.
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SweepSettings(Record):
    """Settings of a sweep."""

    ratios: tuple[float, ...] = DEFAULT_RATIOS
    criterion: str | None = None  # None: chosen by ``plan.build.default_criterion``
    calib_images: int = 256  # calibration images of criteria that need them
    seed: int = 0  # of the calibration images, and of the criterion random
    mode: str = "exact"  # or progressive: adaptive number of images per cell
    memory_budget: int | None = None  # bytes per batch; None: a quarter of the free ones


@dataclass(frozen=True, kw_only=True)
class PlanSettings(Record):
    """Settings of a planner; several targets are limits that hold together (``Target``)."""

    policy: str = "psvit"
    memory_saving: float | None = None  # target: fraction of the float32 bytes
    max_drop: float | None = None  # target: accuracy drop as a fraction
    scope: str = "all"
    round_to: int = 1
    saving: float | None = None  # target: fraction of ``resource``
    resource: str = "memory"
    locked: dict[str, float] = field(default_factory=dict)  # group -> fixed prune ratio
    bounds: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # group -> smallest, largest
    budget_evaluations: int = DEFAULT_BUDGET  # largest number of plans measured while planning
    budget_seconds: float | None = None  # no further plan is measured after so long; None: no limit
    savings: dict[str, float] = field(default_factory=dict)  # further targets: resource -> fraction

    @property
    def target(self) -> Target:
        """The target of all limits.

        Raises:
            UnknownNameError: If a resource is unknown.
            InvalidRatioError: If no target is given, or one is outside (0, 1) or given twice.
        """
        return make_target(
            memory_saving=self.memory_saving,
            saving=self.saving,
            max_drop=self.max_drop,
            resource=self.resource,
            savings=self.savings,
        )


@dataclass(frozen=True, kw_only=True)
class RecoverySettings(Record):
    """Recovery of a pruned model without training."""

    method: str = "none"  # one of records.RECOVERIES
    n_images: int = 256  # calibration images
    seed: int = 0  # of the choice of images


def check_recovery(settings: RecoverySettings) -> None:
    """Raise ``UnknownNameError`` unless the recovery method exists."""
    if settings.method not in RECOVERIES:
        raise UnknownNameError("recovery", settings.method, RECOVERIES)


@dataclass(frozen=True, kw_only=True)
class Target:
    """Target of a plan: smallest savings, a largest drop, or both.

    With a saving, the plan loses as little as possible, and ``max_drop`` is a limit. With
    ``max_drop`` alone, it saves as much as possible.

    Args:
        saving: Smallest fraction of the resource to save, in (0, 1).
        max_drop: Largest accuracy drop as a fraction (0.03 is 3 percentage points).
        resource: ``memory`` (float32 bytes), ``memory_int8``, ``macs``, ``energy`` or ``latency``.
        savings: Smallest savings of further resources; require ``saving``.

    Raises:
        UnknownNameError: If a resource is unknown.
        InvalidRatioError: Unless at least one target is given and all are in (0, 1).
    """

    saving: float | None = None
    max_drop: float | None = None
    resource: str = "memory"
    savings: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for resource in (self.resource, *self.savings):
            if resource not in RESOURCES:
                raise UnknownNameError("resource", resource, RESOURCES)
        given = [v for v in (self.saving, self.max_drop, *self.savings.values()) if v is not None]
        without_main = self.saving is None and self.savings
        if not given or without_main or not all(0 < value < 1 for value in given):
            raise InvalidRatioError(
                "Give at least one target, each as a fraction in (0, 1): a saving (e.g. 0.224) or "
                f"a largest drop (e.g. 0.03); got saving={self.saving!r}, "
                f"max_drop={self.max_drop!r}"
                + (f", savings={dict(self.savings)!r}." if self.savings else ".")
            )

    @property
    def all_savings(self) -> dict[str, float]:
        """Smallest saving by resource; empty for an accuracy limit alone."""
        return {} if self.saving is None else {self.resource: self.saving, **self.savings}

    @property
    def text(self) -> str:
        """The limits in words."""
        parts = [
            f"at least {saving:.4g} of the {resource.replace('_', ' in ')} saved"
            for resource, saving in self.all_savings.items()
        ]
        if self.max_drop is not None:
            parts.append(f"at most {100 * self.max_drop:.4g} points lost")
        return " and ".join(parts)


def make_target(
    *,
    memory_saving: float | None = None,
    saving: float | None = None,
    max_drop: float | None = None,
    resource: str = "memory",
    savings: Mapping[str, float] | None = None,
) -> Target:
    """Return the target of limits that are given one by one.

    Args:
        memory_saving: Smallest saving of the float32 bytes.
        saving: Smallest saving of ``resource``.
        max_drop: Largest drop, a fraction.
        resource: The resource of ``saving``, or the one that a plan within ``max_drop`` saves.
        savings: Smallest savings of further resources.

    Raises:
        UnknownNameError: If a resource is unknown.
        InvalidRatioError: If no target is given, or one is outside (0, 1) or given twice.
    """
    if memory_saving is not None and saving is None and resource != "memory":
        raise InvalidRatioError(
            f"memory_saving={memory_saving!r} is a saving of float32 bytes. Use saving= with "
            f"resource={resource!r} instead, or give both."
        )
    limits = [("memory", memory_saving), (resource, saving), *(savings or {}).items()]
    named = [(name, value) for name, value in limits if value is not None]
    if twice := next((n for n, _ in named if sum(n == other for other, _ in named) > 1), None):
        raise InvalidRatioError(
            f"The saving of the resource {twice!r} is given twice. Give the larger one."
        )
    if not named:
        return Target(max_drop=max_drop, resource=resource)
    (main, least), *further = named
    return Target(saving=least, max_drop=max_drop, resource=main, savings=dict(further))


def check_counts(*, round_to: int = 1, budget: int = 1) -> None:
    """Raise ``InvalidRatioError`` if a count is below 1.

    Args:
        round_to: Multiple that widths are rounded to.
        budget: Largest number of plans that are measured while planning.
    """
    if round_to < 1:
        raise InvalidRatioError(
            f"round_to must be at least 1; got {round_to}. Use 1 to allow any width."
        )
    if budget < 1:
        raise InvalidRatioError(
            f"The budget of measured plans must be at least 1; got {budget}. To plan without "
            "measurements, omit the model."
        )


@dataclass(frozen=True, kw_only=True)
class ParetoSettings(Record):
    """Plans that a run adds to the archive.

    Raises:
        UnknownNameError: If a policy, scope or recovery is unknown.
        InvalidRatioError: If a target is missing or outside (0, 1), or ``round_to`` is below 1.
    """

    policies: tuple[str, ...] = ("uniform", "psvit")
    savings: tuple[float, ...] = DEFAULT_SAVINGS  # targets: fractions of the float32 bytes
    max_drops: tuple[float, ...] = ()  # targets: accuracy drops as fractions
    scopes: tuple[str, ...] = ("all",)
    ratios: tuple[float, ...] = DEFAULT_RATIOS  # of the sweep, if it has to be run
    criterion: str | None = None  # of that sweep; None: as in ``SweepSettings``
    round_to: int = 1
    recoveries: tuple[str, ...] = ("none",)  # of the chosen plans; "none" is always measured
    calib_images: int = 256  # for recoveries
    seed: int = 0  # of the choice of these images
    measured_planning: bool = True  # planners measure candidates; False: they predict
    profile: bool = False  # also measure run-time memory and latency of the chosen plans

    def __post_init__(self) -> None:
        for what, names, known in (
            ("policy", self.policies, POLICIES),
            ("scope", self.scopes, SCOPES),
            ("recovery", self.recoveries, RECOVERIES),
        ):
            for name in names:
                if name not in known:
                    raise UnknownNameError(what, name, known)
        for saving in self.savings:
            Target(saving=saving)
        for drop in self.max_drops:
            Target(max_drop=drop)
        check_counts(round_to=self.round_to)
        if not (self.policies and self.scopes and (self.savings or self.max_drops)):
            raise InvalidRatioError(
                "A front needs at least one policy, scope and target, for example policy uniform, "
                "scope all and memory saving 0.224."
            )

    def recovery_settings(self) -> list[RecoverySettings]:
        """Return the settings of every recovery of a chosen plan."""
        return [
            RecoverySettings(method=method, n_images=self.calib_images, seed=self.seed)
            for method in self.recoveries
            if method != "none"
        ]

    def cells(self) -> Iterator[PlanSettings]:
        """Yield the settings of every plan, target by target."""
        targets: list[tuple[float | None, float | None]] = [(s, None) for s in self.savings]
        targets += [(None, d) for d in self.max_drops]
        for saving, drop in targets:
            for policy in self.policies:
                for scope in self.scopes:
                    yield PlanSettings(
                        policy=policy,
                        memory_saving=saving,
                        max_drop=drop,
                        scope=scope,
                        round_to=self.round_to,
                    )
