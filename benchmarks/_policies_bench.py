"""One model of the policy benchmark: data, sweep, plans and cells."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from benchmarks._cells import HOWS, Cells, pack
from benchmarks._unstructured import prune_magnitudes, sparse_size
from psvit_core.data import EvalSet, load_data
from psvit_core.errors import TargetError
from psvit_core.evaluate import Prediction, conditions_of, outcome_of, predict
from psvit_core.finetune import finetune
from psvit_core.groups import summarize
from psvit_core.importance import CRITERIA, rank
from psvit_core.metrics.profile import latencies_in_turns
from psvit_core.plan.build import DEFAULT_CRITERIA, plan_from_ratios, reached_ratios
from psvit_core.plan.size import memory_saving, plan_size
from psvit_core.planners import make_plan
from psvit_core.planners._base import Problem, smallest_uniform
from psvit_core.records import (
    DEFAULT_BUDGET,
    DEFAULT_RATIOS,
    FinetuneSettings,
    Measurement,
    PrunePlan,
    SensitivityTable,
    Subject,
    Target,
)
from psvit_core.recover import recover
from psvit_core.runtime import channels_last
from psvit_core.sensitivity.sweep import sweep
from psvit_core.storage.predictions import Array, Outcome
from psvit_core.storage.store import Store, digest
from psvit_core.surgery import apply_plan
from psvit_core.tasks.session import Session, warm_up
from psvit_core.zoo.base import SpikingModel

CRITERION = DEFAULT_CRITERIA[0]  # used by all policies
SCOPES = ("inner", "all")
RANKED = (0.224, 0.4, 0.55)  # savings at which criteria are compared
BUDGETS = {"measured 80": 80}  # plans that optimal measures
N_PLANNING = 250  # val images for measurements while planning


class Bench:
    """One model: data, sweep, plans and cells."""

    def __init__(
        self,
        model: str,
        cells: Cells,
        store: Store,
        limit: int | None = None,
        ratios: Sequence[float] = DEFAULT_RATIOS,
    ) -> None:
        self.name, self.cells, self.store = model, cells, store
        self.ratios = ratios
        self.session = Session(Subject(model=model, limit=limit), store)
        for _ in warm_up(self.session):
            pass
        self.model, self.run = self.session.model, self.session.run
        self.val = self.session.data
        self.planning = self.val.limit(N_PLANNING)
        transform = self.session.card.transform
        self.tests = {
            spec: load_data(spec, split="test", transform=transform, limit=limit)
            for spec in ("digits", "digits:distorted")
        }
        self._memo: dict[str, Measurement] = {}
        self._baselines: dict[int, tuple[Array, Outcome]] = {}

    @cached_property
    def table(self) -> SensitivityTable:
        """The sweep of all groups on the val split, run unless it is stored."""
        return sweep(
            self.model,
            self.val,
            criterion=CRITERION,
            ratios=self.ratios,
            run=self.run,
            calib=self.session.calib(256, 0),
            store=self.store,
        )

    # ---- measuring -------------------------------------------------------------------------------

    def baseline(self, data: EvalSet) -> tuple[Array, Outcome]:
        """Return the unpruned model's logits and results."""
        if id(data) not in self._baselines:
            prediction = predict(self.model, data, self.run)
            found = outcome_of(data, prediction, prediction.logits, self.run)
            self._baselines[id(data)] = (prediction.logits, found)
        return self._baselines[id(data)]

    def outcome(self, model: SpikingModel, data: EvalSet) -> Outcome:
        """Return a model's results, compared with the unpruned model's; spikes are not counted."""
        placed = copy.deepcopy(model).to(memory_format=torch.channels_last)
        with torch.no_grad():
            found = [placed(channels_last(x)) for x in data.batches(self.run.batch, self.run.dtype)]
        prediction = Prediction(
            logits=torch.cat(found).numpy(), sops=np.zeros(len(data)), firing={}
        )
        return outcome_of(data, prediction, self.baseline(data)[0], self.run)

    def measured(self, plan: PrunePlan) -> Measurement:
        """Measure a plan on the planning images; each distinct plan once."""
        key = plan_id(plan)
        if key not in self._memo:
            found = self.outcome(apply_plan(self.model, plan), self.planning)
            base = self.baseline(self.planning)[1]
            self._memo[key] = Measurement(
                model=self.name,
                weights_hash=plan.weights_hash,
                conditions=conditions_of(self.model, self.planning, self.run),
                accuracy=found.accuracy(),
                size=plan_size(self.table.summary, plan),
                sops=float(found.sops.mean()),
                macs_real=0.0,
                energy_pj=0.0,
                firing={},
                memory_saving=memory_saving(self.table.summary, plan),
                drop=found.drop_from(base),
                kl=float(found.kl.mean()),
                plan=plan,
            )
        return self._memo[key]

    def baseline_cell(self) -> dict[str, Any]:
        """Return the cell of the unpruned model."""
        return {
            "n": len(self.tests["digits"]),
            "val n": len(self.val),
            "bytes": plan_size(self.table.summary, None).bytes,
            "val right": pack(self.baseline(self.val)[1].correct),
            **self.tested(self.model),
        }

    def tested(self, model: SpikingModel) -> dict[str, Any]:
        """Return which images of both test sets a final model classifies correctly, packed."""
        return {
            f"{spec} right": pack(self.outcome(model, data).correct)
            for spec, data in self.tests.items()
        }

    # ---- plans -----------------------------------------------------------------------------------

    def plan_cell(self, policy: str, saving: float, scope: str, how: str) -> None:
        """Make a plan (``how``: one of ``HOWS``) and evaluate it on all val images."""

        def make() -> dict[str, Any]:
            asked: set[str] = set()
            start = time.perf_counter()

            def measure(plan: PrunePlan) -> Measurement:
                asked.add(plan_id(plan))
                return self.measured(plan)

            try:
                plan = make_plan(
                    self.table,
                    policy,
                    memory_saving=saving,
                    scope=scope,
                    measure=None if how == "predicted" else measure,
                    # The published policies measure as many plans as they ask for.
                    budget=BUDGETS.get(how, DEFAULT_BUDGET) if policy == "optimal" else 10_000,
                )
            except TargetError as error:
                return {"unreached": str(error)}
            seconds = time.perf_counter() - start
            return {**self.judged(plan), "seconds": seconds, "measured": len(asked)}

        self.cells.make(["plan", self.name, policy, saving, scope, how], make)

    def judged(self, plan: PrunePlan) -> dict[str, Any]:
        """Return a plan with its results on all val images."""
        found = self.outcome(apply_plan(self.model, plan), self.val)
        return {
            "ratios": {g: r for g, r in reached_ratios(self.table.summary, plan).items() if r},
            "id": plan_id(plan),
            "saved": memory_saving(self.table.summary, plan),
            "bytes": plan_size(self.table.summary, plan).bytes,
            "weights": plan_size(self.table.summary, plan).params,
            "val accuracy": float(found.correct.mean()),
            "val kl": float(found.kl.mean()),
        }

    def chosen(self, policy: str, saving: float) -> dict[str, Any] | None:
        """Return a policy's best known plan at a saving, by the val split."""
        return self.cells.best_plan(self.name, policy, saving)

    def test_cell(self, plan: dict[str, Any], seed: int, recoveries: Iterable[str]) -> None:
        """Test a plan's final models, one per recovery."""
        wanted = [
            r for r in recoveries if not self.cells.has(["test", self.name, plan["id"], r, seed])
        ]
        if not wanted:
            return
        made = plan_from_ratios(self.table.summary, plan["ratios"], criterion=self.table.criterion)
        small = apply_plan(self.model, made)
        for recovery, model in self.recovered(small, made, seed, wanted):
            self.cells.make(
                ["test", self.name, plan["id"], recovery, seed],
                functools.partial(self.tested, model),
            )

    def recovered(
        self, small: SpikingModel, plan: PrunePlan, seed: int, wanted: list[str]
    ) -> Iterable[tuple[str, SpikingModel]]:
        """Yield the pruned model after each requested recovery; ``both`` refits readers first."""
        calib = self.session.calib(256, seed)

        def by(model: SpikingModel, method: str) -> SpikingModel:
            return recover(model, self.model, plan, calib, method=method, run=self.run, seed=seed)[
                0
            ]

        if "none" in wanted:
            yield "none", small
        if "bn" in wanted:
            yield "bn", by(small, "bn")
        if {"lsq", "both"} & set(wanted):
            refitted = by(small, "lsq")
            yield "lsq", refitted
            yield "both", by(refitted, "bn")

    def test_plans(
        self,
        policies: Iterable[str],
        saving: float,
        seed: int,
        recoveries: Iterable[str],
        hows: Sequence[str] = HOWS,
    ) -> None:
        """Run ``test_cell`` for the chosen plans of some policies."""
        names = list(recoveries)
        for policy in policies:
            if plan := self.cells.best_plan(self.name, policy, saving, hows):
                self.test_cell(plan, seed, names)

    # ---- the other parts -------------------------------------------------------------------------

    def criterion_cells(self, name: str) -> None:
        """Evaluate uniform plans ranked by one criterion on the val images."""
        if all(
            self.cells.has(["criterion", self.name, name, s, c]) for s in RANKED for c in SCOPES
        ):
            return
        calib = self.session.calib(256, 0) if CRITERIA[name].needs_images else None
        ranking = rank(self.model, name, calib=calib, run=self.run, store=self.store)
        summary = summarize(self.model, {name: ranking})
        for scope in SCOPES:
            for saving in RANKED:

                def make(saving: float = saving, scope: str = scope) -> dict[str, Any]:
                    target = Target(saving=saving)
                    problem = Problem(table=self.table, target=target, scope=scope)
                    try:
                        ratio = smallest_uniform(problem, saving)
                    except TargetError as error:
                        return {"unreached": str(error)}
                    plan = plan_from_ratios(summary, problem.uniform_ratios(ratio), criterion=name)
                    found = self.outcome(apply_plan(self.model, plan), self.val)
                    return {"right": pack(found.correct), "kl": float(found.kl.mean())}

                self.cells.make(["criterion", self.name, name, saving, scope], make)


def unstructured_cell(bench: Bench, saving: float) -> None:
    """Prune single weights by magnitude until as many are left as in the plan of ``optimal``."""
    plan = bench.chosen("optimal", saving)
    if plan is None:
        return

    def make() -> dict[str, Any]:
        made = plan_from_ratios(
            bench.table.summary, plan["ratios"], criterion=bench.table.criterion
        )
        ours = apply_plan(bench.model, made)
        full, small = sparse_size(bench.model), sparse_size(ours)
        zeros = prune_magnitudes(bench.model, 1 - small.n_weights / full.n_weights)
        size = sparse_size(zeros)
        x = next(bench.val.take([0]).batches(1))
        full_ms, ours_ms, zeros_ms = latencies_in_turns((bench.model, ours, zeros), x)
        return {
            "weights": small.n_weights,
            "of": full.n_weights,
            "left": size.n_left,
            "ours bytes": small.dense,
            "dense bytes": size.dense,
            "bitmap bytes": size.bitmap,
            "csr bytes": size.csr,
            "full ms": full_ms,
            "ours ms": ours_ms,
            "zeros ms": zeros_ms,
            **bench.tested(zeros),
        }

    bench.cells.make(["unstructured", bench.name, plan["id"]], make)


def tuned_cell(bench: Bench, policy: str, saving: float, epochs: float) -> None:
    """Fine-tune a plan without recovery; the val images choose the epoch."""
    plan = bench.chosen(policy, saving)
    if plan is None:
        return

    def make() -> dict[str, Any]:
        made = plan_from_ratios(
            bench.table.summary, plan["ratios"], criterion=bench.table.criterion
        )
        small = apply_plan(bench.model, made)
        train = load_data("digits", split="train", transform=bench.session.card.transform)
        folder = bench.store.place("policies", f"{plan['id']}-{epochs}", "x").parent
        start = time.perf_counter()
        done = finetune(
            small,
            train,
            bench.val,
            teacher=bench.model,
            run=bench.run,
            folder=folder,
            settings=FinetuneSettings(epochs=epochs),
        )
        return {
            "plan": plan["id"],
            "seconds": time.perf_counter() - start,
            "best epoch": done.best_epoch,
            **bench.tested(done.model),
        }

    bench.cells.make(["tuned", bench.name, plan["id"], epochs], make)


def plan_id(plan: PrunePlan) -> str:
    """Return an id that is the same for equal kept units."""
    return digest({group: list(units) for group, units in plan.kept.items()})[:12]
