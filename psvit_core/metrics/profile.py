"""What a forward pass needs at run time: membrane state, peak activation memory, latency.

Membrane state is what a machine that works step by step must hold between two steps: one potential
a stateful neuron. (The kernels here run a layer through all steps at once and hold it only
meanwhile.) Integer-valued neurons have none.
"""

from __future__ import annotations

import platform
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from psvit_core import fused
from psvit_core.data import EvalSet
from psvit_core.neurons import LIF
from psvit_core.records import Machine, Profile, Quartiles
from psvit_core.runtime import Run
from psvit_core.zoo.base import SpikingModel

WARM_UP = 2  # runs that are not counted
MIN_RUNS, MAX_RUNS = 5, 50
MIN_SECONDS = 1.0  # further runs up to MAX_RUNS while the counted ones took less


def profile_of(
    model: SpikingModel, data: EvalSet, run: Run, *, tick: Callable[[], None] = lambda: None
) -> Profile:
    """Run-time memory and latency at batch 1 and at the run's batch, on the first images.

    Args:
        model: In evaluation mode, already where ``run`` says.
        data: Images; decoding them is not timed.
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
    """Neurons with a membrane potential, one image, by neuron layer.

    Read off one run without data, as the widths stand now.
    """
    empty = model.resized(model.widths)
    neurons: dict[str, int] = {}

    def counting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            neurons[name] = output[0].numel()  # (T, one image's neurons)

        return hook

    for name, module in empty.named_modules():
        if isinstance(module, LIF):
            module.register_forward_hook(counting(name))
    with torch.no_grad():
        empty(torch.empty(1, *model.input_shape, device="meta"))
    return neurons


def state_bytes(model: SpikingModel, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the membrane potentials of one image: neurons with state times bytes of ``dtype``.

    Integer-valued neurons have no state.
    """
    return sum(state_neurons(model).values()) * dtype.itemsize


# ---- peak activation memory ------------------------------------------------------------------


def peak_activation_bytes(model: nn.Module, x: Tensor) -> int:
    """Most bytes that live at once besides the weights while ``model(x)`` runs; ``x`` included.

    On CUDA it is what the allocator had given out at most (in its blocks of 512 bytes, workspaces
    of libraries included). On the CPU, where no allocator keeps count, storages of tensors are
    counted while they live: a storage counts in full from the operation that returns it until it
    is freed; views share theirs; what an operator's kernel allocates and frees inside itself is
    not seen. So on the CPU the number is the same in every run. It is that of the plain LIF
    kernels.

    Args:
        model: In evaluation mode, without gradients.
        x: Its input, on its device; alone in its storage.
    """
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        model(x)
        torch.cuda.synchronize(x.device)
        return torch.cuda.max_memory_allocated(x.device) - before + x.untyped_storage().nbytes()
    tracker = _LiveBytes([*model.parameters(), *model.buffers()], x)
    with fused.plain_kernels(), tracker:
        model(x)
    return tracker.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensor storages that live while operators run.

    Args:
        ignored: Tensors that are not counted, nor their views.
        x: The input: counted from the start.
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


def latency_ms(
    model: nn.Module, x: Tensor, *, tick: Callable[[], None] = lambda: None
) -> Quartiles:
    """Median and quartiles of one forward pass, milliseconds, after warm-up runs.

    Runs ``MIN_RUNS`` times at least and further, up to ``MAX_RUNS``, until ``MIN_SECONDS`` of
    counted time have passed.

    Args:
        model: In evaluation mode, without gradients.
        x: Its input, on its device.
        tick: Called before each run, outside its time; may raise to stop.
    """
    times = list(_times(model, x, tick))
    low, median, high = (float(q) for q in np.percentile(times, (25, 50, 75)))
    return Quartiles(median=median, low=low, high=high, n_runs=len(times))


def latencies_in_turns(
    models: Sequence[nn.Module], x: Tensor, *, tick: Callable[[], None] = lambda: None
) -> list[float]:
    """Median latency of each model, milliseconds, from runs that take turns.

    Taking turns, all meet the same other work on the machine, so they can be compared.

    Args:
        models: In evaluation mode.
        x: Their input, on their device.
        tick: Called before each run, outside its time; may raise to stop.
    """
    with torch.no_grad():
        turns = list(zip(*(_times(model, x, tick) for model in models), strict=False))
    medians: list[float] = np.median(turns, axis=0).tolist()
    return medians


def _times(model: nn.Module, x: Tensor, tick: Callable[[], None]) -> Iterator[float]:
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
    """This machine as far as times depend on it."""
    kind = torch.device(device).type
    processor = torch.cuda.get_device_name(device) if kind == "cuda" else _cpu_name()
    return Machine(
        device=kind,
        processor=processor,
        threads=torch.get_num_threads(),
        torch=str(torch.__version__),
        kernels=fused.kernels(),
    )


def _cpu_name() -> str:
    """The processor's model name, as far as the system tells."""
    known = Path("/proc/cpuinfo")
    if known.is_file():
        for line in known.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
