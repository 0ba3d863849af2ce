"""The contract of preconditioners: each member of the list passes all of it.

A preconditioner may change what a solve costs, never what it solves.
"""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bilevel
from bilevel import hypergradients, inner_solvers, linear_solvers, solvers
from bilevel import preconditioners as family
from bilevel.binding import bind
from bilevel.inner_problem import Pairs
from bilevel.preconditioners.layers import tap

NUM, DIM, CLASSES = 60, 6, 3


def by_hand(w: Any, x: Any, batch: Any) -> Any:
    """The absolute Hessian, row by row of the tree, flattened."""
    flat, unravel = jax.flatten_util.ravel_pytree(w)
    hessian = jax.hessian(lambda v: loss(unravel(v), x, batch))(flat)
    values, vectors = jnp.linalg.eigh(hessian)
    sizes = jnp.abs(values) + 1e-3

    def apply(r: Any) -> Any:
        b = jax.flatten_util.ravel_pytree(r)[0]
        return unravel(vectors @ ((vectors.T @ b) / sizes))

    return apply


MEMBERS = {
    "from_function": family.from_function(by_hand),
    "jacobi": family.jacobi(),
    "jacobi, every second": family.jacobi(num_probes=3, every=2),
    "kronecker": family.kronecker(),
    "kronecker, every third": family.kronecker(every=3),
    "limited_memory": family.limited_memory(8),
    "nystrom": family.nystrom(5),
    "nystrom, more than there are": family.nystrom(60, every=2),
}
CARRIED = [name for name in MEMBERS if name != "from_function"]


def make_data(seed: int) -> dict[str, jax.Array]:
    keys = jax.random.split(jax.random.key(seed), 2)
    scales = jnp.geomspace(1.0, 0.05, DIM)
    inputs = jax.random.normal(keys[0], (NUM, DIM), jnp.float64) * scales[None]
    labels = jax.random.randint(keys[1], (NUM,), 0, CLASSES)
    return {"inputs": inputs, "labels": labels}


TRAIN, VALIDATION = make_data(0), make_data(1)
# A leaf of each kind: matrix, vector, scalar, one that nothing but its penalty touches,
# and one without elements.
START = {
    "kernel": jnp.zeros((DIM, CLASSES), jnp.float64),
    "bias": jnp.zeros(CLASSES, jnp.float64),
    "scale": jnp.ones((), jnp.float64),
    "idle": jnp.ones((2, 2), jnp.float64),
    "empty": jnp.zeros((0, 3), jnp.float64),
}
OUTER = {
    "penalties": jnp.linspace(-5.0, -2.0, DIM, dtype=jnp.float64),
    "bias": jnp.array(-2.0, jnp.float64),
}
BATCHES = bilevel.Batches(TRAIN, VALIDATION)


def cross_entropy(w: Any, data: Any) -> Any:
    logits = w["scale"] * (data["inputs"] @ w["kernel"]) + w["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(
        logits, data["labels"]
    ).mean()


def loss(w: Any, x: Any, data: Any) -> Any:
    penalty = jnp.sum(jnp.exp(x["penalties"])[:, None] * w["kernel"] ** 2)
    penalty += jnp.exp(x["bias"]) * jnp.sum(w["bias"] ** 2)
    penalty += (w["scale"] - 1.0) ** 2 + jnp.sum((w["idle"] - x["bias"]) ** 2)
    return cross_entropy(w, data) + penalty / 2 + jnp.sum(w["empty"] ** 2)


def validation(w: Any, x: Any, data: Any) -> Any:
    return cross_entropy(w, data) + 0.1 * jnp.sum(w["idle"] ** 2)


def problem(name: str | None) -> bilevel.Problem:
    given = None if name is None else MEMBERS[name]
    return bilevel.Problem(loss, validation, preconditioner=given)


def same(a: Any, b: Any, rtol: float) -> None:
    """Equal trees, each leaf relative to the size of the whole."""
    leaves = [jax.tree.leaves(t) for t in (a, b)]
    whole = max(float(jnp.linalg.norm(x)) for x in leaves[1] if x.size)
    for x, y in zip(*leaves, strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * whole)


SOLVERS = {
    "newton": inner_solvers.newton(rtol=1e-10),
    "descent": inner_solvers.gradient_descent(0.4, max_steps=4000, rtol=1e-10),
}
RULES = {
    "implicit": hypergradients.implicit(linear_solvers.cg(rtol=1e-10)),
    "nudged": hypergradients.nudged(1e-4),
}


def evaluated(name: str | None, solver: str, rule: str, **settings: Any) -> Any:
    evaluate = bilevel.value_and_hypergradient(
        problem(name), SOLVERS[solver], RULES[rule], **settings
    )
    return lambda x: evaluate(START, x, BATCHES)


@pytest.fixture(scope="module")
def exact() -> Any:
    """The hypergradient without a preconditioner."""
    return jax.jit(evaluated(None, "newton", "implicit", certify=False))(OUTER).gradient


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.thinned(32)
def test_hypergradient_is_the_same_and_trusted(
    name: str, solver: str, rule: str, exact: Any
):
    out = jax.jit(evaluated(name, solver, rule))(OUTER)
    same(out.gradient, exact, 1e-7 if rule == "implicit" else 1e-5)
    assert bool(out.info.trustworthy)


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("mode", ["reverse", "forward", "batch"])
@pytest.mark.thorough
def test_through_argmin(name: str, mode: str, exact: Any):
    solve = bilevel.argmin(
        loss,
        SOLVERS["newton"],
        RULES["implicit"],
        on_untrustworthy="nan",
        preconditioner=MEMBERS[name],
    )

    def value(x: Any) -> Any:
        return validation(solve(START, x, TRAIN)[0], x, VALIDATION)

    if mode == "batch":
        shifted = jax.tree.map(lambda x: jnp.stack([x - 0.5, x]), OUTER)
        both = jax.jit(jax.vmap(jax.grad(value)))(shifted)
        got = jax.tree.map(lambda x: x[1], both)
    else:
        got = jax.jit({"reverse": jax.grad, "forward": jax.jacfwd}[mode](value))(OUTER)
    same(got, exact, 1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MEMBERS)
def test_eagerly_twice(name: str, exact: Any):
    evaluate = evaluated(name, "newton", "implicit")
    other = jax.tree.map(lambda x: x - 0.5, OUTER)
    same(evaluate(OUTER).gradient, exact, 1e-7)
    expected = evaluated(None, "newton", "implicit")(other).gradient
    same(evaluate(other).gradient, expected, 1e-7)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MEMBERS)
def test_outer_hessian(name: str):
    def hessian(name: str | None) -> Any:
        evaluate = evaluated(name, "newton", "implicit", certify=False)
        return jax.jit(jax.jacfwd(lambda x: evaluate(x).gradient))(OUTER)

    same(hessian(name), hessian(None), 1e-6)


def fitted(name: str, w: Any = None) -> Any:
    """The state of a member, fitted at w, and an apply."""
    member = MEMBERS[name]
    w = START if w is None else w
    bound, parameters = bind(
        loss, SOLVERS["newton"], (START, OUTER, TRAIN), preconditioner=member
    )
    state = member.refresh(bound.oracle, w, parameters, member.init(w))
    if member.observe is not None:
        hessian = jax.jvp
        probes = jax.tree.map(
            lambda x: jax.random.normal(
                jax.random.key(x.size), (member.num_pairs, *x.shape), x.dtype
            ),
            w,
        )
        gradient = lambda w: bound.oracle.gradient(w, parameters)
        products = jax.vmap(lambda p: hessian(gradient, (w,), (p,))[1])(probes)
        state = member.observe(state, Pairs(probes, products))
    return state


def dense(apply: Any) -> np.ndarray:
    """A linear map of trees as a matrix."""
    flat, unravel = jax.flatten_util.ravel_pytree(START)
    column = lambda e: jax.flatten_util.ravel_pytree(apply(unravel(e)))[0]
    return np.asarray(jax.jit(jax.vmap(column))(jnp.eye(flat.size))).T


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.thinned(3)
def test_symmetric_positive_definite_and_at_first_the_identity(name: str):
    matrix = dense(lambda r: MEMBERS[name].apply(fitted(name), r))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-9 * np.abs(matrix).max())
    assert np.linalg.eigvalsh((matrix + matrix.T) / 2)[0] > 0
    start = MEMBERS[name].init(START)
    if start is not None:
        first = dense(lambda r: MEMBERS[name].apply(start, r))
        np.testing.assert_allclose(first, np.eye(len(first)), atol=1e-15)


def conditions(name: str) -> tuple[float, float]:
    """The condition of H at the start, without and with the preconditioner."""
    flat, unravel = jax.flatten_util.ravel_pytree(START)
    hessian = jax.hessian(lambda v: loss(unravel(v), OUTER, TRAIN))(flat)
    matrix = dense(lambda r: MEMBERS[name].apply(fitted(name), r))
    root = np.linalg.cholesky((matrix + matrix.T) / 2)
    values = np.linalg.eigvalsh(root.T @ np.asarray(hessian) @ root)
    plain = np.linalg.eigvalsh(hessian)
    return plain[-1] / plain[0], values[-1] / values[0]


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("from_function", 50),
        ("kronecker", 8),
        ("jacobi", 1.5),
        ("nystrom, more than there are", 150),
    ],
)
@pytest.mark.thinned(2)
def test_the_condition_falls(name: str, factor: float):
    plain, preconditioned = conditions(name)
    assert preconditioned * factor < plain


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.thinned(3)
def test_state_is_a_carry_of_one_structure_and_dtype(name: str):
    start = MEMBERS[name].init(START)
    state = fitted(name)
    assert jax.tree.structure(start) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert bool(jnp.all(jnp.isfinite(b)))


def loop(name: str | None) -> Any:
    return solvers.two_loop(
        problem(name),
        inner_solvers.newton(rtol=1e-8),
        hypergradients.implicit(linear_solvers.cg(rtol=1e-6)),
        outer_optimizer=optax.sgd(0.5),
    )


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.thinned(16)
def test_outer_loop_goes_the_same_way_and_resumes_bit_for_bit(name: str):
    ends = []
    for member in (None, name):
        solver = loop(member)
        start = solver.init(START, OUTER, jax.random.key(0))
        end, _ = bilevel.run(solver, start, BATCHES, num_steps=6)
        ends.append((start, end))
    same(ends[1][1].outer, ends[0][1].outer, 1e-5)
    start, end = ends[1]
    half, _ = bilevel.run(loop(name), start, BATCHES, num_steps=3)
    # A checkpoint is the pytree of arrays: through NumPy and back.
    half = jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x),
        half,
    )
    half = jax.tree.map(jnp.asarray, half)
    again, _ = bilevel.run(loop(name), half, BATCHES, num_steps=3)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(end), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "every",
    [
        pytest.param(1, marks=pytest.mark.thorough),
        2,
        pytest.param(3, marks=pytest.mark.thorough),
    ],
)
def test_it_is_refreshed_at_every_kth_solution(every: int):
    evaluate = jax.jit(
        bilevel.value_and_hypergradient(
            problem(None)._replace(preconditioner=family.jacobi(every=every)),
            inner_solvers.gradient_descent(0.4, max_steps=5),
            certify=False,
        )
    )
    warm, states = None, []
    for step in range(7):
        x = jax.tree.map(lambda v, s=step: v + 0.1 * s, OUTER)
        warm = evaluate(START, x, BATCHES, warm).warm_start
        states.append(np.asarray(warm.preconditioner.state["kernel"]))
    assert int(warm.preconditioner.age) == 7
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(states)]
    assert changed == [step % every == 0 for step in range(1, 7)]


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("member", CARRIED)
@pytest.mark.thinned(12)
def test_narrow_dtypes(member: str, name: str):
    narrow = lambda tree: jax.tree.map(
        lambda x: x.astype(name) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree
    )
    evaluate = bilevel.value_and_hypergradient(
        problem(member),
        inner_solvers.gradient_descent(0.4, max_steps=3),
        certify=False,
    )
    call = lambda x: evaluate(
        narrow(START), x, bilevel.Batches(narrow(TRAIN), narrow(VALIDATION))
    )
    out = jax.jit(call)(narrow(OUTER))
    for x in jax.tree.leaves((out.gradient, out.warm_start)):
        assert bool(jnp.all(jnp.isfinite(x)))


@pytest.mark.parametrize("name", CARRIED)
@pytest.mark.thinned(4)
def test_a_point_that_ran_away_spoils_no_state(name: str):
    evaluate = jax.jit(
        bilevel.value_and_hypergradient(
            problem(name),
            inner_solvers.gradient_descent(0.4, max_steps=3),
            certify=False,
        )
    )
    first = evaluate(START, OUTER, BATCHES)
    away = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), START)
    lost = evaluate(away, OUTER, BATCHES, first.warm_start)
    for x in jax.tree.leaves(lost.warm_start.preconditioner):
        assert bool(jnp.all(jnp.isfinite(x)))


# What each is exact for.


def test_jacobi_of_a_diagonal():
    h = jnp.array([1e-3, 1.0, 2e3])
    member = family.jacobi(num_probes=1)
    bound, parameters = bind(
        lambda w, x, b: jnp.sum(h * w**2) / 2 + jnp.sum(w * x),
        inner_solvers.newton(),
        (jnp.zeros(3), jnp.zeros(3), None),
        preconditioner=member,
    )
    state = member.refresh(bound.oracle, jnp.ones(3), parameters, jnp.ones(3))
    np.testing.assert_allclose(member.apply(state, h), 1.0, rtol=1e-12)


@pytest.mark.parametrize("penalty", ["inputs", "outputs", "one"])
@pytest.mark.parametrize("transposed", [False, True])
def test_kronecker_of_least_squares_with_penalties_is_exact(
    penalty: str, transposed: bool
):
    """H = (A'A / n) x S + D, S any positive matrix, D for each row or column."""
    inputs = jax.random.normal(jax.random.key(0), (20_000, 4))
    root = jax.random.normal(jax.random.key(1), (3, 3))
    weights = {
        "inputs": jnp.array([[0.1], [1.0], [3.0], [0.5]]) * jnp.ones((1, 3)),
        "outputs": jnp.ones((4, 1)) * jnp.array([[0.3, 1.0, 5.0]]),
        "one": jnp.full((4, 3), 0.7),
    }[penalty]

    def objective(w: Any, x: Any, b: Any) -> Any:
        matrix = w.T if transposed else w
        outputs = jnp.einsum("ni,io->no", inputs, matrix)
        return jnp.mean(jnp.sum((outputs @ root) ** 2, axis=1)) / 2 + jnp.sum(
            weights * matrix**2 * x
        )

    w = jax.random.normal(jax.random.key(2), (3, 4) if transposed else (4, 3))
    member = family.kronecker(num_probes=8)
    bound, parameters = bind(
        objective, inner_solvers.newton(), (w, 1.0, None), preconditioner=member
    )
    state = member.refresh(bound.oracle, w, parameters, member.init(w))
    r = jax.random.normal(jax.random.key(3), w.shape)
    product = jax.jvp(lambda w: bound.oracle.gradient(w, parameters), (w,), (r,))[1]
    back = member.apply(state, product)
    # The noise of B: one over the root of rows and probes.
    assert float(jnp.linalg.norm(back - r) / jnp.linalg.norm(r)) < 0.02


def test_nystrom_of_a_few_large_eigenvalues():
    basis = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (30, 30)))[0]
    values = jnp.concatenate([jnp.array([1e3, 3e2, 50.0]), jnp.full(27, 0.5)])
    hessian = (basis * values[None]) @ basis.T
    member = family.nystrom(8)
    bound, parameters = bind(
        lambda w, x, b: w["a"] @ hessian @ w["a"] / 2 + jnp.sum(w["a"]) * x,
        inner_solvers.newton(),
        ({"a": jnp.zeros(30)}, 1.0, None),
        preconditioner=member,
    )
    w = {"a": jnp.ones(30)}
    state = member.refresh(bound.oracle, w, parameters, member.init(w))
    apply = jax.vmap(lambda e: member.apply(state, {"a": e})["a"])
    spectrum = np.linalg.eigvals(np.asarray(apply(jnp.eye(30)) @ hessian)).real
    assert 0.5 < spectrum.min() < spectrum.max() < 2  # 0.5 and 1e3 before


def test_nystrom_of_an_indefinite_hessian_is_left_alone():
    member = family.nystrom(3)
    bound, parameters = bind(
        lambda w, x, b: -jnp.sum(w**2) * x,
        inner_solvers.newton(),
        (jnp.zeros(5), 1.0, None),
        preconditioner=member,
    )
    w = jnp.ones(5)
    state = member.refresh(bound.oracle, w, parameters, member.init(w))
    np.testing.assert_array_equal(member.apply(state, w), w)


@pytest.mark.thorough
def test_limited_memory_inverts_what_it_saw():
    state = fitted("limited_memory")
    member = MEMBERS["limited_memory"]
    for i in range(member.num_pairs):
        p, y = (jax.tree.map(lambda x, i=i: x[i], t) for t in state.pairs)
        same(member.apply(state, y), p, 1e-8)


def test_limited_memory_keeps_what_it_has_where_a_solve_took_no_step():
    member = MEMBERS["limited_memory"]
    state = fitted("limited_memory")
    empty = jax.tree.map(jnp.zeros_like, state.pairs)
    again = member.observe(state, empty)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


# The layers of a model.


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(2, (2,))(x[..., None]).reshape(len(x), -1)
        return nn.Dense(CLASSES)(nn.tanh(nn.Dense(5)(x)))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(DIM, 5, rngs=rngs)
        self.second = nnx.Linear(5, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.second(jnp.tanh(self.first(x)))


def linen() -> tuple[Any, Any]:
    model = Linen()
    variables = model.init(jax.random.key(0), TRAIN["inputs"])
    return variables["params"], lambda w, x: model.apply({"params": w}, x)


def of_nnx() -> tuple[Any, Any]:
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    pure = nnx.to_pure_dict(state)

    def apply(w: Any, x: Any) -> Any:
        new = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(new, w)
        return nnx.merge(graph, new)(x)

    return pure, apply


def by_vmap() -> tuple[Any, Any]:
    """Example by example, the matrix on the left, under jit."""
    w = {"a": jnp.ones((5, DIM)), "b": jnp.ones((CLASSES, 5))}
    one = jax.jit(lambda w, x: w["b"] @ jnp.tanh(w["a"] @ x))
    return w, lambda w, x: jax.vmap(lambda x: one(w, x))(x)


@pytest.mark.parametrize(("make", "matrices"), [(linen, 2), (of_nnx, 2), (by_vmap, 2)])
@pytest.mark.thinned(2)
def test_layers_are_found(make: Any, matrices: int):
    w, apply = make()
    w = jax.tree.map(lambda x: x.astype(jnp.float64), w)

    def objective(w: Any, x: Any, data: Any) -> Any:
        logits = apply(w, data["inputs"])
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, data["labels"])
        decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(w))
        return fit.mean() + jnp.exp(x) * decay

    bound, parameters = bind(objective, SOLVERS["newton"], (w, -3.0, TRAIN))
    wanted = [leaf.ndim == 2 for leaf in jax.tree.leaves(w)]
    taps = tap(bound.oracle, w, parameters, wanted)
    assert len(taps.layers) == matrices
    # Without a shift the program is what it was.
    zeros = [jnp.zeros(s.shape, s.dtype) for s in taps.shapes]
    np.testing.assert_allclose(
        taps.value(zeros, w), bound.oracle.value(w, parameters), rtol=1e-12
    )
    evaluate = bilevel.value_and_hypergradient(
        bilevel.Problem(
            objective,
            lambda w, x, d: objective(w, -20.0, d),
            preconditioner=family.kronecker(),
        ),
        inner_solvers.gradient_descent(0.1, max_steps=5),
        certify=False,
    )
    start = jax.tree.map(lambda x: 0.3 * jnp.sign(x) * jnp.abs(x) ** 0.5, w)
    out = jax.jit(evaluate)(start, -1.0, BATCHES)
    assert bool(jnp.isfinite(out.gradient))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: family.jacobi(num_probes=0), "jacobi: num_probes"),
        (lambda: family.nystrom(0), "nystrom: rank"),
        (lambda: family.nystrom(3, damping=-1.0), "nystrom: damping"),
        (lambda: family.kronecker(damping=0.0), "kronecker: damping"),
        (lambda: family.kronecker(every=0), "kronecker: every"),
        (lambda: family.limited_memory(2.5), "limited_memory: num_pairs"),
    ],
)
def test_settings(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
