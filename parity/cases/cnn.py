"""Convolutional networks as cases: random ones of the families people convert to Caffe, and a few well-known ones.

Random families draw with `rng.choice` only. Sizes are small: a case is converted and run thousands of times.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from parity.cases.spec import ModelSpec, Node, Shape
from parity.cases.torch_layers import infer_shape
from parity.cases.vocabulary import Arguments

CLASSES = 10


class Growing:
    """A spec to which layers are added; values are numbers, as in `ModelSpec`."""

    def __init__(self, *shapes: Shape) -> None:
        self.spec = ModelSpec(shapes, ())

    def add(self, layer: str, *inputs: int, **arguments: object) -> int:
        """Append a layer, by default on the newest value; returns the value's number."""
        sources = inputs or (self.spec.values - 1,)
        shape = infer_shape(layer, arguments, [self.spec.shape_of(value) for value in sources])
        self.spec = ModelSpec(self.spec.input_shapes, (*self.spec.nodes, Node(layer, arguments, sources, shape)))
        return self.spec.values - 1

    def channels(self, value: int | None = None) -> int:
        return self.spec.shape_of(self.spec.values - 1 if value is None else value)[0]

    def conv(self, outputs: int, kernel: int, *inputs: int, **arguments: object) -> int:
        """A Conv2d that fits the value it is put on; 'same' padding unless told otherwise."""
        own: Arguments = {"in_channels": self.channels(inputs[0] if inputs else None), "out_channels": outputs}
        own |= {"kernel_size": kernel, "padding": kernel // 2, **arguments}
        return self.add("Conv2d", *inputs, **own)

    def conv_norm(self, outputs: int, kernel: int, activation: str, *inputs: int, **arguments: object) -> int:
        """Conv2d without bias, BatchNorm2d, activation ('' for none)."""
        self.conv(outputs, kernel, *inputs, bias=False, **arguments)
        value = self.add("BatchNorm2d", num_features=outputs)
        return self.add(activation) if activation else value

    def classify(self) -> ModelSpec:
        """Average over the image, then a linear layer."""
        self.add("AdaptiveAvgPool2d", output_size=[1, 1])
        self.add("Flatten")
        self.add("Linear", in_features=self.spec.output_shape[0], out_features=CLASSES)
        return self.spec

    def flat(self, outputs: int, *inputs: int) -> int:
        """A linear layer, behind a flattening where the value is an image."""
        value = inputs[0] if inputs else self.spec.values - 1
        if len(self.spec.shape_of(value)) > 1:
            value = self.add("Flatten", value)
        return self.add("Linear", value, in_features=self.spec.shape_of(value)[0], out_features=outputs)


def _image(rng: Random) -> Shape:
    """Odd and even sizes, not square: rounding and swapped axes show."""
    return (rng.choice((1, 3)), rng.choice((12, 15, 16, 17)), rng.choice((13, 14, 16, 19)))


def _activation(rng: Random) -> str:
    return rng.choice(("ReLU", "LeakyReLU", "PReLU", "ELU", "ReLU6", "Hardswish", "SiLU"))


def vgg(rng: Random, number: int) -> ModelSpec:
    """Stacks of 3×3 convolutions with pooling between, and linear layers behind (Simonyan, Zisserman, 2014)."""
    net, width = Growing(_image(rng)), rng.choice((4, 6, 8))
    for _ in range(rng.choice((1, 2, 3))):
        for _ in range(rng.choice((1, 2))):
            net.conv(width, 3)
            net.add(_activation(rng))
        kind = rng.choice(("MaxPool2d", "AvgPool2d"))
        net.add(kind, kernel_size=2, stride=2, ceil_mode=rng.choice((True, False)))
        width *= 2
    net.flat(16)
    net.add("ReLU")
    net.add("Dropout", p=0.5)
    net.flat(CLASSES)
    return net.spec


def resnet(rng: Random, number: int) -> ModelSpec:
    """Residual blocks with a projection where the shape changes (He et al., 2015)."""
    net, width = Growing(_image(rng)), rng.choice((4, 8))
    activation = rng.choice(("ReLU", "LeakyReLU", "SiLU"))
    net.conv_norm(width, rng.choice((3, 7)), activation, stride=rng.choice((1, 2)))
    if rng.choice((True, False)):
        net.add("MaxPool2d", kernel_size=3, stride=2, padding=1)
    for stage in range(rng.choice((1, 2))):
        stride = rng.choice((1, 2)) if stage else 1
        _residual(net, width * (stage + 1), activation, stride)
    return net.classify()


def _residual(net: Growing, width: int, activation: str, stride: int) -> None:
    skip = net.spec.values - 1
    net.conv_norm(width, 3, activation, stride=stride)
    branch = net.conv_norm(width, 3, "")
    if net.spec.shape_of(skip) != net.spec.shape_of(branch):
        skip = net.conv_norm(width, 1, "", skip, stride=stride)
    net.add("Add", branch, skip)
    net.add(activation)


def inception(rng: Random, number: int) -> ModelSpec:
    """Parallel branches of several window sizes, concatenated along the channels (Szegedy et al., 2014)."""
    net = Growing(_image(rng))
    net.conv_norm(rng.choice((4, 6)), 3, "ReLU", stride=rng.choice((1, 2)))
    for _ in range(rng.choice((1, 2))):
        source = net.spec.values - 1
        branches = [net.conv_norm(rng.choice((2, 3)), 1, "ReLU", source)]
        for kernel in rng.choice(((3,), (3, 5))):
            net.conv_norm(2, 1, "ReLU", source)
            branches.append(net.conv_norm(rng.choice((2, 4)), kernel, "ReLU"))
        pool = rng.choice(("MaxPool2d", "AvgPool2d"))
        net.add(pool, source, kernel_size=3, stride=1, padding=1)
        branches.append(net.conv(2, 1))
        joined = branches[0]
        for branch in branches[1:]:
            joined = net.add("Concatenate", joined, branch, axis=1)
    if rng.choice((True, False)):
        net.add("MaxPool2d", kernel_size=3, stride=2, ceil_mode=True)
    return net.classify()


def mobilenet(rng: Random, number: int) -> ModelSpec:
    """Inverted residuals: expand, depthwise convolution, project (Sandler et al., 2018; Howard et al., 2019)."""
    net = Growing(_image(rng))
    activation = rng.choice(("ReLU6", "Hardswish", "ReLU"))
    net.conv_norm(rng.choice((4, 6)), 3, activation, stride=2)
    for _ in range(rng.choice((1, 2, 3))):
        source, stride = net.spec.values - 1, rng.choice((1, 1, 2))
        width, outputs = net.channels() * 2, rng.choice((4, 6))
        net.conv_norm(width, 1, activation)
        net.conv_norm(width, rng.choice((3, 5)), activation, stride=stride, groups=width)
        if rng.choice((True, False)):
            wide = net.spec.values - 1
            net.add("AdaptiveAvgPool2d", output_size=[1, 1])
            net.conv(2, 1)
            net.add("ReLU")
            net.conv(width, 1)
            net.add("Hardsigmoid")
            net.add("Multiply", wide, net.spec.values - 1)  # squeeze and excitation
        result = net.conv_norm(outputs, 1, "")
        if net.spec.shape_of(result) == net.spec.shape_of(source):
            net.add("Add", result, source)
    return net.classify()


def unet(rng: Random, number: int) -> ModelSpec:
    """Down by pooling, up by transposed convolution or resizing, with concatenated skips (Ronneberger et al., 2015)."""
    net = Growing((rng.choice((1, 3)), 8 * rng.choice((1, 2)), 8 * rng.choice((1, 2))))
    width, activation = rng.choice((3, 4)), _activation(rng)
    skips = []
    for depth in range(rng.choice((1, 2))):
        skips.append(net.conv_norm(width * (depth + 1), 3, activation))
        net.add("MaxPool2d", kernel_size=2)
    net.conv_norm(width * (len(skips) + 1), 3, activation)
    for skip in reversed(skips):
        channels = net.channels()
        if rng.choice((True, False)):
            kernel = rng.choice((2, 4))
            up = net.add("ConvTranspose2d", in_channels=channels, out_channels=width, kernel_size=kernel, stride=2,
                         padding=(kernel - 2) // 2)  # fmt: skip
        else:
            mode: Arguments = rng.choice(({"mode": "nearest"}, {"mode": "bilinear", "align_corners": False}))
            up = net.add("Upsample", scale_factor=2, **mode)
        net.add("Concatenate", up, skip, axis=1)
        net.conv_norm(width, 3, activation)
    net.conv(rng.choice((1, 2)), 1)
    net.add("Sigmoid")
    return net.spec


def squeezenet(rng: Random, number: int) -> ModelSpec:
    """Fire modules: squeeze by 1×1, expand by 1×1 beside 3×3 (Iandola et al., 2016)."""
    net = Growing(_image(rng))
    net.conv(rng.choice((4, 8)), 3, stride=2)
    net.add("ReLU")
    net.add("MaxPool2d", kernel_size=3, stride=2, ceil_mode=True)
    for _ in range(rng.choice((1, 2))):
        net.conv(rng.choice((2, 3)), 1)
        squeezed = net.add("ReLU")
        sides = []
        for kernel in (1, 3):
            net.conv(rng.choice((3, 4)), kernel, squeezed)
            sides.append(net.add("ReLU"))
        net.add("Concatenate", *sides, axis=1)
    net.conv(CLASSES, 1)
    net.add("ReLU")
    net.add("AdaptiveAvgPool2d", output_size=[1, 1])
    net.add("Flatten")
    net.add("Softmax", dim=1)
    return net.spec


def detector(rng: Random, number: int) -> ModelSpec:
    """Boxes and class scores from two scales, flattened and joined, as a single-shot detector has them."""
    net, anchors = Growing(_image(rng)), rng.choice((1, 2))
    scales = [net.conv_norm(rng.choice((4, 6)), 3, "ReLU", stride=2)]
    scales.append(net.conv_norm(rng.choice((6, 8)), 3, "ReLU", stride=2))
    heads = []
    for scale in scales:
        for per_anchor, activation in ((4, ""), (3, "Sigmoid")):
            net.conv(anchors * per_anchor, 3, scale)
            if activation:
                net.add(activation)
            heads.append(net.add("Flatten"))
    joined = heads[0]
    for head in heads[1:]:
        joined = net.add("Concatenate", joined, head, axis=1)
    return net.spec


def simple_cnn(rng: Random, number: int) -> ModelSpec:
    """Two convolutions with pooling and two linear layers on 3×32×32 images: everyone's first network."""
    net = Growing((3, 32, 32))
    for width in (16, 32):
        net.conv(width, 3)
        net.add("ReLU")
        net.add("MaxPool2d", kernel_size=2, stride=2)
    net.flat(128)
    net.add("ReLU")
    net.flat(CLASSES)
    return net.spec


def mtcnn(rng: Random, number: int) -> ModelSpec:
    """P-Net, R-Net and O-Net (Zhang et al., 2016), face or not beside the box and, for O-Net, the landmarks."""
    return (_proposal_net, _refine_net, _output_net)[number]()


def _prelu(net: Growing) -> int:
    return net.add("PReLU", num_parameters=net.channels())


def _proposal_net() -> ModelSpec:
    net = Growing((3, 12, 12))
    for step, width in enumerate((10, 16, 32)):
        net.conv(width, 3, padding=0)
        features = _prelu(net)
        if step == 0:
            features = net.add("MaxPool2d", kernel_size=2, stride=2, ceil_mode=True)
    net.conv(2, 1, features)
    face = net.add("Softmax", dim=1)
    net.add("Concatenate", face, net.conv(4, 1, features), axis=1)
    return net.spec


def _stages(net: Growing, *stages: tuple[int, int, int]) -> None:
    """(width, kernel, pool): convolution, PReLU and, unless 0, max pooling with stride 2, rounded up."""
    for width, kernel, pool in stages:
        net.conv(width, kernel, padding=0)
        _prelu(net)
        if pool:
            net.add("MaxPool2d", kernel_size=pool, stride=2, ceil_mode=True)


def _heads(net: Growing, *widths: int) -> ModelSpec:
    features = net.spec.values - 1
    net.flat(2, features)
    joined = net.add("Softmax", dim=1)
    for width in widths:
        joined = net.add("Concatenate", joined, net.flat(width, features), axis=1)
    return net.spec


def _refine_net() -> ModelSpec:
    net = Growing((3, 24, 24))
    _stages(net, (28, 3, 3), (48, 3, 3), (64, 2, 0))
    net.flat(128)
    _prelu(net)
    return _heads(net, 4)


def _output_net() -> ModelSpec:
    net = Growing((3, 48, 48))
    _stages(net, (32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0))
    net.flat(256)
    _prelu(net)
    return _heads(net, 4, 10)


def resnet18(rng: Random, number: int) -> ModelSpec:
    """The 18-layer residual network at its own width (He et al., 2015), on a 3×64×64 image: 11 million weights."""
    net = Growing((3, 64, 64))
    net.conv_norm(64, 7, "ReLU", stride=2)
    net.add("MaxPool2d", kernel_size=3, stride=2, padding=1)
    for width in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if width > 64 and block == 0 else 1
            _residual(net, width, "ReLU", stride)
    return net.classify()


def spatial_attention(rng: Random, number: int) -> ModelSpec:
    """A convolution gated by where in the image it is, as a well-known PyTorch-to-Caffe recipe has it."""
    net = Growing((3, 9, 11))
    net.conv(6, 3)
    net.add("SpatialAttention", kernel_size=7)
    return net.classify()


FAMILIES: dict[str, tuple[int | None, Callable[[Random, int], ModelSpec]]] = {
    "vgg": (None, vgg),
    "resnet": (None, resnet),
    "inception": (None, inception),
    "mobilenet": (None, mobilenet),
    "unet": (None, unet),
    "squeezenet": (None, squeezenet),
    "detector": (None, detector),
    "mtcnn": (3, mtcnn),
    "simple_cnn": (1, simple_cnn),
    "spatial_attention": (1, spatial_attention),
    "resnet18": (1, resnet18),
}
"""Families by name: how many there are, or None for a random family, and how one is drawn."""
RANDOM = tuple(name for name, (count, _) in FAMILIES.items() if count is None)
WELL_KNOWN = ("mtcnn", "simple_cnn", "spatial_attention")
