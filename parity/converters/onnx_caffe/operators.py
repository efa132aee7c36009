"""Importing this module registers the lowerings of every ONNX operator."""

from parity.converters.onnx_caffe import (  # noqa: F401
    activations,
    arithmetic,
    contraction,
    normalization,
    pooling,
    reduction,
    reshaping,
    resize,
)
