"""Several devices at once: which ones the queue uses, and which of them a job waits for; no torch.

``$PSVIT_DEVICES`` lists them. Each has a worker process of its own, which sees no other
accelerator. A new job waits for the device with the least to do, and a worker without jobs takes
one that waits for another device. A job's numbers do not depend on which one ran it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

from psvit_core.errors import DeviceError

DEVICES_ENV = "PSVIT_DEVICES"
PLACED_ENV = (
    "_PSVIT_PLACED"  # of a worker that sees one accelerator: the device's name in the queue
)
_VISIBLE_ENV = "CUDA_VISIBLE_DEVICES"
_DEVICE = re.compile(r"(cpu|cuda)(:\d{1,3})?")


def parse_devices(text: str) -> tuple[str, ...]:
    """Parse names of devices separated by commas, such as ``cuda:0,cuda:1``.

    Raises:
        DeviceError: If one is no device, is named twice, or is of another kind than the first.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if not _DEVICE.fullmatch(name):
            raise DeviceError(
                f"{name!r} is no device for the queue. Name cpu, cuda, or several of a kind with "
                "their numbers: cuda:0,cuda:1."
            )
    if len({kind_of(name) for name in names}) > 1:
        raise DeviceError(
            f"Devices of the queue must be of one kind, since a job must give the same numbers on "
            f"each; got {', '.join(names)}."
        )
    if len(set(names)) < len(names) or (len(names) > 1 and any(":" not in n for n in names)):
        raise DeviceError(
            f"Several devices need a number each, such as cuda:0,cuda:1; got {', '.join(names)}."
        )
    return names


def queue_devices() -> tuple[str, ...]:
    """Return the devices that ``$PSVIT_DEVICES`` lists; empty without any.

    Raises:
        DeviceError: As ``parse_devices``.
    """
    try:
        return parse_devices(os.environ.get(DEVICES_ENV, ""))
    except DeviceError as error:
        raise DeviceError(f"{DEVICES_ENV}: {error}") from None


def kind_of(device: str) -> str:
    """Return a device's kind, ``cpu`` or ``cuda``."""
    return device.partition(":")[0]


def default_device() -> str:
    """Return the device of jobs that name none: the kind of the listed ones, else ``cpu``."""
    return kind_of((*queue_devices(), "cpu")[0])


def first_device() -> str:
    """Return the device whose worker is prepared before there are jobs."""
    return (*queue_devices(), "cpu")[0]


def choose_device(
    wanted: str, short: bool, active: Iterable[tuple[str, bool]]
) -> tuple[str, tuple[str, ...]]:
    """Return the device that a new job waits for, and all that may run it.

    Args:
        wanted: The device that was asked for; a kind alone lets the queue choose among the listed
            ones.
        short: Whether the job is a short one, which runs between the batches of a long one.
        active: Device of each active job, and whether it is short.

    Returns:
        The one with the fewest jobs of its sort, then with the fewest jobs, then listed first.
        Without a choice: ``wanted``, and no others.
    """
    possible = tuple(name for name in queue_devices() if kind_of(name) == wanted)
    if not possible:
        return wanted, ()
    loads = list(active)

    def load(name: str) -> tuple[int, int]:
        own = [is_short for device, is_short in loads if device == name]
        return own.count(short), len(own)

    return min(possible, key=load), possible if len(possible) > 1 else ()


def idle_devices(choices: Iterable[tuple[str, ...]], taken: Iterable[str]) -> set[str]:
    """Return devices without a job that could take over a waiting one.

    Args:
        choices: The devices that may run each waiting job.
        taken: Devices that have a job.
    """
    return {name for names in choices for name in names} - set(taken)


def worker_environment(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a device's worker: of several accelerators it sees its own only.

    Threads of torch and CUDA libraries take the first accelerator that they see.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number:
        return dict(environment)
    visible = [part for part in environment.get(_VISIBLE_ENV, "").split(",") if part.strip()]
    own = visible[int(number)] if int(number) < len(visible) else number
    if visible and int(number) >= len(visible):
        own = ""  # there is no such accelerator, and torch will say so
    return {**environment, _VISIBLE_ENV: own, PLACED_ENV: device}


def placed(device: str) -> str:
    """Return the name of a subject's device inside this process."""
    own = os.environ.get(PLACED_ENV)
    return "cuda" if own and device == own else device
