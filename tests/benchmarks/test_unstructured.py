"""The unstructured reference: which weights go, and what a sparse file would take."""

from __future__ import annotations

import pytest
import torch

from benchmarks._unstructured import (
    bitmap_bytes,
    compute_layers,
    csr_bytes,
    prune_magnitudes,
    sparse_size,
)
from psvit_core.errors import InvalidRatioError
from psvit_core.groups import summarize
from psvit_core.plan.size import plan_size
from tests.tiny import NAMES, tiny_input, tiny_model


@pytest.mark.filterwarnings("ignore:Sparse CSR")  # torch calls its own format beta
def test_sizes_by_hand() -> None:
    weight = torch.tensor([[0.0, 1.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 3.0]])
    assert bitmap_bytes(weight) == 2 + 3 * 4  # 10 bits in 2 bytes, three values
    assert csr_bytes(weight) == 3 * 4 + 3 * 4 + 3 * 4  # values, columns, starts of 2 rows + 1
    sparse = weight.to_sparse_csr()
    stored = (sparse.values().numel(), sparse.col_indices().numel(), sparse.crow_indices().numel())
    assert csr_bytes(weight) == 4 * sum(stored)
    kernel = torch.zeros(2, 3, 3, 3)
    kernel[1, 2, 0, 0] = 1.0
    assert bitmap_bytes(kernel) == 7 + 4  # 54 bits
    assert csr_bytes(kernel) == 4 + 4 + 12


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_weights_of_the_network_go(name: str) -> None:
    model = tiny_model(name).eval()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    sparse = prune_magnitudes(model, 0.6)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    after = sparse.state_dict()
    assert after.keys() == before.keys()  # no masks left
    names = {f"{layer}.weight" for layer, _ in compute_layers(model)}
    assert all(torch.equal(after[k], before[k]) for k in before if k not in names)

    kept = torch.cat([before[k][after[k] != 0].abs() for k in names])
    gone = torch.cat([before[k][after[k] == 0].abs() for k in names])
    assert gone.max() <= kept.min()
    size = sparse_size(sparse)
    assert (size.n_weights, size.n_left) == (len(kept) + len(gone), len(kept))
    assert size.n_left == size.n_weights - round(0.6 * size.n_weights)
    roles = {t.name: t.role for t in summarize(model, {}).shapes.tensors}
    assert {k for k, role in roles.items() if role == "weight"} == names
    assert size.dense == plan_size(summarize(model, {}), None).bytes
    assert size.sparse == min(size.bitmap, size.csr) < size.dense
    assert size.bitmap < size.csr  # a bit is less than an index, until 31 of 32 weights are gone
    with torch.no_grad():
        assert sparse(tiny_input(name)).shape == model(tiny_input(name)).shape


def test_nothing_pruned_takes_more_when_stored_sparse() -> None:
    model = tiny_model("sdt_v1").eval()
    size = sparse_size(prune_magnitudes(model, 0.0))
    assert size.n_left == size.n_weights
    assert size.dense < size.bitmap < size.csr
    nearly_all = sparse_size(prune_magnitudes(model, 0.99))
    assert nearly_all.csr < nearly_all.bitmap
    assert nearly_all.sparse == nearly_all.csr
    for bad in (1.0, -0.1):
        with pytest.raises(InvalidRatioError):
            prune_magnitudes(model, bad)
