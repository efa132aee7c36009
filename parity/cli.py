"""The `parity` command. It exits with 0 (the same function), 1 (it is not), or 2 (it cannot be said: bad input)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from parity.errors import ParityError
from parity.records import Record


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; every error that a user can make is one line."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except ParityError as error:
        print(f"parity: {error}", file=sys.stderr)
        return 2
    except SystemExit as error:  # quiet, it would look like a success
        print(f"parity: the model or the converter ended the process (exit code {error.code})", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="parity", description="Is the converted model still the same function?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    check = commands.add_parser("check", help="convert a model of yours and compare it with its source")
    check.add_argument("model", metavar="MODEL",
                       help="file of torch.save(model, file), a .keras or .h5 file, or module:function")  # fmt: skip
    check.add_argument("--input-shape", metavar="1,12", required=True, action="append", type=_shape,
                       help="shape of an input, batch axis first; once per input")  # fmt: skip
    check.add_argument("--path", help="default: torch-casadi, or keras-torch for a Keras file")
    check.add_argument("--converter", default="reference", help="default: %(default)s")
    check.add_argument("--check", action="append", help="value, jacobian, hessian or vjp; default: the path's")
    check.add_argument("--seed", type=int, default=0, help="seed of the random inputs; default: 0")
    check.add_argument("--speed", action="store_true", help="time it too")
    check.add_argument("--trust", action="store_true", help="read a pickle, which can run code")
    check.add_argument("--report", metavar="DIR", type=Path, help="write a report")
    check.set_defaults(command=_check)

    convert = commands.add_parser("convert", help="write a model of yours in another representation")
    convert.add_argument("model", metavar="MODEL",
                         help="as in `check`, or an .onnx file; a Keras file is read without TensorFlow")  # fmt: skip
    convert.add_argument("--to", default="torch", metavar="NAME",
                         help="torch, onnx, caffe, casadi, optimization; default: %(default)s")  # fmt: skip
    files = convert.add_mutually_exclusive_group(required=True)
    files.add_argument("--emit", metavar="FILE.py", type=Path,
                       help="Keras to torch: the source; the state dict is written beside it, as FILE.pt")  # fmt: skip
    files.add_argument("--output", metavar="STEM", help="files are named STEM.prototxt, STEM.caffemodel, …")
    convert.add_argument("--input-shape", metavar="1,12", action="append", type=_shape, default=[],
                         help="shape of an input, batch first; an .onnx file of static shapes needs none")  # fmt: skip
    convert.add_argument("--converter", default="reference", help="default: %(default)s")
    convert.add_argument("--layout", choices=["nhwc", "nchw"], default="nhwc",
                         help="Keras: of images at inputs and outputs; default: %(default)s")  # fmt: skip
    convert.add_argument("--dialect", help="Caffe: bvlc, ssd or opencv (the default)")
    convert.add_argument("--fold-batch-norm", action="store_true", help="Caffe: make it part of the convolutions")
    convert.add_argument("--box", nargs=2, type=float, metavar=("LOWER", "UPPER"),
                         help="optimization: bounds of all inputs; default: -1 1")  # fmt: skip
    convert.add_argument("--tighten", choices=("lp", "milp"), help="optimization: improve the bounds that big-M needs")
    convert.add_argument("--trust", action="store_true", help="read a pickle, which can run code")
    convert.set_defaults(command=_convert)

    listing = commands.add_parser("list", help="paths, converters and families of cases")
    listing.set_defaults(command=_list)

    repro = commands.add_parser("repro", help="run one case again, and show its model")
    repro.add_argument("case", metavar="CASE", help="such as dag-0-17")
    repro.add_argument("--path", default="torch-casadi", help="default: %(default)s")
    repro.add_argument("--converter", default="reference", help="default: %(default)s")
    repro.set_defaults(command=_repro)

    compare = commands.add_parser("compare", help="what changed between two runs, or between two converters of a run")
    compare.add_argument("first", metavar="RUN", type=Path, help="report folder")
    compare.add_argument("second", metavar="RUN", type=Path, nargs="?", help="another one")
    compare.add_argument("--converters", nargs=2, metavar=("FIRST", "SECOND"), help="of one run")
    compare.set_defaults(command=_compare)

    report = commands.add_parser("report", help="write the report of a run again, of a killed one too")
    report.add_argument("folder", metavar="RUN", type=Path)
    report.set_defaults(command=_report)

    setup = commands.add_parser("setup", help="install what pip cannot install beside the rest")
    setup.add_argument("what", choices=("acados",), help="the registry's acados, kept apart from your CasADi")
    setup.set_defaults(command=_setup)

    merge = commands.add_parser("merge", help="join the records of several runs into one report")
    merge.add_argument("folder", metavar="DIR", type=Path, help="the new report folder")
    merge.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    merge.set_defaults(command=_merge)
    return parser


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape: give positive sizes, the batch's first, such as 1,12")
    return shape


def _check(options: argparse.Namespace) -> int:
    from parity.api import check
    from parity.cases.weights import random_state
    from parity.model_file import load_model, path_of
    from parity.paths import path
    from parity.runtimes import representation_of

    way = path(options.path or path_of(options.model))
    way.require()
    model = load_model(options.model, trust=options.trust)
    if (kind := representation_of(model)) != way.source:
        raise ParityError(f"{options.model} is of {kind}, and path {way.name} starts from {way.source}")
    inputs = tuple(
        random_state(options.seed, number).standard_normal(shape) for number, shape in enumerate(options.input_shape)
    )
    if way.representations[-1] == "optimization":  # such a model holds in a box, by default this one
        inputs = tuple(array.clip(-1, 1) for array in inputs)
    records = check(
        model,
        options.converter,
        inputs,
        path=way.name,
        speed=options.speed,
        name=Path(options.model).name,
        **({"checks": options.check} if options.check else {}),
    )
    return _show(records, options.report, way.packages)


def _emit(options: argparse.Namespace) -> int:
    from parity.converters.keras_torch import emit, reference

    for package in ("torch", "h5py"):
        if find_spec(package) is None:
            raise ParityError(f"{options.model} cannot be read without {package}: pip install {package}")
    if options.emit.suffix != ".py":
        raise ParityError(f"{options.emit} is no Python file: give a name that ends in .py")
    module = reference(options.model, layout=options.layout)
    try:
        source, state = emit(module, options.emit)
    except OSError as error:
        raise ParityError(f"cannot write {options.emit}: {error.strerror}") from error
    print(f"{source}\n{state}")
    return 0


def _convert(options: argparse.Namespace) -> int:
    if options.emit:
        return _emit(options)
    from parity.api import convert
    from parity.cases.weights import random_state
    from parity.model_file import load_model, save_model

    owners = {"dialect": "caffe", "fold_batch_norm": "caffe", "box": "optimization", "tighten": "optimization"}
    given = {name: getattr(options, name) for name in owners if getattr(options, name)}
    if strange := [name for name in given if owners[name] != options.to]:
        raise ParityError(f"--{strange[0].replace('_', '-')} is for --to {owners[strange[0]]}")
    model = load_model(options.model, trust=options.trust)
    example = tuple(random_state(0, number).standard_normal(shape) for number, shape in enumerate(options.input_shape))
    artifact = convert(model, options.to, example, converter=options.converter, **given)
    for file in save_model(artifact, options.output):
        print(file)
    return 0


def _repro(options: argparse.Namespace) -> int:
    from parity.cases.case import case_from_id
    from parity.converters.registry import find_chain
    from parity.paths import path
    from parity.pipeline import examine

    way = path(options.path)
    way.require()
    case = case_from_id(options.case, way.source)
    print(case.model())
    return _show(list(examine(case, find_chain(way, options.converter))))


def _show(records: list[Record], report: Path | None = None, packages: Sequence[str] = ()) -> int:
    from parity.api import failed

    for record in records:
        print(record.summary())
    if report:
        from parity.run_folder import RunFolder, describe_environment, run_id

        run = run_id()
        folder = RunFolder(report, run, describe_environment(run, 0, packages))
        for record in records:
            folder.append(record)
        folder.close()
        for notice in folder.notices:
            print(notice)
        print(f"report: {folder.index}")
    return 1 if failed(records) or all(record.verdict == "unsupported" for record in records) else 0


def _list(options: argparse.Namespace) -> int:
    from parity.cases.case import case_ids
    from parity.cases.families import families
    from parity.converters.registry import BROKEN, chains, not_installed
    from parity.paths import PATHS

    for path in PATHS:
        if path.missing():
            print(f"{path.name}: needs {', '.join(path.missing())}: {path.install_command}")
            continue
        print(f"{path.name}: {', '.join(chain.name for chain in chains(path))}")
        for absent in not_installed(path):
            print(f"  {absent.name} needs {', '.join(absent.missing())}: {absent.install_command}")
        names = ", ".join(families(path.source))
        print(f"  {len(case_ids(source=path.source))} cases of the families {names}")
    for name, reason in BROKEN.items():
        print(f"converters of entry point {name!r} cannot be loaded: {reason}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from parity import report

    if options.converters:
        differences = report.compare_converters(options.first, *options.converters)
    elif options.second:
        differences = report.compare(options.first, options.second)
    else:
        raise ParityError("give a second run to compare with, or --converters FIRST SECOND")
    print(differences.text)
    return 1 if differences.regressed else 0


def _report(options: argparse.Namespace) -> int:
    from parity import report

    try:
        print(report.write(options.folder))
    except OSError as error:
        raise ParityError(f"cannot write the report to {options.folder}: {error.strerror}") from error
    return 0


def _setup(options: argparse.Namespace) -> int:
    from parity.converters.ocp_sensitivity import acados_installation

    folder = acados_installation.install()
    print(f"acados {acados_installation.version(folder)} is in {folder}")
    acados_installation.find()
    return 0


def _merge(options: argparse.Namespace) -> int:
    from parity.report.reading import read_run
    from parity.run_folder import RunFolder, run_id

    runs = [read_run(folder) for folder in options.runs]
    environment = {"merged from": [str(folder) for folder in options.runs], **runs[0].environment}
    notices = [notice for run in runs for notice in run.notices]
    merged = RunFolder(options.folder, run_id(), environment, notices)
    for run in runs:
        for record in run.records:
            merged.append(record)  # which keeps its own run
    merged.close()
    print(merged.index)
    return 0


if __name__ == "__main__":
    sys.exit(main())
