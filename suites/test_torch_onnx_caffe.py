"""torch→onnx→caffe: the value of every layer and of convolutional networks, in OpenCV."""

import pytest

from parity.cases.cnn import RANDOM, WELL_KNOWN


@pytest.mark.parity(path="torch-onnx-caffe", families=(*RANDOM, *WELL_KNOWN))
def test_network(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain)


@pytest.mark.parity(path="torch-onnx-caffe", families=("layer",), without="dynamo")
def test_layer(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain)


@pytest.mark.parity(path="torch-onnx-caffe", families=("vocabulary",))
def test_layer_once(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain)


@pytest.mark.parity(path="torch-onnx-caffe", families=("mtcnn", "simple_cnn", "resnet18"), without="dynamo")
def test_speed(parity, parity_case, parity_chain, benchmark):
    parity.run(parity_case, parity_chain, speed=True, benchmark=benchmark)
