"""PySCIPOpt-ML: https://github.com/Opt-Mucca/PySCIPOpt-ML"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.errors import Unsupported

if TYPE_CHECKING:
    from parity.embedding import ScipEmbedding


@converter("torch", "optimization", name="pyscipopt-ml", requires=("pyscipopt", "pyscipopt_ml"))
def pyscipopt_ml(
    model: Any, example: tuple[Any, ...], *, box: tuple[Any, Any] | None = None, formulation: str = "sos"
) -> ScipEmbedding:
    """`add_predictor_constr` on a torch.nn.Sequential; ReLU by `formulation`, `sos` (its default) or `bigm`."""
    import numpy as np
    import pyscipopt
    from pyscipopt_ml.add_predictor import add_predictor_constr
    from pyscipopt_ml.exceptions import NoModel, ParameterError

    from parity.converters.thirdparty.optimization_chain import BOX, ERROR, TIME_LIMIT, box_of, chain, line
    from parity.embedding import ScipEmbedding, Size

    layers = chain(model)
    lower, upper = box_of(example, box or BOX)
    scip = pyscipopt.Model()
    scip.hideOutput()
    x = np.array(
        [[scip.addVar(f"x{i}", lb=low, ub=high) for i, (low, high) in enumerate(zip(lower, upper, strict=True))]]
    )
    outputs = layers(example[0]).numel()
    y = np.array([[scip.addVar(f"y{i}", lb=None, ub=None) for i in range(outputs)]])
    try:
        add_predictor_constr(scip, layers, x.reshape(example[0].shape), y, unique_naming_prefix="net_",
                             formulation=formulation)  # fmt: skip
    except (NoModel, ParameterError) as error:
        raise Unsupported(line(error)) from error
    sets = sum(constraint.getConshdlrName() == "SOS1" for constraint in scip.getConss())
    binaries = sum(variable.vtype() == "BINARY" for variable in scip.getVars())
    return ScipEmbedding(
        lower=lower,
        upper=upper,
        outputs=outputs,
        solver="scip",
        local=False,
        kinks=False,
        error=ERROR,
        time_limit=TIME_LIMIT,
        size=Size(scip.getNVars(), scip.getNConss(), binaries + sets),
        model=scip,
        x=list(x.ravel()),
        y=list(y.ravel()),
    )
