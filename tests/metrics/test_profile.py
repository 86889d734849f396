"""Membrane state, peak activation memory, latency and energy models, on known cases."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from psvit_core import neurons
from psvit_core.cli import main
from psvit_core.errors import CancelledError, InvalidEnergyError, UnknownNameError
from psvit_core.evaluate import measure
from psvit_core.groups import summarize
from psvit_core.importance import rank
from psvit_core.kernels import lif
from psvit_core.metrics import profile as profiling
from psvit_core.metrics.energy import ENERGY_MODELS, at_energy, energy_model
from psvit_core.metrics.profile import (
    latencies_in_turns,
    latency_ms,
    peak_activation_bytes,
    profile_of,
    state_bytes,
    state_neurons,
)
from psvit_core.neurons import LIF
from psvit_core.plan.build import plan_from_ratios
from psvit_core.records import Measurement, Profile
from psvit_core.runtime import Run
from psvit_core.storage.store import Store
from tests.tiny import INTEGER_NAMES, NAMES, tiny_data, tiny_input, tiny_model


class KnownPeak(nn.Module):
    """Four activations of known sizes and lifetimes: the third marks the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(100))  # 400 bytes of weights

    def forward(self, x: Tensor) -> Tensor:
        a = x.repeat(3)  # x, a: 400 + 1200
        b = a.view(3, 100) + self.weight  # and b: + 1200; the view needs no memory
        del a  # x, b: 1600
        c = torch.cat([b, b])  # and c: + 2400 = 4000
        del b  # x, c: 2800
        c.mul_(2)  # in place: no new memory
        return c.sum()  # + 4


def test_known_peak_activation() -> None:
    x = torch.ones(100)
    with torch.no_grad():
        assert peak_activation_bytes(KnownPeak(), x) == 4 * (100 + 300 + 600)
        assert peak_activation_bytes(nn.Identity(), x) == 400  # only the input
        wide = nn.Sequential(nn.Linear(100, 1000, bias=False), nn.Linear(1000, 10, bias=False))
        assert peak_activation_bytes(wide, x) == 4 * (100 + 1000 + 10)  # layer 1's output lives on


@pytest.mark.parametrize("name", NAMES)
def test_all_families(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "MIN_RUNS", 2)
    monkeypatch.setattr(profiling, "MAX_RUNS", 2)
    model, data = tiny_model(name).eval(), tiny_data(name, 4)
    found = profile_of(model, data, Run(batch=3))
    assert set(found.peak_activation_bytes) == set(found.latency_ms) == {"1", "3"}
    one, three = found.peak_activation_bytes.values()
    assert 2.5 * one < three <= 3 * one  # nearly all memory grows with the batch
    again = profile_of(model, data, Run(batch=3))
    assert again.peak_activation_bytes == found.peak_activation_bytes
    assert again.machine == found.machine
    assert (found.state_bytes == 0) == (name in INTEGER_NAMES)  # integer neurons have no state
    assert Profile.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    times = found.latency_ms["1"]
    assert 0 < times.low <= times.median <= times.high
    assert times.n_runs == 2


@pytest.mark.parametrize("name", [n for n in NAMES if n not in INTEGER_NAMES])
def test_state_matches_the_neurons(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare with the potentials ``v`` of SpikingJelly's neurons before their reset."""
    model, held = tiny_model(name, torch.float64), []
    reset = functional.reset_net

    def record_and_reset(neuron: LIF) -> None:
        if isinstance(neuron.v, Tensor):
            held.append(neuron.v.numel() * neuron.v.element_size())
        reset(neuron)

    monkeypatch.setattr(functional, "reset_net", record_and_reset)
    with torch.no_grad(), neurons.eager_neurons():
        model(tiny_input(name, torch.float64)[:1])
    assert state_bytes(model, torch.float64) == sum(held)
    assert len(held) == len(state_neurons(model)) > 5


def test_kernels_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lif._mode, "compiled", True)
    before = lif.kernels()
    with lif.plain_kernels():
        assert lif.kernels() == "plain"
        assert not lif._mode.compiled
    assert lif.kernels() == before
    assert lif._mode.compiled


def test_latency_runs_for_the_minimum_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    clock = iter(range(10_000))  # each reading adds a second: a run takes one second
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(len(x))
            return x

    times = latency_ms(Counting(), torch.ones(2))
    assert times.n_runs == profiling.MIN_RUNS
    assert len(runs) == profiling.MIN_RUNS + profiling.WARM_UP
    assert (times.low, times.median, times.high) == (1000.0, 1000.0, 1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: 0.0)
    assert latency_ms(Counting(), torch.ones(2)).n_runs == profiling.MAX_RUNS

    def stop() -> None:
        raise CancelledError("enough")

    with pytest.raises(CancelledError):
        latency_ms(Counting(), torch.ones(2), tick=stop)


def test_latencies_in_turns_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Costly(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: Tensor) -> Tensor:
            order.append(self.seconds)
            now[0] += self.seconds * len(order)  # other load slows all runs more and more
            return x

    mine, other = latencies_in_turns((Costly(0.2), Costly(0.4)), torch.ones(2))
    assert mine / other == pytest.approx(0.5, abs=0.1)
    assert order[-6:] in ([0.2, 0.4] * 3, [0.4, 0.2] * 3)


def test_a_stored_profile_is_only_for_its_machine_and_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data, store = tiny_model("sdt_v1").eval(), tiny_data("sdt_v1", 4), Store(tmp_path)
    summary = summarize(model, {"l2": rank(model, "l2")})
    plan = plan_from_ratios(summary, {g.group_id: 0.5 for g in summary.groups}, criterion="l2")
    taken: list[int] = []
    real = profile_of

    def counted(*arguments: Any, **named: Any) -> Profile:
        taken.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr("psvit_core.evaluate.profile_of", counted)
    plain = measure(model, data, plan, run=Run(batch=2), store=store)
    assert plain.profile is None
    with_profile = measure(model, data, plan, run=Run(batch=2), store=store, profile=True)
    assert with_profile.profile is not None
    assert dataclasses.replace(with_profile, profile=None) == plain
    assert measure(model, data, plan, run=Run(batch=2), store=store, profile=True) == with_profile
    assert measure(model, data, plan, run=Run(batch=2), store=store).profile is None
    assert len(taken) == 1
    other = dataclasses.replace(with_profile.profile.machine, processor="another")
    monkeypatch.setattr("psvit_core.evaluate.machine", lambda device: other)
    measure(model, data, plan, run=Run(batch=2), store=store, profile=True)
    assert len(taken) == 2
    prepared = dataclasses.replace(data, transform="resized to another size")
    measure(model, prepared, plan, run=Run(batch=2), store=store, profile=True)
    assert len(taken) == 3
    model.arguments |= {"img_size_h": 32, "img_size_w": 32}  # same weights, other activations
    measure(model, data, plan, run=Run(batch=2), store=store, profile=True)
    assert len(taken) == 4
    assert Measurement.from_dict(with_profile.to_dict()) == with_profile


def test_energy_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert energy_model().source
    assert (energy_model().mac_pj, energy_model().sop_pj) == (4.6, 0.9)
    own = energy_model("45nm-int8", mac_pj=1.0)
    assert (own.name, own.mac_pj, own.sop_pj) == ("own", 1.0, ENERGY_MODELS["45nm-int8"].sop_pj)
    with pytest.raises(UnknownNameError, match="45nm-fp32"):
        energy_model("45nm")
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InvalidEnergyError, match="picojoules"):
            energy_model(sop_pj=bad)
    measured = measure(tiny_model("sdt_v1"), tiny_data("sdt_v1", 3))
    other = at_energy(measured, own)
    assert other.energy_pj == pytest.approx(measured.macs_real + 0.03 * measured.sops)
    assert other.energy_model == own
    assert at_energy(other, energy_model()) == measured
    old = {k: v for k, v in measured.to_dict().items() if k not in ("energy_model", "profile")}
    assert Measurement.from_dict(old) == measured  # a document without the newer fields


def test_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PSVIT_CACHE", str(tmp_path))
    command = ["evaluate", "e_spikeformer_digits", "--limit", "10", "--energy", "45nm-int8"]
    assert main([*command, "--profile", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["profile"]["state_bytes"] == 0
    assert set(result["profile"]["latency_ms"]) == {"1", "10"}
    assert result["energy_pj"] == pytest.approx(0.23 * result["macs_real"] + 0.03 * result["sops"])
    assert main([*command, "--profile"]) == 0
    text = capsys.readouterr().out
    assert "latency   batch 10" in text
    assert "45nm-int8" in text
    assert main([*command, "--energy-mac", "-2"]) == 2
    assert "picojoules" in capsys.readouterr().err
