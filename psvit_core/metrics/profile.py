"""Run-time cost of a forward pass: membrane state, peak activation memory, latency.

Membrane state is the memory that step-by-step hardware needs between two time steps: one potential
per stateful neuron. (The kernels here run a layer through all steps at once and keep its state only
for that time.) Integer-valued neurons have no state.
"""

from __future__ import annotations

import platform
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psvit_core.callbacks import Tick, keep_going
from psvit_core.data import EvalSet
from psvit_core.kernels import lif
from psvit_core.neurons import LIF
from psvit_core.records import Machine, Profile, Quartiles
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

WARM_UP = 2  # runs that are not timed
MIN_RUNS, MAX_RUNS = 5, 50
MIN_SECONDS = 1.0  # keep timing, up to MAX_RUNS, until this much time is measured


def profile_of(model: SpikingModel, data: EvalSet, run: Run, *, tick: Tick = keep_going) -> Profile:
    """Measure run-time memory and latency at batch size 1 and the run's, on the first images.

    Args:
        model: Model in evaluation mode, placed on the run's device.
        data: Images; decoding is not timed.
        run: Device, batch, precision.
        tick: Called before each forward pass; may raise to stop.
    """
    images = data.take(range(min(run.batch, len(data))))
    x = next(images.batches(len(images), run.dtype)).to(run.device)
    peaks: dict[str, int] = {}
    times: dict[str, Quartiles] = {}
    with torch.no_grad(), run.autocast:
        for batch in sorted({1, len(x)}):
            tick()
            peaks[str(batch)] = peak_activation_bytes(model, x[:batch].clone())
            times[str(batch)] = latency_ms(model, x[:batch], tick=tick)
    return Profile(
        state_bytes=state_bytes(model, run.dtype),
        peak_activation_bytes=peaks,
        latency_ms=times,
        machine=machine(run.device),
    )


# ---- membrane state --------------------------------------------------------------------------


def state_neurons(model: SpikingModel) -> dict[str, int]:
    """Return the number of neurons with a membrane potential per image, by neuron layer.

    Uses one forward without data, at the model's current widths.
    """
    empty = model.resized(model.widths)
    neurons: dict[str, int] = {}

    def counting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            neurons[name] = output[0].numel()  # (T, neurons of one image)

        return hook

    for name, module in empty.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(counting(name))
    with torch.no_grad():
        dtype = next(empty.parameters()).dtype
        empty(torch.empty(1, *model.input_shape, dtype=dtype, device="meta"))
    return neurons


def state_bytes(model: SpikingModel, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes of one image's membrane potentials: stateful neurons times ``dtype``'s size.

    Integer-valued neurons have no state.
    """
    return sum(state_neurons(model).values()) * dtype.itemsize


# ---- peak activation memory ------------------------------------------------------------------


def peak_activation_bytes(model: nn.Module, x: Tensor) -> int:
    """Return the peak memory of ``model(x)`` in bytes, without the weights, with ``x``.

    On CUDA, it is the peak of the allocator (in blocks of 512 bytes, with library workspaces). The
    CPU has no such allocator, so the bytes of live tensor storages are counted: a storage counts in
    full from the operation that returns it until it is freed, and views share their storage.
    Memory that a kernel allocates and frees internally is not counted. The CPU result is therefore
    the same in every run. It is measured with the plain LIF kernels.

    Args:
        model: Model in evaluation mode, run without gradients.
        x: Input on the model's device, with a storage of its own.
    """
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        model(x)
        torch.cuda.synchronize(x.device)
        return torch.cuda.max_memory_allocated(x.device) - before + x.untyped_storage().nbytes()
    tracker = LiveBytes([*model.parameters(), *model.buffers()], x)
    with lif.plain_kernels(), tracker:
        model(x)
    return tracker.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensor storages while operators run.

    Args:
        ignored: Tensors that are not counted; neither are their views.
        x: The input, counted from the start.
    """

    def __init__(self, ignored: Sequence[Tensor], x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._seen = {t.untyped_storage()._cdata for t in ignored}
        self._count(x)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size).atexit = False

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


# ---- latency ---------------------------------------------------------------------------------


def latency_ms(model: nn.Module, x: Tensor, *, tick: Tick = keep_going) -> Quartiles:
    """Measure the median and quartiles of one forward pass in milliseconds, after warm-up runs.

    Times at least ``MIN_RUNS`` runs, and more, up to ``MAX_RUNS``, until they took ``MIN_SECONDS``.

    Args:
        model: Model in evaluation mode, run without gradients.
        x: Input on the model's device.
        tick: Called before each run and not timed; may raise to stop.
    """
    times = list(_times(model, x, tick))
    low, median, high = (float(q) for q in np.percentile(times, (25, 50, 75)))
    return Quartiles(median=median, low=low, high=high, n_runs=len(times))


def latencies_in_turns(
    models: Sequence[nn.Module], x: Tensor, *, runs: int | None = None, tick: Tick = keep_going
) -> list[float]:
    """Measure the median latency of each model in milliseconds, alternating between the models.

    Alternating runs share the machine's other load, so the latencies are comparable.

    Args:
        models: Models in evaluation mode.
        x: Input on the models' device.
        runs: Timed runs of each; None: as many as ``latency_ms`` times of the slowest.
        tick: Called before each run and not timed; may raise to stop.
    """
    with torch.no_grad():
        timed = (islice(_times(model, x, tick), runs) for model in models)
        turns = list(zip(*timed, strict=False))
    medians: list[float] = np.median(turns, axis=0).tolist()
    return medians


def _times(model: nn.Module, x: Tensor, tick: Tick) -> Iterator[float]:
    """Yield the milliseconds of each timed run."""

    def finish() -> None:
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    spent, runs = 0.0, -WARM_UP
    while runs < MIN_RUNS or (runs < MAX_RUNS and spent < MIN_SECONDS):
        tick()
        finish()
        start = time.perf_counter()
        model(x)
        finish()
        seconds = time.perf_counter() - start
        runs += 1
        if runs > 0:
            spent += seconds
            yield 1000 * seconds


def machine(device: str = "cpu") -> Machine:
    """Describe the properties of this machine that affect latency."""
    kind = torch.device(device).type
    processor = torch.cuda.get_device_name(device) if kind == "cuda" else _cpu_name()
    return Machine(
        device=kind,
        processor=processor,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        kernels=lif.kernels(device),
    )


def _cpu_name() -> str:
    """Return the processor's model name, or its architecture if the name is unknown."""
    known = Path("/proc/cpuinfo")
    if known.is_file():
        for line in known.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
