"""What a configuration of ``run`` may contain, and its errors with field and line. No torch.

Settings that exist as records are derived from them, so that names, types and defaults are those of
the other commands.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from psvit_core.documents import Document, read_yaml
from psvit_core.errors import ConfigError, PsvitError, UnknownNameError
from psvit_core.files import expand, expand_spec
from psvit_core.records import (
    CRITERIA,
    POLICIES,
    RECOVERIES,
    RESOURCES,
    SCOPES,
    FinetuneSettings,
    PlanSettings,
    Subject,
    SweepSettings,
    check_counts,
)
from psvit_core.sensitivity.spec import MODES, check_ratios
from psvit_core.tasks.trials import VARIED, vary
from psvit_core.zoo.sizing import SIZE_ARGUMENTS

_SHOWN = 5  # errors of a message
_VALUE = 60  # characters of a value in a message
_LIMITS = ("memory_saving", "max_drop", "savings", "resource")  # of PlanSettings: the targets
_OWN = ("policy", "scope", "round_to", "locked", "bounds", "budget_evaluations", "budget_seconds")


class _Section(BaseModel):
    """A mapping of known fields; values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _one_of(what: str, known: tuple[str, ...]) -> AfterValidator:
    """Return a validator of names, whose message has the nearest one."""

    def check(name: str | None) -> str | None:
        if name is not None and name not in known:
            text = str(UnknownNameError(what, name, known)).replace("{", "(").replace("}", ")")
            raise PydanticCustomError("unknown_name", text)
        return name

    return AfterValidator(check)


def _section(name: str, record: type, fields: tuple[str, ...], **checks: Any) -> Any:
    """Return a section with fields of a record.

    Args:
        name: Of the class.
        record: The record.
        fields: Names of its fields.
        checks: Validator or limits by field.
    """
    hints = typing.get_type_hints(record)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        if field.name in fields:
            kind = hints[field.name]
            if field.name in checks:
                kind = Annotated[kind, checks[field.name]]
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = Field(default_factory=field.default_factory)
            found[field.name] = (kind, default)
    return create_model(name, __base__=_Section, **found)


class Model(_Section):
    """The network; the fields are the options of the other commands."""

    name: str  # registered name, or a file
    checkpoint: str | None = None
    entry: str | None = None
    ema: bool = False
    num_heads: int | None = None
    image_size: int | None = None
    time_steps: int | None = None
    family: str | None = None
    pooling_stat: str | None = None
    batch_coupled: bool | None = None
    chunk_size: int | None = None
    levels: int | None = None


class Data(_Section):
    """The images that plans are made and measured on."""

    spec: str | None = None  # None: those of the model card
    split: Annotated[str, _one_of("split for planning", ("train", "calib", "val"))] = "val"
    limit: Annotated[int, Field(ge=1)] | None = None
    bad_images: Annotated[str, _one_of("action", ("stop", "skip"))] = "stop"


class Compute(_Section):
    """How networks are run."""

    device: str = "cpu"
    batch: Annotated[int, Field(ge=1)] | None = None
    precision: str = "float32"
    workers: Annotated[int, Field(ge=0)] = 0


Sweep = _section(
    "Sweep",
    SweepSettings,
    tuple(f.name for f in dataclasses.fields(SweepSettings)),
    criterion=_one_of("criterion", CRITERIA),
    mode=_one_of("sweep mode", MODES),
)
Targets = _section(
    "Targets",
    PlanSettings,
    _LIMITS,
    memory_saving=Field(gt=0, lt=1),
    max_drop=Field(gt=0, lt=1),
    resource=_one_of("resource", RESOURCES),
)
Plan = _section(
    "Plan",
    PlanSettings,
    _OWN,
    policy=_one_of("policy", POLICIES),
    scope=_one_of("scope", SCOPES),
)
Finetune = _section(
    "Finetune", FinetuneSettings, tuple(f.name for f in dataclasses.fields(FinetuneSettings))
)
_TRIED: dict[str, Any] = {
    name: (tuple[kind, ...], ())  # type: ignore[valid-type]
    for name, kind in typing.get_type_hints(FinetuneSettings).items()
    if name in VARIED
}
#: Values to try by setting of the training.
Trials = create_model("Trials", __base__=_Section, **_TRIED)


class RunConfig(_Section):
    """A whole run."""

    version: Literal[1] = 1  # of this format
    out: str  # folder of the results
    model: Model
    data: Data = Data()
    compute: Compute = Compute()
    sweep: Sweep = Sweep()  # type: ignore[valid-type]
    targets: Targets  # type: ignore[valid-type]
    plan: Plan = Plan()  # type: ignore[valid-type]
    recovery: Annotated[str, _one_of("recovery", RECOVERIES)] = "auto"
    finetune: Finetune | None = None  # type: ignore[valid-type]  # None: no training
    trials: Trials = Trials()  # type: ignore[valid-type]
    exports: tuple[Annotated[str, _one_of("format", ("torch", "onnx", "pt2", "nir"))], ...] = ()
    test: bool = False  # judge the result on the test split at the end
    report: bool = True  # write it all as one HTML page

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return expand(self.out)

    @property
    def hash(self) -> str:
        """SHA-256 of all fields, defaults included."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def subject(self, plugin: str | None = None) -> Subject:
        """Return the model and the images, as the other commands take them.

        Args:
            plugin: File or module that registers custom models. A configuration cannot name it,
                because its code runs.
        """
        m = self.model.model_dump()
        arguments = {n: m.pop(n) for n in SIZE_ARGUMENTS}
        return Subject(
            model=str(_place(m.pop("name"))),
            checkpoint=_place(m.pop("checkpoint")),
            data=expand_spec(self.data.spec) if self.data.spec else None,
            split=self.data.split,
            limit=self.data.limit,
            bad_images=self.data.bad_images,
            plugin=plugin,
            recovery=self.recovery,
            arguments={n: value for n, value in arguments.items() if value is not None},
            **m,
            **self.compute.model_dump(),
        )

    def sweep_settings(self) -> SweepSettings:
        """Return the settings of the sweep."""
        fields = self.sweep.model_dump()  # type: ignore[attr-defined]
        return SweepSettings(**fields | {"ratios": check_ratios(fields["ratios"])})

    def plan_settings(self) -> PlanSettings:
        """Return the settings of the planner, targets included."""
        return PlanSettings(**self.targets.model_dump(), **self.plan.model_dump())  # type: ignore[attr-defined]

    def finetune_settings(self) -> FinetuneSettings | None:
        """Return the settings of the training; None without one."""
        return FinetuneSettings(**self.finetune.model_dump()) if self.finetune else None

    def trial_settings(self) -> tuple[FinetuneSettings, ...]:
        """Return the settings of all trainings, of which the best is kept; none for a single one.

        Raises:
            ConfigError: If there are values to try without a training.
            JobError: If there are too many.
        """
        values = {name: given for name, given in self.trials.model_dump().items() if given}  # type: ignore[attr-defined]
        settings = self.finetune_settings()
        if not values:
            return ()
        if settings is None:
            raise ConfigError("There is no training to try values in. Add finetune: {}.")
        return vary(settings, values)

    def checks(self) -> Iterator[tuple[tuple[str, ...], Callable[[], object]]]:
        """Yield the place of each field with a check of its values that needs no model."""
        yield ("sweep", "ratios"), self.sweep_settings
        yield ("targets",), lambda: self.plan_settings().target
        plan = self.plan_settings()
        yield (
            ("plan",),
            lambda: check_counts(round_to=plan.round_to, budget=plan.budget_evaluations),
        )
        if settings := self.finetune_settings():
            yield ("data", "split"), self._check_split
            from psvit_core.finetune import check_settings  # imports torch

            yield ("finetune",), lambda: check_settings(settings)
        yield ("trials",), self._check_trials

    def _check_trials(self) -> None:
        if trials := self.trial_settings():
            from psvit_core.finetune import check_settings  # imports torch

            for settings in trials:
                check_settings(settings)

    def _check_split(self) -> None:
        if self.data.split != "val":
            raise ConfigError(
                f"Training chooses its best epoch on the split val; got {self.data.split}. Use "
                "val, or omit finetune."
            )


def load_run_config(path: str | Path) -> RunConfig:
    """Read a configuration and check all that can be checked without the model.

    Raises:
        ConfigError: If the file is not a valid configuration. The message names file, line and
            field of every error, the first five of them.
    """
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        raise document.error((), "A configuration is a mapping with the field model, among others.")
    try:
        config = RunConfig.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        raise _config_error(document, error) from error
    for place, check in config.checks():
        try:
            check()
        except PsvitError as error:
            raise document.error(_nearer(document, place, str(error)), str(error)) from error
    return config


def _nearer(document: Document, place: tuple[str, ...], text: str) -> tuple[str, ...]:
    """Return the place of the field of a section that an error names, if the file has it."""
    given = document.data.get(place[0]) if len(place) == 1 else None
    named = [name for name in given or () if re.search(rf"\b{re.escape(name)}\b", text)]
    return (*place, *named[:1])


def _place(name: str | None) -> str | None:
    return str(expand(name)) if name and name.startswith("~") else name


# ---- messages ------------------------------------------------------------------------------------


def _config_error(document: Document, error: ValidationError) -> ConfigError:
    """Return all errors of a document as one, in the order of its lines."""
    found = sorted(
        (document.line_of(place), str(document.error(place, text)))
        for place, text in map(_error_text, error.errors(include_url=False))
    )
    texts = list(dict.fromkeys(text for _, text in found))
    more = f" And {len(texts) - _SHOWN} more errors." if len(texts) > _SHOWN else ""
    return ConfigError(" ".join(texts[:_SHOWN]) + more)


def _error_text(error: Any) -> tuple[tuple[str | int, ...], str]:
    """Return the place of an error and what is wrong, as a sentence."""
    place, kind = tuple(error["loc"]), error["type"]
    if kind == "extra_forbidden":
        return place, _unknown_field(place)
    if kind == "missing":
        return place, "This field is missing. Add it."
    value = f"{error['input']!r}"
    shown = value if len(value) <= _VALUE else f"{value[: _VALUE - 3]}..."
    if kind == "unknown_name":
        return place, error["msg"]
    text = error["msg"].replace("Input should be", "must be")
    return place, f"{text[0].upper()}{text[1:]}; got {shown}."


def _unknown_field(place: tuple[str | int, ...]) -> str:
    """Return the message about a field that does not exist, with the nearest one."""
    known = sorted(_fields_of(place[:-1]))
    near = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"No such field.{hint} Known: {', '.join(known)}."


def _fields_of(place: tuple[str | int, ...]) -> dict[str, FieldInfo]:
    """Return the fields of the section at a place."""
    section: type[BaseModel] = RunConfig
    for name in place:
        kind = section.model_fields[str(name)].annotation
        options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        section = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return dict(section.model_fields)
