"""One model in the benchmark of the policies: its data, its sweep, its plans, and their cells."""

from __future__ import annotations

import copy
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
from psvit_core.jobs.engine import Engine, Subject, warm_up
from psvit_core.metrics.profile import latencies_in_turns
from psvit_core.outcomes import Array, Outcome
from psvit_core.planners import DEFAULT_BUDGET, make_plan
from psvit_core.planners._base import Problem, Target, smallest_uniform
from psvit_core.plans import DEFAULT_CRITERIA, plan_from_ratios, reached_ratios
from psvit_core.records import FinetuneSettings, Measurement, PrunePlan, SensitivityTable
from psvit_core.recover import recover
from psvit_core.runtime import channels_last
from psvit_core.sensitivity.sweep import sweep
from psvit_core.sensitivity.table import DEFAULT_RATIOS
from psvit_core.size import memory_saving, plan_size
from psvit_core.store import Store, digest
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel

CRITERION = DEFAULT_CRITERIA[0]  # of all policies
SCOPES = ("inner", "all")
RANKED = (0.224, 0.4, 0.55)  # criteria
BUDGETS = {"measured 80": 80}  # of optimal
N_PLANNING = 250  # val images that plans are measured on while planning


class Bench:
    """One model: its data, its sweep, its plans and their cells."""

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
        self.engine = Engine(Subject(model=model, limit=limit), store)
        for _ in warm_up(self.engine):
            pass
        self.model, self.run = self.engine.model, self.engine.run
        self.val = self.engine.data
        self.planning = self.val.limit(N_PLANNING)
        transform = self.engine.card.transform
        self.tests = {
            spec: load_data(spec, split="test", transform=transform, limit=limit)
            for spec in ("digits", "digits:distorted")
        }
        self._memo: dict[str, Measurement] = {}
        self._baselines: dict[int, tuple[Array, Outcome]] = {}

    @cached_property
    def table(self) -> SensitivityTable:
        """The sweep of all groups on the val split, from the store where it is there."""
        return sweep(
            self.model, self.val, criterion=CRITERION, ratios=self.ratios, run=self.run,
            calib=self.engine.calib(256, 0), store=self.store,
        )  # fmt: skip

    # ---- measuring -------------------------------------------------------------------------------

    def baseline(self, data: EvalSet) -> tuple[Array, Outcome]:
        """The unpruned model's logits and results."""
        if id(data) not in self._baselines:
            prediction = predict(self.model, data, self.run)
            found = outcome_of(data, prediction, prediction.logits, self.run)
            self._baselines[id(data)] = (prediction.logits, found)
        return self._baselines[id(data)]

    def outcome(self, model: SpikingModel, data: EvalSet) -> Outcome:
        """A model's results beside the unpruned one's; spikes are not counted."""
        placed = copy.deepcopy(model).to(memory_format=torch.channels_last)
        with torch.no_grad():
            found = [placed(channels_last(x)) for x in data.batches(self.run.batch, self.run.dtype)]
        prediction = Prediction(
            logits=torch.cat(found).numpy(), sops=np.zeros(len(data)), firing={}
        )
        return outcome_of(data, prediction, self.baseline(data)[0], self.run)

    def measured(self, plan: PrunePlan) -> Measurement:
        """A plan on the planning images; each distinct plan once."""
        key = plan_id(plan)
        if key not in self._memo:
            found = self.outcome(apply_plan(self.model, plan), self.planning)
            base = self.baseline(self.planning)[1]
            self._memo[key] = Measurement(
                model=self.name, weights_hash=plan.weights_hash,
                conditions=conditions_of(self.model, self.planning, self.run),
                accuracy=found.accuracy(), size=plan_size(self.table.summary, plan),
                sops=float(found.sops.mean()), macs_real=0.0, energy_pj=0.0, firing={},
                memory_saving=memory_saving(self.table.summary, plan),
                drop=found.drop_from(base), kl=float(found.kl.mean()), plan=plan,
            )  # fmt: skip
        return self._memo[key]

    def baseline_cell(self) -> dict[str, Any]:
        """The unpruned model."""
        return {
            "n": len(self.tests["digits"]), "val n": len(self.val),
            "bytes": plan_size(self.table.summary, None).bytes,
            "val right": pack(self.baseline(self.val)[1].correct), **self.tested(self.model),
        }  # fmt: skip

    def tested(self, model: SpikingModel) -> dict[str, Any]:
        """A final model on both test sets: what is right, packed."""
        return {
            f"{spec} right": pack(self.outcome(model, data).correct)
            for spec, data in self.tests.items()
        }

    # ---- plans -----------------------------------------------------------------------------------

    def plan_cell(self, policy: str, saving: float, scope: str, how: str) -> None:
        """Make a plan (``how``: of ``HOWS``) and judge it on all val images."""

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
                    budget=BUDGETS.get(how, DEFAULT_BUDGET),
                )
            except TargetError as error:
                return {"unreached": str(error)}
            seconds = time.perf_counter() - start
            return {**self.judged(plan), "seconds": seconds, "measured": len(asked)}

        self.cells.make(["plan", self.name, policy, saving, scope, how], make)

    def judged(self, plan: PrunePlan) -> dict[str, Any]:
        """What a plan is and what it gives on all val images."""
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
        """The best known plan of a policy at a saving by the val split."""
        return self.cells.best_plan(self.name, policy, saving)

    def test_cell(self, plan: dict[str, Any], seed: int, recoveries: Iterable[str]) -> None:
        """A plan's final models on the test sets, after each recovery."""
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
                lambda model=model: self.tested(model),
            )

    def recovered(
        self, small: SpikingModel, plan: PrunePlan, seed: int, wanted: list[str]
    ) -> Iterable[tuple[str, SpikingModel]]:
        """The pruned model after each wanted recovery; ``both`` is BatchNorms after readers."""
        calib = self.engine.calib(256, seed)

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
        """``test_cell`` of the chosen plans of some policies."""
        names = list(recoveries)
        for policy in policies:
            if plan := self.cells.best_plan(self.name, policy, saving, hows):
                self.test_cell(plan, seed, names)

    # ---- the other parts -------------------------------------------------------------------------

    def criterion_cells(self, name: str) -> None:
        """Uniform plans ranked by one criterion, on the val images."""
        if all(
            self.cells.has(["criterion", self.name, name, s, c]) for s in RANKED for c in SCOPES
        ):
            return
        calib = self.engine.calib(256, 0) if CRITERIA[name].needs_images else None
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

    def unstructured_cell(self, saving: float) -> None:
        """Magnitude pruning to as many weights as the plan of ``optimal`` leaves."""
        plan = self.chosen("optimal", saving)
        if plan is None:
            return

        def make() -> dict[str, Any]:
            made = plan_from_ratios(
                self.table.summary, plan["ratios"], criterion=self.table.criterion
            )
            ours = apply_plan(self.model, made)
            full, small = sparse_size(self.model), sparse_size(ours)
            zeros = prune_magnitudes(self.model, 1 - small.n_weights / full.n_weights)
            size = sparse_size(zeros)
            x = next(self.val.take([0]).batches(1))
            full_ms, ours_ms, zeros_ms = latencies_in_turns((self.model, ours, zeros), x)
            return {
                "weights": small.n_weights, "of": full.n_weights, "left": size.n_left,
                "ours bytes": small.dense, "dense bytes": size.dense, "bitmap bytes": size.bitmap,
                "csr bytes": size.csr, "full ms": full_ms, "ours ms": ours_ms,
                "zeros ms": zeros_ms, **self.tested(zeros),
            }  # fmt: skip

        self.cells.make(["unstructured", self.name, plan["id"]], make)

    def tuned_cell(self, policy: str, saving: float, epochs: float) -> None:
        """A plan without recovery, fine-tuned; the epoch is chosen on the val images."""
        plan = self.chosen(policy, saving)
        if plan is None:
            return

        def make() -> dict[str, Any]:
            made = plan_from_ratios(
                self.table.summary, plan["ratios"], criterion=self.table.criterion
            )
            small = apply_plan(self.model, made)
            train = load_data("digits", split="train", transform=self.engine.card.transform)
            folder = self.store.place("policies", f"{plan['id']}-{epochs}", "x").parent
            start = time.perf_counter()
            done = finetune(
                small, train, self.val, teacher=self.model, run=self.run, folder=folder,
                settings=FinetuneSettings(epochs=epochs),
            )  # fmt: skip
            return {
                "plan": plan["id"], "seconds": time.perf_counter() - start,
                "best epoch": done.best_epoch, **self.tested(done.model),
            }  # fmt: skip

        self.cells.make(["tuned", self.name, plan["id"], epochs], make)


def plan_id(plan: PrunePlan) -> str:
    """Same for equal kept units."""
    return digest({group: list(units) for group, units in plan.kept.items()})[:12]
