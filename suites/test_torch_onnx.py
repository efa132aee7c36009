"""torch→onnx by torch's two exporters, in onnxruntime: the first stage of torch→onnx→caffe."""

import pytest
from parity.suites.deviations import IN_ONNX


@pytest.mark.parity(path="torch-onnx", families=("layer",), without="dynamo")
def test_layer(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, deviations=IN_ONNX)


@pytest.mark.parity(path="torch-onnx", families=("mtcnn", "simple_cnn", "resnet18"), without="dynamo")
def test_speed(parity, parity_case, parity_chain, benchmark):
    parity.run(parity_case, parity_chain, regimes=("normal",), speed=True, benchmark=benchmark)
