"""Where exporters and runtimes on the way to Caffe are off, and no converter can help it. Each entry says why."""

from math import prod

from parity.deviations import Deviation

EXPORT, CAFFE = "torch→onnx", "onnx→caffe"
ENOUGH = 16
"""So many inputs that some are negative, or beyond a threshold, whatever the seed."""


def _alone(*layers, axes=(1, 2, 3), **arguments):
    """The case of one of these layers by itself, with such arguments and an input of so many axes."""

    def certain(case):
        (shape,), nodes = case.spec.input_shapes, case.spec.nodes
        if len(nodes) != 1 or nodes[0].layer not in layers or len(shape) not in axes or prod(shape) < ENOUGH:
            return False
        return all(nodes[0].arguments.get(name) == value for name, value in arguments.items())

    return certain


SOFTPLUS = Deviation(
    reason="the TorchScript exporter leaves out Softplus' threshold: it writes ONNX's operator, which has none",
    layers=("Softplus",),
    stages=(EXPORT,),
    converters=("torchscript",),
    certain=_alone("Softplus", beta=3.0, threshold=2.0),
)
ELU = Deviation(
    reason="exp(x) − 1 loses the digits of a tiny x: so onnxruntime and Caffe define ELU, and neither has expm1",
    layers=("ELU", "SELU", "CELU"),
    stages=(EXPORT, CAFFE),
    regimes=("tiny",),
    certain=_alone("ELU", "SELU", "CELU"),
)
EXPONENTIAL = Deviation(
    reason="exp(x) − 1 loses digits of a small x: so onnxruntime and Caffe define ELU, and neither has expm1",
    layers=("ELU", "SELU", "CELU"),
    stages=(EXPORT, CAFFE),
    regimes=("normal", "zeros"),
    largest=12,
)
LOG_SIGMOID = Deviation(
    reason="the TorchScript exporter writes log(sigmoid(x)): −∞ where exp(x) underflows; for Caffe it is mended",
    layers=("LogSigmoid",),
    stages=(EXPORT,),
    converters=("torchscript",),
    regimes=("large", "saturating"),
    certain=_alone("LogSigmoid"),
)
SIGMOID = Deviation(
    reason="onnxruntime and OpenCV approximate the sigmoid, and OpenCV Mish: by some tens of ulp at −2 and below",
    layers=("Sigmoid", "SiLU", "Mish"),
    stages=(EXPORT, CAFFE),
    largest=12,
)
NEAR_ZERO = Deviation(
    reason="neither ONNX nor Caffe has log1p: log(1 + exp(−x)) is 0 where exp(−x) is lost beside 1",
    layers=("LogSigmoid",),
    stages=(EXPORT, CAFFE),
    regimes=("saturating",),
)
UPSAMPLE = Deviation(
    reason="onnxruntime's linear interpolation is a few times less exact than torch's where sizes do not divide",
    layers=("Upsample",),
    stages=(EXPORT,),
    largest=4,
)
FAR_SIGMOID = Deviation(
    reason="onnxruntime's sigmoid is right to 1e-7 absolutely, not relatively: below −18 it is 0",
    layers=("Sigmoid", "SiLU"),
    stages=(EXPORT,),
    regimes=("large", "saturating"),
)
MISH = Deviation(
    reason="OpenCV's Mish loses its digits where its result is below 1e-10",
    layers=("Mish",),
    stages=(CAFFE,),
    regimes=("saturating",),
)
TINY_TANH = Deviation(
    reason="OpenCV's vectorised TanH is right to 1e-7 absolutely, not relatively: nothing is left of a tiny x",
    layers=("Tanh",),
    stages=(CAFFE,),
    regimes=("tiny",),
    certain=_alone("Tanh", axes=(3,)),
)
TANH = Deviation(
    reason="OpenCV's vectorised TanH is right to 1e-7 absolutely: small results have some wrong digits",
    layers=("Tanh",),
    stages=(CAFFE,),
    regimes=("normal", "zeros"),
    largest=12,
)
MVN = Deviation(
    reason="OpenCV's MVN rounds a row's mean and scale to float32 before it subtracts: far from 0 that shows",
    layers=("LayerNorm", "GroupNorm", "InstanceNorm2d"),
    stages=(CAFFE,),
    regimes=("saturating", "large", "zeros"),
    largest=4,
)
IN_ONNX = (SOFTPLUS, LOG_SIGMOID, ELU, EXPONENTIAL, SIGMOID, FAR_SIGMOID, UPSAMPLE)
IN_CAFFE = (SOFTPLUS, ELU, EXPONENTIAL, SIGMOID, MISH, TINY_TANH, TANH, MVN, NEAR_ZERO)
ROUND_TRIP = (SOFTPLUS,)
"""Back in torch, its own operators compute."""
