"""Engines that turn an optimal control problem into a solution map with derivatives, one module each.

Those known to be wrong are offered too (`suites/deviations_ocp.py` says why): a comparison that does not catch them
would be worth nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from parity.converters.registry import converter

if TYPE_CHECKING:
    from parity.cases.ocp import OptimalControlProblem
    from parity.runtimes.solution_map import SolutionMap


@converter("ocp", "solution-map", name="kkt")
def kkt(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """Newton-polished solution, active set, implicit function theorem; float64, dense, no compiler."""
    from parity.converters.ocp_sensitivity.kkt_map import KktMap

    return KktMap(problem)


@converter("ocp", "solution-map", name="finite-differences")
def finite_differences(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """Adaptive central differences of tight, warm-started solves."""
    from parity.converters.ocp_sensitivity.differences_map import DifferencesMap

    return DifferencesMap(problem)


@converter("ocp", "solution-map", name="casadi-nlpsol")
def casadi_nlpsol(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """CasADi's derivative of IPOPT, with multipliers of inactive bounds set to zero."""
    from parity.converters.ocp_sensitivity.nlpsol_map import IPOPT, NlpsolMap

    return NlpsolMap(problem, IPOPT)


@converter("ocp", "solution-map", name="casadi-nlpsol-sqpmethod")
def casadi_nlpsol_sqpmethod(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """CasADi's derivative of its own SQP method with qrqp."""
    from parity.converters.ocp_sensitivity.nlpsol_map import SQPMETHOD, NlpsolMap

    return NlpsolMap(problem, SQPMETHOD)


@converter("ocp", "solution-map", name="casadi-nlpsol-fatrop")
def casadi_nlpsol_fatrop(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """CasADi's derivative of Fatrop."""
    from parity.converters.ocp_sensitivity.nlpsol_map import FATROP, NlpsolMap

    return NlpsolMap(problem, FATROP)


@converter("ocp", "solution-map", name="casadi-nlpsol-ipopt-plain")
def casadi_nlpsol_ipopt_plain(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """CasADi's derivative of IPOPT with default options."""
    from parity.converters.ocp_sensitivity.nlpsol_map import IPOPT_PLAIN, NlpsolMap

    return NlpsolMap(problem, IPOPT_PLAIN)


@converter("ocp", "solution-map", name="casadi-nlpsol-ipopt-min-lam")
def casadi_nlpsol_ipopt_min_lam(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """CasADi's derivative of IPOPT with its option `min_lam=1e-7`: right unless an equation has no multiplier."""
    from parity.converters.ocp_sensitivity.nlpsol_map import IPOPT_MIN_LAM, NlpsolMap

    return NlpsolMap(problem, IPOPT_MIN_LAM)


@converter("ocp", "solution-map", name="acados-polished")
def acados_polished(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """acados, solved to 1e-8, then two QPs to the last digit at the solution, then `eval_param_sens`."""
    from parity.converters.ocp_sensitivity.acados_map import AcadosMap

    return AcadosMap(problem, tolerance=1e-8, polish=True)


@converter("ocp", "solution-map", name="acados")
def acados(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """acados at its default tolerance: solve, then `eval_param_sens`, as its examples do."""
    from parity.converters.ocp_sensitivity.acados_map import AcadosMap

    return AcadosMap(problem, tolerance=1e-6)


@converter("ocp", "solution-map", name="acados-1e-8")
def acados_1e_8(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """The plain call at tolerance 1e-8."""
    from parity.converters.ocp_sensitivity.acados_map import AcadosMap

    return AcadosMap(problem, tolerance=1e-8)


@converter("ocp", "solution-map", name="acados-1e-10")
def acados_1e_10(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """The plain call at tolerance 1e-10."""
    from parity.converters.ocp_sensitivity.acados_map import AcadosMap

    return AcadosMap(problem, tolerance=1e-10)


@converter("ocp", "solution-map", name="acados-gauss-newton")
def acados_gauss_newton(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """acados with the Gauss-Newton Hessian, polished: the solution is right, its derivative is not."""
    from parity.converters.ocp_sensitivity.acados_map import AcadosMap

    return AcadosMap(problem, tolerance=1e-8, polish=True, exact_hessian=False)


@converter("ocp", "solution-map", name="acados-official")
def acados_official(problem: OptimalControlProblem, example: Any = None) -> SolutionMap:
    """The user's own installation of a newer acados, by its solution sensitivities with respect to `p_global`."""
    from parity.converters.ocp_sensitivity.official_map import OfficialMap

    return OfficialMap(problem)
