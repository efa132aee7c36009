"""torch→onnx→caffe: the value of every layer and of convolutional networks, in OpenCV."""

import pytest
from parity.suites.deviations import IN_CAFFE

from parity.cases.cnn import RANDOM, WELL_KNOWN


@pytest.mark.parity(path="torch-onnx-caffe", families=("layer",), without="dynamo")
def test_layer(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, deviations=IN_CAFFE)


@pytest.mark.parity(path="torch-onnx-caffe", families=(*RANDOM, *WELL_KNOWN), without="dynamo")
def test_network(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, deviations=IN_CAFFE)


@pytest.mark.parity(path="torch-onnx-caffe", families=("vocabulary", *WELL_KNOWN), without="torchscript")
def test_once(parity, parity_case, parity_chain):
    """The dynamo exporter takes a second for the smallest model: it gets each layer once."""
    parity.run(parity_case, parity_chain, deviations=IN_CAFFE)


@pytest.mark.parity(path="torch-onnx-caffe", families=("mtcnn", "simple_cnn", "resnet18"), without="dynamo")
def test_speed(parity, parity_case, parity_chain, benchmark):
    parity.run(parity_case, parity_chain, regimes=("normal",), speed=True, benchmark=benchmark)
