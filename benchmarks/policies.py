"""Planners, criteria, recoveries and fine-tuning beside each other on the two demo models.

    python benchmarks/policies.py [--quick] [--json] [--cache DIR] [--out FILE] [--report]

One engine version and one result file. Every cell is kept under its settings as soon as it is
measured, so a stopped run goes on where it stopped; sweeps and trainings resume from the store in
``--cache``. Plans are made and chosen on the val split only; the test split (and its distorted
copy) is looked at once for every final model. ``--report`` measures nothing: it writes
``docs/results.md`` and its plots from the result file.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script from anywhere

import numpy as np
import torch

from benchmarks._cells import HOWS, PUBLISHED, Cells, pack, unpack
from benchmarks._policies_page import write_page
from benchmarks._policies_report import Results, accuracy_tables, headline
from benchmarks._report import RESULTS
from benchmarks._unstructured import prune_magnitudes, sparse_size
from psvit_core.data import EvalSet, load_data
from psvit_core.errors import TargetError
from psvit_core.evaluate import Prediction, conditions_of, outcome_of, predict
from psvit_core.finetune import finetune
from psvit_core.groups import summarize
from psvit_core.importance import CRITERIA, rank
from psvit_core.jobs.tasks import Engine, Subject, warm_up
from psvit_core.metrics.profile import latencies_in_turns, machine
from psvit_core.outcomes import Array, Outcome
from psvit_core.planners import DEFAULT_BUDGET, POLICIES, make_plan
from psvit_core.planners._base import Problem, Target, smallest_uniform
from psvit_core.plans import plan_from_ratios, reached_ratios
from psvit_core.records import (
    FinetuneSettings,
    Measurement,
    PrunePlan,
    SensitivityTable,
)
from psvit_core.recover import recover
from psvit_core.runtime import channels_last
from psvit_core.sensitivity.sweep import sweep
from psvit_core.sensitivity.table import DEFAULT_RATIOS
from psvit_core.size import memory_saving, plan_size
from psvit_core.store import Store, digest
from psvit_core.surgery import apply_plan
from psvit_core.zoo.base import SpikingModel

MODELS = ("e_spikeformer_digits", "sdt_v1_digits")
SAVINGS = (0.224, 0.2668, 0.4, 0.55, 0.7)
SCAN = (0.15, 0.3, 0.35, 0.45, 0.5, 0.6, 0.65)  # looked at as far as the loss of 3 pp needs it
FAR = (0.8, 0.9)  # predicted plans only
RANKED = (0.224, 0.4, 0.55)  # criteria
TUNED = (0.4, 0.55, 0.7)
CRITERION = "l2"  # of all policies
SCOPES = ("inner", "all")
RECOVERIES = ("none", "bn", "lsq", "both")
SEEDS = (0, 1, 2)
BUDGETS = {"measured 80": 80}  # of optimal
N_PLANNING = 250  # val images that plans are measured on while planning
LOSS = 3.0  # pp: the papers' setting
QUICK_IMAGES, QUICK_RATIOS = 40, (0.3, 0.6)


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
            store=self.store,
        )  # fmt: skip

    # ---- measuring -------------------------------------------------------------------------------

    def baseline(self, data: EvalSet) -> tuple[Array, Outcome]:
        """The unpruned model's logits and results."""
        if id(data) not in self._baselines:
            prediction = predict(self.model, data, self.run)
            found = outcome_of(data, prediction, prediction.logits)
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
        return outcome_of(data, prediction, self.baseline(data)[0])

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


def crossing(cells: Cells, model: str, recovery: str = "none") -> tuple[float, float] | None:
    """The neighbouring savings between which the better published policy comes to lose 3 pp."""
    below = 0.0
    for saving in sorted({*SAVINGS, *SCAN}):
        drop = published_drop(cells, model, saving, recovery)
        if drop is not None and drop >= LOSS:
            return below, saving
        if drop is not None:
            below = saving
    return None


def published_drop(cells: Cells, model: str, saving: float, recovery: str) -> float | None:
    """Test drop (pp) of the better of psvit and prime, seed 0; None where neither is tested."""
    base = cells.get("baseline", model)
    found = []
    for policy in PUBLISHED:
        plan = cells.best_plan(model, policy, saving)
        cell = plan and cells.get("test", model, plan["id"], recovery, 0)
        if cell and base:
            n = base["n"]
            lost = unpack(base["digits right"], n).mean() - unpack(cell["digits right"], n).mean()
            found.append(100 * float(lost))
    return min(found, default=None)


def full_run(benches: list[Bench], cells: Cells) -> None:
    """Everything, the most wanted first; what decides which plan is tested, before its tests."""
    for b in benches:
        cells.make(["baseline", b.name], b.baseline_cell)
        plans(b, POLICIES, SAVINGS, ("predicted",))
        plans(b, ("optimal",), SAVINGS, ("measured",), ("all",))
        for saving in SAVINGS:
            b.test_plans(POLICIES, saving, 0, ("none",))
    for b in benches:
        headlines(b, ("predicted",), SCOPES)
        for saving in sorted({*SAVINGS, *SCAN}):  # all policies without measuring
            b.test_plans(POLICIES, saving, 0, ("none",), ("predicted",))
    slow, fast = benches  # most of the time goes into plans that are measured on the way
    plans(fast, PUBLISHED, SAVINGS, ("measured",), ("inner",))
    for b in benches:
        plans(b, ("optimal",), (0.7,), ("measured 80",), ("all",))
    recovered([fast], POLICIES, SAVINGS, SEEDS)
    recovered([slow], ("uniform", "optimal"), SAVINGS, SEEDS)
    for b in benches:
        for name in CRITERIA:
            b.criterion_cells(name)
        for saving in SAVINGS:
            b.unstructured_cell(saving)
    plans(slow, ("prime",), (0.55, 0.7, 0.4), ("measured",), ("inner",))
    recovered([slow], POLICIES, SAVINGS, SEEDS)
    tune(slow, 1.0)
    tune(slow, 5.0)
    tune(fast, 1.0)
    tune(fast, 5.0)
    plans(slow, ("psvit",), (0.55, 0.7, 0.4), ("measured",), ("inner",))
    headlines(fast, ("measured",), ("inner",))
    headlines(slow, ("measured",), ("inner",), ("prime",))
    plans(slow, PUBLISHED, SAVINGS, ("measured",), ("inner",))
    recovered(benches, POLICIES, SAVINGS, SEEDS)
    for b in benches:  # how far recovery carries
        plans(b, POLICIES, FAR, ("predicted",), SCOPES)
    recovered(benches, POLICIES, FAR, SEEDS[:1])
    for b in benches:
        headlines(b, ("measured",), SCOPES)
        plans(b, PUBLISHED, SAVINGS, ("measured",))
    recovered(benches, POLICIES, SAVINGS, SEEDS)


def recovered(
    benches: list[Bench],
    policies: Iterable[str],
    savings: Iterable[float],
    seeds: Iterable[int],
) -> None:
    """Test the chosen plans of these policies after every recovery, seed by seed."""
    names, savings = tuple(policies), tuple(savings)
    for seed in seeds:
        for saving in savings:
            for b in benches:
                b.test_plans(names, saving, seed, RECOVERIES[min(seed, 1) :])


def headlines(
    bench: Bench,
    hows: Iterable[str],
    scopes: Iterable[str],
    policies: Iterable[str] = PUBLISHED,
) -> None:
    """Plans where the better published policy comes to lose 3 pp, until that is between two of all.

    The savings between are looked at one by one; better plans may move the place.
    """
    hows, scopes, policies = tuple(hows), tuple(scopes), tuple(policies)
    done: set[float] = set()
    while found := crossing(bench.cells, bench.name):
        low, high = found
        between = [s for s in SCAN if low < s < high]
        wanted = [*between[len(between) // 2 :][:1], high, low]
        todo = [s for s in wanted if s and s not in done]
        if not todo:
            return
        saving = todo[0]
        done.add(saving)
        plans(bench, policies, (saving,), hows, scopes)
        more = ("measured 80",) if "measured" in hows else ()
        plans(bench, ("optimal",), (saving,), ("predicted", "measured", *more), ("all",))
        bench.test_plans((*PUBLISHED, "optimal"), saving, 0, ("none",))


def plans(
    bench: Bench,
    policies: Iterable[str],
    savings: Iterable[float],
    hows: Iterable[str],
    scopes: Iterable[str] = SCOPES,
) -> None:
    """Plans of all these."""
    for saving in savings:
        for policy in policies:
            for scope in scopes:
                for how in hows:
                    bench.plan_cell(policy, saving, scope, how)


def tune(bench: Bench, epochs: float) -> None:
    """Fine-tuning of uniform and optimal at three savings."""
    for saving in TUNED:
        for policy in ("uniform", "optimal"):
            bench.tuned_cell(policy, saving, epochs)


def main() -> None:
    """Measure what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a minute's worth; not kept")
    parser.add_argument("--json", action="store_true", help="print the cells as one JSON object")
    parser.add_argument("--cache", default="cache/policies", help="folder of the store")
    parser.add_argument("--out", default=None, help="result file")
    parser.add_argument("--report", action="store_true", help="only write docs/results.md")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(chosen.out) if chosen.out else RESULTS / "policies.json"
    if chosen.report:
        docs = Path(__file__).resolve().parents[1] / "docs"
        print(write_page(Cells(path), docs, RESULTS / "planners.json", SAVINGS))
        return
    if chosen.quick:
        with tempfile.TemporaryDirectory() as folder:
            cells = Cells(Path(folder) / "policies.json", head())
            quick_run(Bench(MODELS[0], cells, Store(folder), QUICK_IMAGES, QUICK_RATIOS), cells)
    else:
        cells = Cells(path, head())
        store = Store(chosen.cache)
        full_run([Bench(model, cells, store) for model in MODELS], cells)
    if chosen.json:
        print(json.dumps({**cells.head, "cells": cells.cells}))
        return
    r = Results(cells)
    print("\n".join([*accuracy_tables(r, (0.4,) if chosen.quick else SAVINGS), *headline(r)]))


def head() -> dict[str, Any]:
    """What the result file says beside its cells."""
    return {
        "benchmark": "policies", "threads": 1, "machine": machine("cpu").processor,
        "versions": {p: version(p) for p in ("torch", "spikingjelly")},
        "planning images": N_PLANNING, "test sets": ["digits", "digits:distorted"],
    }  # fmt: skip


def quick_run(bench: Bench, cells: Cells) -> None:
    """A minute's worth: predicted plans of one model at one saving, on few images."""
    cells.make(["baseline", bench.name], bench.baseline_cell)
    plans(bench, POLICIES, (0.4,), ("predicted",))
    bench.test_plans(POLICIES, 0.4, 0, ("none", "bn"))


if __name__ == "__main__":
    main()
