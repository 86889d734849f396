"""Weights in fewer bits in ONNX graphs: the numbers of the file, exact where they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from psvit_core.export import checked, export_onnx, onnx_weights
from psvit_core.records import STORED_WEIGHTS
from psvit_core.zoo.quantized import quantize_weights, stored_state
from tests.tiny import tiny_model


class Layers(nn.Module):
    """A convolution and a linear layer, as much of a model as quantizing needs."""

    provenance: ClassVar[dict[str, Any]] = {}
    unused, stored_weights = (), "float32"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.fc = nn.Linear(24, 5, bias=False)


FACTORS = np.array([1.5, -0.3, 1e-3, 0.0, -7.0, 2.0], dtype=np.float32)  # of a folded BatchNorm


def graph_of(conv: np.ndarray, linear: np.ndarray) -> ModelProto:
    """Return x -> Conv -> Reshape -> MatMul, as exporters write it."""
    nodes = [
        helper.make_node("Conv", ["x", "network.conv.weight"], ["a"]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("MatMul", ["b", "val_0"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [
            numpy_helper.from_array(conv, "network.conv.weight"),
            numpy_helper.from_array(np.array([-1, 24]), "shape"),
            numpy_helper.from_array(linear, "val_0"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.mark.parametrize("kind", STORED_WEIGHTS)
@pytest.mark.parametrize("folded", [False, True])
def test_a_graph_keeps_its_function_and_has_the_files_numbers(kind: str, folded: bool) -> None:
    """Factors are folded into the convolution; the linear weight is transposed."""
    import onnxruntime

    model = quantize_weights(Layers(), kind)  # type: ignore[arg-type]  # all that it needs
    conv = model.state_dict()["conv.weight"].numpy()
    if folded:
        conv = conv * FACTORS.reshape(-1, 1, 1, 1)
    linear = np.ascontiguousarray(model.state_dict()["fc.weight"].numpy().T)
    proto = graph_of(conv, linear)
    assert onnx_weights.store_weights(proto, model) == 2
    onnx.checker.check_model(proto, full_check=True)
    stored = stored_state(model)
    found = {tensor.name: tensor for tensor in proto.graph.initializer}
    assert not [t for t in found.values() if t.data_type == TensorProto.FLOAT and len(t.dims) == 2]
    if kind == "int8":
        numbers = numpy_helper.to_array(found["val_0.int8"])
        assert np.array_equal(numbers, stored["fc.weight"].numpy())
        assert (numpy_helper.to_array(found["network.conv.weight.scale"]) > 0).all()
    else:
        expected = stored["fc.weight"].view(torch.int16).numpy().tobytes()
        assert found[f"val_0.{kind}"].raw_data == expected
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    a = nn.functional.conv2d(torch.from_numpy(x).double(), torch.from_numpy(conv).double())
    expected_y = a.flatten(1).numpy() @ linear.astype(np.float64)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    runs = [session.run(None, {"x": x})[0]]
    if kind != "bfloat16":  # which the reference implementation cannot cast here
        [y] = ReferenceEvaluator(proto).run(None, {"x": x})
        runs.append(y)
    for y in runs:  # onnxruntime must not multiply by int8 activations, which costs 5e-3
        assert np.abs(y - expected_y).max() <= 1e-6 * np.abs(expected_y).max()


def test_weights_that_changed_otherwise_stay_float32() -> None:
    model = quantize_weights(Layers(), "int8")  # type: ignore[arg-type]
    conv = model.state_dict()["conv.weight"].numpy()
    other = conv + np.linspace(0, 1e-3, conv.size, dtype=np.float32).reshape(conv.shape)
    proto = graph_of(other, np.ascontiguousarray(model.state_dict()["fc.weight"].numpy().T))
    assert onnx_weights.store_weights(proto, model) == 1
    found = {t.name: t.data_type for t in proto.graph.initializer}
    assert found["network.conv.weight"] == TensorProto.FLOAT
    plain: Any = Layers()
    assert onnx_weights.store_weights(graph_of(conv, other[:, :, 0, 0]), plain) == 0


@pytest.mark.slow
def test_a_network_in_int8_is_exact_and_has_no_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has convolutions and linear layers, 18 in all."""
    n_weights = 18
    monkeypatch.setattr(checked, "latencies_in_turns", lambda networks, x: [1.0, 2.0])
    model = quantize_weights(tiny_model("spikformer_cifar"), "int8")
    model.set_time_steps(1)  # each is written out
    done = export_onnx(model, tmp_path / "int8.onnx")
    assert (done.weights, done.n_stored) == ("int8", n_weights)
    assert done.agreement.layers is not None
    assert done.agreement.layers.max_current_difference < 1e-5
    graph = onnx.load(done.path).graph
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) == n_weights
    weights = [
        tensor.numel()
        for key, tensor in stored_state(model).items()
        if tensor.dtype == torch.int8 and key not in model.unused
    ]
    found = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    assert sorted(a.size for a in found if a.dtype == np.int8) == sorted(weights)
    others = sum(a.nbytes for a in found if a.dtype != np.int8)
    assert others < sum(weights)  # in float32, the weights alone would be four times as many bytes
    assert done.bytes > others + sum(weights)
