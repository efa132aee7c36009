"""The conversion paths: their names, the packages each needs, and what installs them. Imports no framework."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from parity.errors import MissingPackage, ParityError


@dataclass(frozen=True)
class Path:
    """A chain of representations from a source to a target, written `torch→casadi`, named `torch-casadi`."""

    name: str
    packages: tuple[str, ...]
    """What must be importable to run it."""
    extra: str
    """The extra of `pytest-parity` that installs the packages."""
    between: tuple[str, ...] = ()
    """The representations, where the name does not list them."""

    @property
    def representations(self) -> tuple[str, ...]:
        return self.between or tuple(self.name.split("-"))

    @property
    def source(self) -> str:
        return self.representations[0]

    @property
    def title(self) -> str:
        return "→".join(self.representations)

    def missing(self) -> list[str]:
        """The packages that this path needs and that are not installed."""
        return [package for package in self.packages if find_spec(package) is None]

    @property
    def install_command(self) -> str:
        return f"pip install 'pytest-parity[{self.extra}]'"

    def require(self) -> None:
        """Raise `MissingPackage`, with the install command, unless the path can run here."""
        if missing := self.missing():
            raise MissingPackage(f"path {self.name} needs {', '.join(missing)}: {self.install_command}")


ONNX = ("torch", "onnx", "onnxscript", "onnxruntime")
PATHS = (
    Path("torch-casadi", packages=("torch", "casadi"), extra="casadi"),
    Path("keras-torch", packages=("keras", "tensorflow", "torch", "h5py"), extra="keras"),
    Path("torch-onnx", packages=ONNX, extra="onnx"),
    Path("torch-onnx-caffe", packages=(*ONNX, "cv2"), extra="caffe"),
    Path("ocp-sensitivity", packages=("torch", "casadi"), extra="casadi", between=("ocp", "solution-map")),
    Path("torch-onnx-caffe-onnx-torch", packages=(*ONNX, "cv2"), extra="caffe"),
    Path("torch-optimization", packages=("torch", "casadi", "pyomo"), extra="optimization"),
)


def path(name: str) -> Path:
    """The path of that name (`torch-casadi`, or as written in texts, `torch→casadi`); raises `ParityError`."""
    for known in PATHS:
        if name in (known.name, known.title):
            return known
    raise ParityError(f"unknown path {name!r}: one of {', '.join(known.name for known in PATHS)}")
