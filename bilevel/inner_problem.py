"""The inner problem, once it is bound: what it depends on, and how it is solved.

A user writes functions of `(inner, outer, batch)` that may close over anything: data, a
step size, a value that is being differentiated.  A derivative rule must see all of that
as arguments.  `binding.bind` turns every function, by name, into one of `(parameters,
...)` that closes over nothing, and from then on there is one thing that the problem
depends on, its `Parameters`.

Notation: w is the inner variable, x the outer one, G(w, parameters) the inner objective
and R(w, parameters) the optimality map, which is zero at the solution: dG/dw, or
w - T(w) for a fixed point.  With A = dR/dw, the derivative of the solution is
-A^-1 dR/dparameters.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from bilevel import closures, trees
from bilevel.derivatives import Oracle
from bilevel.trees import Tree

Structure: TypeAlias = Literal["positive_definite", "symmetric", "general"]
"""What is known of the matrix A = dR/dw at a solution: symmetric and positive definite
(the Hessian at a minimum), symmetric only (a saddle: the Lagrangian of a constrained
problem), or nothing."""


class Parameters(NamedTuple):
    """All that an inner problem depends on besides the inner variable.

    Attributes:
        outer: the outer variable x.
        batch: the data, any pytree.
        constants: by the name of each function of the user's, the values that it closes
            over, as a list of arrays.
        preconditioner: its state, on which no solution depends; None for none.
        tolerance: `[]`, a relative accuracy that is enough for now, in place of finer
            defaults of solvers (one that a user chose stays); None for none.
    """

    outer: Tree
    batch: Any
    constants: dict[str, list[Any]]
    preconditioner: Any = None
    tolerance: jax.Array | None = None


class UserFunction(NamedTuple):
    """A function of the user's inside of a solver or a rule.

    Attributes:
        name: of what it is; no two of a solver and a rule that go together alike.
        call: the function, of pytrees of arrays.
        example: `(inner, outer, batch) -> arguments`, with which it will be called.
        made: where the function returns a function (a preconditioner), an example of
            the arguments of that: `(inner, outer, batch) -> arguments`.
    """

    name: str
    call: Callable[..., Any]
    example: Callable[[Tree, Tree, Any], tuple[Any, ...]]
    made: Callable[[Tree, Tree, Any], tuple[Any, ...]] | None = None


class StepInfo(NamedTuple):
    """What one step reports about the point it started from; all fields are scalars.

    Attributes:
        residual_norm: |residual| at the old point, a by-product of the step.
        scale: the size a residual has at a point that is no solution, independent of
            the starting point (|w| for fixed points).  None lets the driver estimate
            curvature times |w| from how the residual changes along the steps, which no
            constant added to the objective can move.
        stalled: rounding lets no step improve the point any more.
        relative: a sharper relative measure than residual_norm / max(scale, its norm at
            the start), where the solver has one: Newton's |d| / |w|.
    """

    residual_norm: jax.Array
    scale: jax.Array | None
    stalled: jax.Array
    relative: jax.Array | None = None


class Init(Protocol):
    """Makes the state of an inner solver."""

    def __call__(self, oracle: Oracle, inner: Tree, parameters: Parameters, /) -> Any:
        """The state before the first step from `inner`: any pytree of arrays."""
        ...


class Step(Protocol):
    """One step of an inner solver."""

    def __call__(
        self, oracle: Oracle, inner: Tree, state: Any, parameters: Parameters, /
    ) -> tuple[Tree, Any, StepInfo]:
        """`(inner, state, info)`: the next point, the next state, and a report."""
        ...


class Optimality(Protocol):
    """The map R that is zero at the solution; pull-back rules differentiate it."""

    def __call__(self, oracle: Oracle, inner: Tree, parameters: Parameters, /) -> Tree:
        """R(w, parameters), a tree like `inner`: the gradient of G, or w - T(w)."""
        ...


class Escape(Protocol):
    """A way out of a stationary point that is no minimum."""

    def __call__(
        self, oracle: Oracle, inner: Tree, parameters: Parameters, attempt: jax.Array, /
    ) -> tuple[Tree, jax.Array]:
        """`(inner, found)`: a better point, and whether there is one (`[]` bool)."""
        ...


class Unknowns(NamedTuple):
    """What is solved for, where that is more than w: multipliers of constraints.

    The optimality map, its matrix, and the steps of the solver are those of the
    unknowns; objectives see w only.

    Attributes:
        extend: `(oracle, inner, parameters) -> unknowns`, to start from.
        restrict: `unknowns -> inner`; it picks leaves.
    """

    extend: Callable[[Oracle, Tree, Parameters], Tree]
    restrict: Callable[[Tree], Tree]


class InnerSolver(NamedTuple):
    """Solves an inner problem, given by its `Oracle`; construct it by keyword.

    Attributes:
        init: see `Init`.
        step: see `Step`.
        optimality: see `Optimality`.
        structure: of the Jacobian of the optimality map: decides the linear solver of
            rules and certificates.
        max_steps: the cap on the number of steps.
        rtol: stop at |optimality| <= rtol * max(scale, its norm at the start), or where
            the solver's own relative measure is that small; None means the rounding
            unit to the power 3/4.
        functions: of the user's (mapping, solution, optimizer); bound, they are
            `oracle.functions[name](parameters, *arguments)`.
        closed_form: one step is the solution; it sees a tilt, but no opaque nudge.
        reverse_differentiable: reverse mode can pass through a step.
        escape: see `Escape`; the driver goes on from there.  None for a solver that
            does not look.
        unknowns: see `Unknowns`; None where w is all.
        preconditioned: its steps use `oracle.precondition`.
    """

    init: Init
    step: Step
    optimality: Optimality
    structure: Structure
    max_steps: int
    rtol: float | None
    functions: tuple[UserFunction, ...] = ()
    closed_form: bool = False
    reverse_differentiable: bool = True
    escape: Escape | None = None
    unknowns: Unknowns | None = None
    preconditioned: bool = False


class Pairs(NamedTuple):
    """The last m directions p of a linear solve, and their products H p, in any order.

    Attributes:
        directions: each leaf `[m, *shape]`; rows of zeros where there were fewer.
        products: likewise.
    """

    directions: Tree
    products: Tree


class Refresh(Protocol):
    """Fits the state of a preconditioner to the Hessian at a point."""

    def __call__(
        self, oracle: Oracle, inner: Tree, parameters: Parameters, state: Any, /
    ) -> Any:
        """The new state, of the structure of the old one."""
        ...


class Preconditioner(NamedTuple):
    """An approximate inverse of the Hessian H = d2G/dw2, with a state.

    It serves every linear solve with H: of the adjoint, of Newton's directions, of
    nudged problems and of the certificate.  It changes what they cost, not what they
    solve.  An outer loop carries the state from step to step.

    Attributes:
        name: as in the literature.
        init: `inner -> state` before anything is known: `apply` is the identity then.
            None in place of a state: nothing is carried.
        refresh: see `Refresh`.
        apply: `(state, r) -> about H^-1 r`, linear, symmetric and positive definite.
        every: the state is refreshed at every so many solutions.  (Under `jax.vmap`,
            which computes both branches of a choice, that saves nothing.)
        observe: `(state, Pairs) -> state`, learns from the adjoint solve that has just
            ended; None for one that does not.
        num_pairs: how many pairs it wants to see.
        functions: of the user's, bound with the inner problem.
    """

    name: str
    init: Callable[[Tree], Any]
    refresh: Refresh
    apply: Callable[[Any, Tree], Tree]
    every: int = 1
    observe: Callable[[Any, Pairs], Any] | None = None
    num_pairs: int = 0
    functions: tuple[UserFunction, ...] = ()


class InnerProblem(NamedTuple):
    """min over w of G(w, parameters), bound, with the solver to use.

    Attributes:
        solver: with its settings.
        oracle: the inner objective, and every other function of the user's.
        objective: `(inner, parameters) -> scalar`, or `(scalar, aux)`.
        initial: `parameters -> inner`, where the solver starts, if that is a function
            of x (meta-learning); None where the caller gives it.
        preconditioner: of H, or None.
    """

    solver: InnerSolver
    oracle: Oracle
    objective: Callable[[Tree, Parameters], Any]
    initial: Callable[[Parameters], Tree] | None = None
    preconditioner: Preconditioner | None = None

    def start(self, inner0: Tree, parameters: Parameters) -> Tree:
        """Where the solver starts: unknowns."""
        if self.initial is not None:
            inner0 = self.initial(parameters)
        unknowns = self.solver.unknowns
        if unknowns is None:
            return inner0
        return unknowns.extend(self.oracle, inner0, parameters)

    def optimality(self, inner: Tree, parameters: Parameters) -> Tree:
        """R(w, parameters), a tree like `inner`."""
        return self.solver.optimality(self.oracle, inner, parameters)

    def restrict(self, unknowns: Tree) -> Tree:
        """The inner variable among the unknowns."""
        found = self.solver.unknowns
        return unknowns if found is None else found.restrict(unknowns)


class Differentiated(NamedTuple):
    """The part of the parameters that is differentiated.

    Attributes:
        values: a tree of floating-point arrays.
        build: `values -> Parameters`.
    """

    values: Tree
    build: Callable[[Tree], Parameters]

    def parameters(self) -> Parameters:
        """All parameters, at the present values."""
        return self.build(self.values)


def perturbed(parameters: Parameters, flags: Sequence[bool]) -> Differentiated:
    """The leaves of the parameters that JAX is differentiating.

    Args:
        parameters: with leaves of any dtype.
        flags: for each leaf, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: one of them is complex: its gradient would silently be zero.
    """
    leaves, treedef = jax.tree.flatten(parameters)
    for (path, leaf), flag in zip(
        jax.tree_util.tree_leaves_with_path(parameters), flags, strict=True
    ):
        if flag and jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                "a complex value is being differentiated through an argmin: "
                f"{leaf.dtype}{list(leaf.shape)} at {jax.tree_util.keystr(path)}. Pass "
                "its real and imaginary parts as two real arrays and build the complex "
                "one inside of the objective, or put jax.lax.stop_gradient around it."
            )
    places = [
        i
        for i, (x, f) in enumerate(zip(leaves, flags, strict=True))
        if f and trees.is_float(x)
    ]

    def build(values: list[Any]) -> Parameters:
        merged = list(leaves)
        for i, value in zip(places, values, strict=True):
            merged[i] = value
        return jax.tree.unflatten(treedef, merged)

    return Differentiated([leaves[i] for i in places], build)


def stationarity(oracle: Oracle, inner: Tree, parameters: Parameters) -> Tree:
    """dG/dw, the optimality map of solvers of smooth problems."""
    return oracle.gradient(inner, parameters)


def optimality(
    problem: InnerProblem, differentiated: Differentiated
) -> Callable[[Tree, Tree], Tree]:
    """The optimality map as a function of `(inner, differentiated.values)`."""
    return lambda inner, values: problem.optimality(inner, differentiated.build(values))


def require_dependence(
    problem: InnerProblem,
    inner: Tree,
    differentiated: Differentiated,
    *,
    through_start: bool = False,
) -> None:
    """Raises `ValueError` if the solution cannot depend on what is differentiated.

    Args:
        problem: the inner problem.
        inner: an example of the unknowns.
        differentiated: what is differentiated.
        through_start: the rule sees how the solution depends on its initial point.
    """
    residual = optimality(problem, differentiated)
    if closures.depends_on(residual, (inner, differentiated.values), 1):
        return
    if problem.initial is not None and through_start:
        start = lambda values: problem.start(None, differentiated.build(values))
        if closures.depends_on(start, (differentiated.values,), 0):
            return
    raise ValueError(
        "the inner solution does not depend on the outer variable: the gradient of "
        "the inner objective contains no leaf of it, so that the hypergradient "
        "through the argmin would be zero. Check that the inner objective uses its "
        "second argument. An outer variable that enters only through the initial "
        "point (MAML) needs hypergradients.unrolled(), and Problem(initial=...) or "
        "jax.grad over argmin."
    )
