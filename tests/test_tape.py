"""The tape: a forward pass as steps that hold for any batch, or a reason why there is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from psvit_core.sensitivity.replay import Replay
from psvit_core.sensitivity.spread import record_network, spread
from psvit_core.tape import Sized, Tape, TapeError, record
from tests.tiny import NAMES, tiny_data, tiny_model


def tape_of(function: Callable[..., Tensor], **weights: Tensor) -> Tape:
    meta = {name: t.to("meta") for name, t in weights.items()}
    return record(lambda x: function(x, **meta), meta, (3, 4), torch.float32)


def test_sizes_grow_with_the_batch() -> None:
    def forward(x: Tensor, w: Tensor) -> Tensor:
        rows = x.unsqueeze(0).expand(2, *x.shape).flatten(0, 1) @ w  # two steps of each image
        return rows.unflatten(0, (2, x.shape[0])).mean(0)

    tape = tape_of(forward, w=torch.randn(4, 5))
    assert tape.shapes[-1] == (Sized(0, 1), 3, 5)
    merged = [s for s in tape.shapes if s[0] == Sized(0, 2)]
    assert merged
    assert Sized(0, 2).at(7) == 14


def test_the_same_call_is_one_step() -> None:
    once = tape_of(lambda x: x.sum(2))
    twice = tape_of(lambda x: x.sum(2) * x.sum(2))
    assert len(twice.steps) == len(once.steps) + 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: (x * 2).add_(1), "writes in place"),
        (lambda x: x if x.sum() > 0 else -x, "meta|item|data-dependent"),
        (lambda x: x[: len(x) // 2], "batch size"),
        (lambda x: torch.stack(list(x)), "batch size|gives"),
    ],
)
def test_what_cannot_be_written_down_says_why(
    function: Callable[[Tensor], Tensor], reason: str
) -> None:
    with pytest.raises(TapeError, match=reason):
        tape = tape_of(function)
        pytest.fail(f"recorded {tape}")


@pytest.mark.parametrize("name", NAMES)
def test_a_replayed_network_gives_the_models_logits(name: str) -> None:
    model, data = tiny_model(name, torch.float64), tiny_data(name, 3)
    network = record_network(model, model.input_shape)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    weights = {n: t.detach() for n, t in tensors.items()}
    (x,) = data.batches(3, torch.float64)
    with torch.no_grad():
        expected = model(x)
        logits, reached = Replay(network, {}, weights, finish_early=False).whole(x)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-9)
    assert expected.std() > 0
    assert all(count.shape == (3,) for count in reached.values())


@pytest.mark.parametrize("name", ["sdt_v1", "qkformer_cifar"])
def test_later_groups_change_fewer_steps(name: str) -> None:
    model = tiny_model(name)
    network = record_network(model, model.input_shape)
    inner = [g for g in model.channel_groups() if g.kind == "mlp"]
    counts = [len(spread(network, g).steps) for g in inner]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < len(network.tape.steps) / 4
    for group in inner:  # they start from the spikes that the hidden units send
        found = spread(network, group)
        assert {network.tape.shapes[i][axis] for i, axis in found.sliced.items()} == {group.n_units}
