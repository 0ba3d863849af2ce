"""Binds an inner problem: every user function, by name, closes over nothing."""

from collections.abc import Callable
from typing import Any

from bilevel import closures, derivatives, trees
from bilevel.inner_problem import (
    InnerProblem,
    InnerSolver,
    Parameters,
    Preconditioner,
    UserFunction,
)
from bilevel.trees import Tree


def bind(
    objective: Callable[..., Any],
    solver: InnerSolver,
    arguments: tuple[Tree, Tree, Any],
    *,
    has_aux: bool = False,
    functions: tuple[UserFunction, ...] = (),
    initial: Callable[[Tree, Any], Tree] | None = None,
    preconditioner: Preconditioner | None = None,
) -> tuple[InnerProblem, Parameters]:
    """The inner problem as functions of explicit arguments only.

    Args:
        objective: `(inner, outer, batch) -> scalar`, or `(scalar, aux)`.
        solver: with the functions of the user's that it holds.
        arguments: an example of w, x and the batch.
        has_aux: the objective returns auxiliary output.
        functions: more functions of the user's, those of a rule.
        initial: `(outer, batch) -> inner`, or None.
        preconditioner: of the Hessian, or None.

    Raises:
        ValueError: two functions of one name: one would be called in place of the
            other; a preconditioner of a matrix that is no Hessian at a minimum.
    """
    if preconditioner is not None:
        _require_minimum(solver, preconditioner)
        functions = (*functions, *preconditioner.functions)
    _require_names([f.name for f in (*solver.functions, *functions)])
    inner, outer, batch = arguments
    parameters = Parameters(outer, batch, {})
    explicit, parameters = bind_objective("objective", objective, inner, parameters)
    bound = {}
    for function in (*solver.functions, *functions):
        name = function.name
        bound[name], constants = _bound(function, arguments)
        parameters = _with_constants(parameters, name, constants)
    start = None
    if initial is not None:
        hoisted, constants = closures.hoist(initial, outer, batch)
        parameters = _with_constants(parameters, "initial", constants)
        start = lambda p: hoisted(p.constants["initial"], p.outer, p.batch)
    oracle = derivatives.oracle(explicit, has_aux=has_aux)
    oracle = oracle._replace(functions=bound)
    if preconditioner is not None:
        oracle = oracle._replace(precondition=_precondition(preconditioner))
    problem = InnerProblem(solver, oracle, explicit, start, preconditioner)
    return problem, parameters


def _precondition(
    preconditioner: Preconditioner,
) -> Callable[[Parameters, Tree], Tree]:
    def precondition(parameters: Parameters, r: Tree) -> Tree:
        if parameters.preconditioner is None:
            return r
        result = preconditioner.apply(parameters.preconditioner, r)
        trees.require_like(result, r, f"{preconditioner.name}: apply(state, r)", "r")
        return result

    return precondition


def _require_minimum(solver: InnerSolver, preconditioner: Preconditioner) -> None:
    if solver.structure != "positive_definite":
        raise ValueError(
            f"the preconditioner {preconditioner.name!r} approximates the inverse of a "
            "positive-definite Hessian, but the Jacobian of the optimality map of this "
            f"inner solver is {solver.structure}. Leave the preconditioner out, or use "
            "an inner solver whose optimality map is dG/dw."
        )


def bind_objective(
    name: str, objective: Callable[..., Any], inner: Tree, parameters: Parameters
) -> tuple[Callable[[Tree, Parameters], Any], Parameters]:
    """An objective as a function of `(inner, parameters)` that closes over nothing.

    Args:
        name: under which the values that it closes over are kept.
        objective: `(inner, outer, batch) -> anything`.
        inner: an example of w.
        parameters: x and the batch, with the constants of other functions.

    Returns:
        The function, and the parameters with its constants.
    """
    hoisted, constants = closures.hoist(
        objective, inner, parameters.outer, parameters.batch
    )

    def explicit(inner: Tree, p: Parameters) -> Any:
        return hoisted(p.constants[name], inner, p.outer, p.batch)

    return explicit, _with_constants(parameters, name, constants)


def _require_names(names: list[str]) -> None:
    taken = [*names, "objective", "outer_objective", "initial"]
    twice = sorted({name for name in taken if taken.count(name) > 1})
    if twice:
        raise ValueError(
            "the functions of an inner solver and of a rule must have names of their "
            f"own, other than objective, outer_objective and initial; got {twice} "
            "more than once. Rename one of them (UserFunction.name)."
        )


def _with_constants(
    parameters: Parameters, name: str, constants: list[Any]
) -> Parameters:
    return parameters._replace(constants={**parameters.constants, name: constants})


def _bound(
    function: UserFunction, arguments: tuple[Tree, Tree, Any]
) -> tuple[Callable[..., Any], list[Any]]:
    """A function of the user's as `(parameters, *arguments)`, and its constants."""
    name, call = function.name, function.call
    example = function.example(*arguments)
    made = None if function.made is None else function.made(*arguments)
    inside: list[Callable[..., Any]] = []

    def parts(*args: Any) -> Any:
        """What the function returns; of a function, the values that it closes over."""
        if made is None:
            return call(*args)
        hoisted, values = closures.hoist(call(*args), *made)
        inside.append(hoisted)
        return values

    hoisted, constants = closures.hoist_traced(parts, *example)
    if hoisted is None:  # it closes over nothing that is traced
        return lambda _, *args: call(*args), []

    def bound(p: Parameters, *args: Any) -> Any:
        out = hoisted(p.constants[name], *args)
        return out if made is None else lambda *rest: inside[0](out, *rest)

    return bound, constants
