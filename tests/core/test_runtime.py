"""Portions of work under a lack of memory."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch

from psvit_core.errors import DeviceError
from psvit_core.runtime import Portions, Run, device_of, out_of_memory_explained
from tests.pretend_cuda import pretended_cuda


def test_portions_halve_until_they_fit() -> None:
    tried: list[tuple[int, int]] = []

    def run(low: int, high: int) -> list[int]:
        tried.append((low, high))
        if high - low > 3:
            raise torch.OutOfMemoryError("injected")
        return list(range(low, high))

    portions = Portions(10)
    assert [i for part in portions.over(11, run) for i in part] == list(range(11))
    assert tried == [(0, 10), (0, 5), (0, 3), (3, 6), (6, 9), (9, 11)]
    assert portions.size == 3  # also for what comes next


def test_the_least_portion_passes_the_error_on() -> None:
    def run(low: int, high: int) -> NoReturn:
        raise torch.OutOfMemoryError("injected")

    portions = Portions(8, least=3)
    with pytest.raises(torch.OutOfMemoryError):
        list(portions.over(8, run))
    assert portions.size == 3


def test_no_other_error_is_retried() -> None:
    def run(low: int, high: int) -> NoReturn:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(Portions(4).over(4, run))


def test_users_are_told_what_to_do() -> None:
    wanted = r"'cpu' has not enough memory .* batches of 16\."
    with pytest.raises(DeviceError, match=wanted), out_of_memory_explained(Run(batch=16)):
        raise torch.OutOfMemoryError("injected")


def test_cuda_is_the_current_device() -> None:
    assert device_of("cpu") == torch.device("cpu")
    with pretended_cuda():
        assert device_of("cuda") == device_of("cuda:0") == torch.device("cuda:0")
