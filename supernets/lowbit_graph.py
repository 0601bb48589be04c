"""Editing and reading ONNX graphs of quantised networks."""

import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["at_level", "fold_batch_norms", "multiplying_operators", "strip", "uses"]

_LARGEST_BIAS = 2**30  # of the integers that accumulate products


def uses(model: Any) -> Counter[str]:
    """Return how often each value of the graph is read, as an output of the graph too."""
    return Counter([name for node in model.graph.node for name in node.input] + [o.name for o in model.graph.output])


def fold_batch_norms(model: Any) -> None:
    """Fold every batch norm that alone follows a convolution of integers into its scales and bias, in place.

    With ``f = gamma / sqrt(variance + eps)``: scales become ``f * scale``, which may be negative, and the bias
    ``beta + (bias - mean) * f``; the integers stay. A channel whose bias would not fit the accumulator, having a scale
    of almost nothing, leaves its batch norm in place.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    count = uses(model)

    def values(name: str) -> NDArray[np.float64]:
        found: NDArray[np.float64] = numpy_helper.to_array(tensors[name]).astype(np.float64)
        return found

    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        convolution = producers.get(norm.input[0])
        if convolution is None or convolution.op_type != "Conv" or count[norm.input[0]] > 1:
            continue
        integers, given = producers.get(convolution.input[1]), producers.get(convolution.input[0])
        if integers is None or integers.op_type != "DequantizeLinear" or count[integers.input[1]] > 1:
            continue
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        gamma, beta, mean, variance = (values(name) for name in norm.input[1:5])
        factor = gamma / np.sqrt(variance + epsilon)
        scale = values(integers.input[1]) * factor
        before = values(convolution.input[2]) if len(convolution.input) > 2 else np.zeros_like(mean)
        bias = beta + (before - mean) * factor
        step = 1.0
        if given is not None and given.op_type == "DequantizeLinear" and given.input[1] in tensors:
            step = float(values(given.input[1]))
        if (np.abs(bias) > _LARGEST_BIAS * np.abs(scale) * step).any():
            continue
        tensors[integers.input[1]].CopyFrom(numpy_helper.from_array(scale.astype(np.float32), integers.input[1]))
        name = f"{integers.input[1]}.folded_bias"
        graph.initializer.append(numpy_helper.from_array(bias.astype(np.float32), name))
        inputs = [convolution.input[0], convolution.input[1], name]
        replaced = helper.make_node("Conv", inputs, [norm.output[0]], name=convolution.name)
        replaced.attribute.extend(convolution.attribute)
        position = list(graph.node).index(convolution)
        graph.node.insert(position, replaced)
        graph.node.remove(convolution)
        graph.node.remove(norm)
    _drop_unused(model)


def _drop_unused(model: Any) -> None:
    count = uses(model)
    for tensor in [tensor for tensor in model.graph.initializer if not count[tensor.name]]:
        model.graph.initializer.remove(tensor)


def strip(model: Any) -> None:
    """Remove what exporters note about each node and value, which is a tenth of a small file, in place."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]


def at_level(model: Any, level: int) -> Any:
    """Return a copy of a model whose products of packed weights run at another accuracy level."""
    twin = type(model)()
    twin.CopyFrom(model)
    for node in twin.graph.node:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "accuracy_level":
                attribute.i = level
    return twin


def multiplying_operators(path: Path, tensors: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Return which operator ONNX Runtime really multiplies each layer with, as its own optimised graph shows.

    Args:
        path: of the model.
        tensors: layer -> names of its codes and scales.

    Returns:
        layer -> type of the operator that reads one of them; no entry where it dequantises them instead.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    owners = {name: layer for layer, names in tensors.items() for name in names}
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in ("MatMulNBits", "QLinearConv", "ConvInteger"):
            found |= {owners[name]: node.op_type for name in node.input if name in owners}
    return found
