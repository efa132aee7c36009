"""The round trip torch→onnx→caffe→onnx→torch: what the Caffe files say, read back by upstream's definitions."""

import pytest
from parity.suites.deviations import ROUND_TRIP

from parity.cases.cnn import RANDOM, WELL_KNOWN


@pytest.mark.parity(path="torch-onnx-caffe-onnx-torch", families=("layer", *RANDOM, *WELL_KNOWN), without="dynamo")
def test_round_trip(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, deviations=ROUND_TRIP)


@pytest.mark.parity(path="torch-onnx-caffe-onnx-torch", families=WELL_KNOWN, without="torchscript")
def test_round_trip_by_dynamo(parity, parity_case, parity_chain):
    parity.run(parity_case, parity_chain, deviations=ROUND_TRIP)
