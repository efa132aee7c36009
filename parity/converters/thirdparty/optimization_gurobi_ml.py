"""gurobi-machinelearning: https://github.com/Gurobi/gurobi-machinelearning (its pip licence takes small models)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter
from parity.errors import Unsupported

if TYPE_CHECKING:
    from parity.embedding import GurobiEmbedding


@converter("torch", "optimization", name="gurobi-ml", requires=("gurobipy", "gurobi_ml"))
def gurobi_ml(model: Any, example: tuple[Any, ...], *, box: tuple[Any, Any] | None = None) -> GurobiEmbedding:
    """`add_predictor_constr` on a torch.nn.Sequential."""
    import gurobipy
    from gurobi_ml import add_predictor_constr
    from gurobi_ml.exceptions import ModelConfigurationError, NoModel, NoSolution, ParameterError

    from parity.converters.thirdparty.optimization_chain import BOX, ERROR, TIME_LIMIT, box_of, chain, line
    from parity.embedding import GurobiEmbedding, Size

    layers = chain(model)
    lower, upper = box_of(example, box or BOX)
    environment = gurobipy.Env(params={"OutputFlag": 0})
    gurobi = gurobipy.Model(env=environment)
    x: Any = gurobi.addMVar((1, len(lower)), lb=lower, ub=upper)
    outputs = layers(example[0]).numel()
    y: Any = gurobi.addMVar((1, outputs), lb=-gurobipy.GRB.INFINITY)
    try:
        add_predictor_constr(gurobi, layers, x, y)
    except (ModelConfigurationError, NoModel, NoSolution, ParameterError) as error:
        raise Unsupported(line(error)) from error
    gurobi.update()
    return GurobiEmbedding(
        lower=lower,
        upper=upper,
        outputs=outputs,
        solver="gurobi",
        local=False,
        kinks=False,
        error=ERROR,
        time_limit=TIME_LIMIT,
        size=Size(gurobi.NumVars, gurobi.NumConstrs + gurobi.NumGenConstrs, gurobi.NumBinVars + gurobi.NumGenConstrs),
        model=gurobi,
        x=list(x.tolist()[0]),
        y=list(y.tolist()[0]),
    )
