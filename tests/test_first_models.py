"""The models that a user tries first: `jax.grad` through `argmin` by every rule.

Reference: central differences of F(w*(x), x) in float64, w* by Newton steps with dense
matrices.  In all of them weight decay is what x sets, and it acts on kernels only, so
that no gradient of a bias contains x.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.flatten_util import ravel_pytree
from reference_problems import distance

import bilevel
from bilevel import hypergradients, inner_solvers, linear_solvers

# Two bumps, so that both hidden units of a perceptron are needed: weight decay would
# shrink a unit that is not, and nothing would determine its bias.
INPUTS = jnp.sin(1.7 * jnp.arange(60.0)).reshape(20, 3) * 1.5
TARGETS = jnp.tanh(INPUTS @ jnp.array([1.0, -2.0, 0.5]) + 0.7) + 0.3
TARGETS += 1.5 * jnp.tanh(INPUTS @ jnp.array([1.5, 1.0, -1.0]) - 0.5)
TRAIN = {"inputs": INPUTS[:14], "targets": TARGETS[:14]}
HELD_OUT = {"inputs": INPUTS[14:], "targets": TARGETS[14:]}


class Model(NamedTuple):
    """A bilevel problem as a user writes it.

    Attributes:
        objective: inner, `(w, x, batch) -> loss`, or `(loss, aux)`.
        function: outer, `(w, x, aux) -> loss`.
        inner: where to start.
        outer: x.
        has_aux: the inner objective returns `(loss, aux)`.
        free: how many directions the inner objective does not see.
    """

    objective: Callable
    function: Callable
    inner: Any
    outer: Any
    has_aux: bool = False
    free: int = 0


def squared_error(outputs: jax.Array, batch: Any) -> jax.Array:
    return jnp.mean((outputs.reshape(-1) - batch["targets"]) ** 2)


def decay(kernels: Any, x: jax.Array) -> jax.Array:
    """One log coefficient for each kernel."""
    sizes = jnp.stack([jnp.sum(kernel**2) for kernel in kernels])
    return jnp.sum(jnp.exp(x) * sizes) / 2


def linear_regression() -> Model:
    def objective(w, x, batch):
        outputs = batch["inputs"] @ w["kernel"] + w["bias"]
        return squared_error(outputs, batch) + decay([w["kernel"]], x)

    def function(w, x, aux):
        return squared_error(HELD_OUT["inputs"] @ w["kernel"] + w["bias"], HELD_OUT)

    inner = {"kernel": jnp.zeros(3), "bias": jnp.zeros(())}
    return Model(objective, function, inner, jnp.array([-1.0]))


def numbers_in_a_dict() -> Model:
    """Python numbers, and a scalar for x that sits in a dict, too."""

    def outputs(w, inputs):
        return w["gain"] * jnp.tanh(inputs[:, 0] + w["shift"]) + w["bias"]

    def objective(w, x, batch):
        penalty = jnp.exp(x["decay"]) * (w["gain"] - x["prior"]) ** 2
        return squared_error(outputs(w, batch["inputs"]), batch) + penalty

    def function(w, x, aux):
        return squared_error(outputs(w, HELD_OUT["inputs"]), HELD_OUT)

    inner = {"gain": 1.0, "shift": 0.1, "bias": 0.0}
    return Model(objective, function, inner, {"decay": -1.0, "prior": 1.0})


def linen_perceptron(output_init: Any = nn.initializers.lecun_normal()) -> Model:
    network = nn.Sequential(
        [
            nn.Dense(2, param_dtype=jnp.float64),
            jnp.tanh,
            nn.Dense(1, kernel_init=output_init, param_dtype=jnp.float64),
        ]
    )
    inner = network.init(jax.random.key(2), INPUTS)["params"]

    def objective(w, x, batch):
        kernels = [w["layers_0"]["kernel"], w["layers_2"]["kernel"]]
        outputs = network.apply({"params": w}, batch["inputs"])
        return squared_error(outputs, batch) + decay(kernels, x)

    def function(w, x, aux):
        return squared_error(network.apply({"params": w}, HELD_OUT["inputs"]), HELD_OUT)

    return Model(objective, function, inner, jnp.array([-3.0, -3.0]))


def zero_output_layer() -> Model:
    return linen_perceptron(nn.initializers.zeros)


class Perceptron(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=rngs)
        self.output = nnx.Linear(2, 1, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.output(jnp.tanh(self.hidden(inputs)))


def nnx_perceptron() -> Model:
    graph, inner = nnx.split(Perceptron(nnx.Rngs(1)), nnx.Param)

    def objective(w, x, batch):
        model = nnx.merge(graph, w)
        kernels = [model.hidden.kernel[...], model.output.kernel[...]]
        return squared_error(model(batch["inputs"]), batch) + decay(kernels, x)

    def function(w, x, aux):
        return squared_error(nnx.merge(graph, w)(HELD_OUT["inputs"]), HELD_OUT)

    return Model(objective, function, inner, jnp.array([-3.0, -3.0]))


def frozen_by_closure() -> Model:
    """The first layer is trained already; only the second is the inner variable."""
    whole = linen_perceptron()
    frozen = whole.inner["layers_0"]

    def objective(w, x, batch):
        return whole.objective({"layers_0": frozen, "layers_2": w}, x * EACH, batch)

    def function(w, x, aux):
        return whole.function({"layers_0": frozen, "layers_2": w}, x, aux)

    return Model(objective, function, whole.inner["layers_2"], jnp.array(-3.0))


EACH = jnp.ones(2)  # one coefficient for both kernels


def frozen_in_place() -> Model:
    """The frozen layer stays in the tree, behind a stop_gradient.

    The inner objective does not see it, so that every value of it is a minimiser: it
    stays where it started, and its derivative is zero, which by default is not trusted.
    """
    whole = linen_perceptron()

    def stopped(w):
        return {**w, "layers_0": jax.lax.stop_gradient(w["layers_0"])}

    def objective(w, x, batch):
        return whole.objective(stopped(w), x * EACH, batch)

    def function(w, x, aux):
        return whole.function(stopped(w), x, aux)

    return Model(objective, function, whole.inner, jnp.array(-3.0), free=8)


def batch_norm() -> Model:
    """Trained with the statistics of its batch, evaluated with the running ones.

    The statistics come back as auxiliary output of the inner objective, and F depends
    on w through them, too.  (Batch norm after a layer would make its kernel's scale
    free, and weight decay would shrink it without end: no argmin.)
    """

    class Network(nn.Module):
        @nn.compact
        def __call__(self, inputs: jax.Array, train: bool) -> jax.Array:
            hidden = nn.Dense(2, use_bias=False, param_dtype=jnp.float64)(inputs)
            norm = nn.BatchNorm(
                not train,
                use_scale=False,
                epsilon=0.5,
                momentum=0.5,
                param_dtype=jnp.float64,
            )
            return nn.Dense(1, param_dtype=jnp.float64)(jnp.tanh(norm(hidden)))

    network = Network()
    variables = network.init(jax.random.key(0), INPUTS, True)

    def objective(w, x, batch):
        outputs, changed = network.apply(
            variables | {"params": w}, batch["inputs"], True, mutable=["batch_stats"]
        )
        kernels = [w["Dense_0"]["kernel"], w["Dense_1"]["kernel"]]
        return squared_error(outputs, batch) + decay(kernels, x), changed

    def function(w, x, aux):
        outputs = network.apply({"params": w} | aux, HELD_OUT["inputs"], False)
        return squared_error(outputs, HELD_OUT)

    inner = variables["params"]
    return Model(objective, function, inner, jnp.array([-3.0, -3.0]), has_aux=True)


TOKENS, HELD_OUT_TOKENS = jnp.arange(14) % 3, jnp.arange(6) * 2 % 3


def embedding(decayed: bool = True) -> Model:
    """Token 3 does not occur; without weight decay nothing determines its row."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, tokens: jax.Array) -> jax.Array:
            # Of one dimension: more could be rotated into one another.
            vectors = nn.Embed(4, 1, param_dtype=jnp.float64)(tokens)
            return nn.Dense(1, param_dtype=jnp.float64)(jnp.tanh(vectors))

    network = Network()
    inner = network.init(jax.random.key(3), TOKENS)["params"]

    def objective(w, x, batch):
        outputs = network.apply({"params": w}, TOKENS)[:, 0] + jnp.cos(2.0 * TOKENS)
        kernel = w["Dense_0"]["kernel"]
        rows = w["Embed_0"]["embedding"]
        rows = rows if decayed else rows[:3]
        return squared_error(outputs, batch) + decay([rows, kernel], x)

    def function(w, x, aux):
        outputs = network.apply({"params": w}, HELD_OUT_TOKENS)
        outputs = outputs[:, 0] + jnp.cos(2.0 * HELD_OUT_TOKENS)
        return squared_error(outputs, HELD_OUT)

    return Model(
        objective, function, inner, jnp.array([-2.5, -2.5]), free=0 if decayed else 1
    )


def embedding_with_an_unseen_token() -> Model:
    return embedding(decayed=False)


MODELS = {
    factory.__name__: functools.cache(factory)
    for factory in (
        linear_regression,
        numbers_in_a_dict,
        linen_perceptron,
        nnx_perceptron,
        zero_output_layer,
        frozen_by_closure,
        frozen_in_place,
        batch_norm,
        embedding,
        embedding_with_an_unseen_token,
    )
}


class Rule(NamedTuple):
    """A rule, with a solver that suits it, and how near it comes to the argmin's."""

    solver: Any
    rule: Any
    tolerance: float
    forward: bool


STEP_SIZE = 0.1
MOMENTUM = optax.sgd(STEP_SIZE, momentum=0.9)
DESCENT = inner_solvers.gradient_descent(MOMENTUM, max_steps=3000, rtol=1e-11)
RULES = {
    "default": Rule(None, None, 1e-6, True),
    "implicit, dense": Rule(
        None, hypergradients.implicit(linear_solvers.dense()), 1e-6, True
    ),
    "implicit, Neumann": Rule(
        None,
        hypergradients.implicit(linear_solvers.neumann(STEP_SIZE, 5000)),
        1e-4,
        True,
    ),
    "L-BFGS, implicit": Rule(inner_solvers.lbfgs(), None, 1e-6, True),
    "unrolled": Rule(DESCENT, hypergradients.unrolled(), 1e-6, True),
    "unrolled, forward mode": Rule(
        DESCENT, hypergradients.unrolled(mode="forward"), 1e-6, False
    ),
    "truncated": Rule(DESCENT, hypergradients.truncated(1000), 1e-4, True),
    "nudged": Rule(None, hypergradients.nudged(1e-3), 1e-4, False),
}


def loss_of(model: Model, rule: Rule, on_untrustworthy: Any = "nan") -> Callable:
    solve = bilevel.argmin(
        model.objective,
        rule.solver,
        rule.rule,
        has_aux=model.has_aux,
        on_untrustworthy=on_untrustworthy,
    )

    def loss(x: Any) -> tuple[jax.Array, Any]:
        inner, info = solve(model.inner, x, TRAIN)
        return model.function(inner, x, info.aux), inner

    return loss


@functools.cache
def reference(name: str) -> Callable:
    """(inner, x) -> smallest seen eigenvalue, stationarity, central differences."""
    model = MODELS[name]()
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, model.inner))
    outer, unravel_outer = ravel_pytree(jax.tree.map(jnp.asarray, model.outer))

    def objective(w, x):
        out = model.objective(unravel(w), unravel_outer(x), TRAIN)
        return out if model.has_aux else (out, None)

    def gradient(w, x):
        return jax.grad(lambda w: objective(w, x)[0])(w)

    def value(w, x):
        def step(_, w):  # from the solution at x, which is near
            hessian = jax.jacfwd(gradient)(w, x)
            return w - jnp.linalg.pinv(hessian, rtol=1e-9) @ gradient(w, x)

        w = jax.lax.fori_loop(0, 4, step, w)
        aux = objective(w, x)[1]
        return model.function(unravel(w), unravel_outer(x), aux)

    step = 1e-4

    @jax.jit
    def both(inner, x):
        w, x = ravel_pytree(inner)[0], ravel_pytree(x)[0]
        eigenvalues = jnp.linalg.eigvalsh(jax.jacfwd(gradient)(w, x))
        moves = step * jnp.concatenate([jnp.eye(len(x)), -jnp.eye(len(x))])
        values = jax.vmap(lambda move: value(w, x + move))(moves)
        slopes = (values[: len(x)] - values[len(x) :]) / (2 * step)
        return eigenvalues, jnp.linalg.norm(gradient(w, x)), unravel_outer(slopes)

    del flat, outer
    return both


FIRST = ("nnx_perceptron", "embedding_with_an_unseen_token", "batch_norm")


def marks_of(model: str, rule: str) -> Any:
    """By default: one model by default settings, and by a program."""
    if model == "linear_regression" and rule in ("default", "unrolled"):
        return []
    often = rule == "default" and model in FIRST
    often |= rule == "nudged" and model == "linear_regression"
    return pytest.mark.thorough if often else pytest.mark.slow


CELLS = [
    pytest.param(
        model,
        rule,
        id=f"{model}-{rule}",
        marks=marks_of(model, rule),
    )
    for model in MODELS
    for rule in RULES
]


def distrusted(model: Model, rule: str) -> bool:
    """A Hessian that is singular is never trusted by default.

    Nothing tells a leaf that is unused from a solution that is not determined.  Rules
    that differentiate the program watch its convergence only.
    """
    return model.free > 0 and rule not in ("unrolled", "truncated")


@pytest.mark.parametrize(("name", "rule"), CELLS)
def test_gradient_is_that_of_central_differences(name: str, rule: str):
    model, row = MODELS[name](), RULES[rule]
    outer = jax.tree.map(jnp.asarray, model.outer)
    flagged = distrusted(model, rule)
    loss = loss_of(model, row, "ignore" if flagged else "nan")
    got, inner = jax.jit(jax.grad(loss, has_aux=True))(outer)
    eigenvalues, stationary, expected = reference(name)(inner, outer)
    # The argmin is one, and nothing but what is known to be free is singular.
    assert float(stationary) <= 1e-7
    assert int(jnp.sum(jnp.abs(eigenvalues) <= 1e-9)) == model.free
    assert float(jnp.sort(eigenvalues)[model.free]) >= 1e-3
    # Not NaN: trusted.  A factorisation of a singular matrix promises nothing.
    if not (flagged and "dense" in rule):
        assert distance(got, expected) <= row.tolerance
    if flagged:
        got, _ = jax.jit(jax.grad(loss_of(model, row, "nan"), has_aux=True))(outer)
        assert all(bool(jnp.isnan(g).all()) for g in jax.tree.leaves(got))
    # A gradient of zero would be right to any rule that forgets the argmin.
    assert all(float(jnp.abs(g).min()) > 1e-5 for g in jax.tree.leaves(expected))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.thorough
            if name == "linear_regression"
            else pytest.mark.slow,
        )
        for name in MODELS
    ],
)
def test_forward_mode_is_that_of_central_differences(name: str):
    model, row = MODELS[name](), RULES["default"]
    outer = jax.tree.map(jnp.asarray, model.outer)
    on_untrustworthy = "ignore" if distrusted(model, "default") else "nan"
    loss = loss_of(model, row, on_untrustworthy)
    got, inner = jax.jit(jax.jacfwd(loss, has_aux=True))(outer)
    assert distance(got, reference(name)(inner, outer)[2]) <= row.tolerance


@pytest.mark.thorough
def test_without_jit_and_with_other_values():
    """README's first call, eagerly, twice."""
    model = MODELS["linear_regression"]()
    gradient = jax.grad(loss_of(model, RULES["default"]), has_aux=True)
    for outer in (model.outer, model.outer + 0.7):
        got, inner = gradient(outer)
        assert distance(got, reference("linear_regression")(inner, outer)[2]) <= 1e-6


@pytest.mark.thorough
def test_a_warning_is_no_part_of_any_of_it(recwarn: Any):
    """With the default of `on_untrustworthy`; pytest turns a warning into an error."""
    model = MODELS["linear_regression"]()
    loss = loss_of(model, RULES["default"], "warn")
    jax.block_until_ready(jax.jit(jax.grad(loss, has_aux=True))(model.outer))
    jax.effects_barrier()
    assert not recwarn.list


def test_every_rule_is_tried():
    """One step does not give the derivative of the argmin, nudges by element need an
    inner problem without couplings, and stencils are no rule."""
    factories = {name for name in hypergradients.__all__ if name.islower()}
    factories -= {"nudged_by_element", "stencils"}
    tried = {"implicit"} | {row.rule.name for row in RULES.values() if row.rule}
    assert tried == factories - {"one_step"}
    assert np.all([row.tolerance <= 1e-4 for row in RULES.values()])
