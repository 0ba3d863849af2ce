"""One training step of predictive coding in other libraries, beside the same by hand.

    python3.11 -m venv P && P/bin/pip install pcx==0.6.3 optax
    taskset -c 0 P/bin/python tests/benchmarks/learning_rules_peers.py

    python3.13 -m venv N && N/bin/pip install ngclearn==3.2.3 optax
    taskset -c 0 N/bin/python tests/benchmarks/learning_rules_peers.py --peer=ngclearn

784-256-256-10, batch 64, ReLU, squared error, Adam, float32, T gradient steps of the
states from the forward pass: network and work are those of `learning_rules.py`. A step
is one call after compilation, waited for; "first s" is the call that compiles. pcx runs
both ways it has, inference unrolled in Python as in its tutorials, and in its scan; its
gradients are compared with those by hand, to 1e-4, before times are. ngc-learn runs
cells and synapses that are wired by hand, one process call for each step or all steps
in its scan; it predicts W f(z), so that no gradient is compared.

The metadata of pcx 0.6.3 ask for jax below 0.5, where this library does not run: its
rows come from `learning_rules.py`, run in turn.  pcx also runs under the library's jax,
and then in the same process:

    python3.11 -m venv S
    S/bin/pip install jax==0.10.2 optax flax chex orbax-checkpoint absl-py equinox
    S/bin/pip install jaxtyping && S/bin/pip install --no-deps pcx==0.6.3
    PYTHONPATH=. taskset -c 0 S/bin/python tests/benchmarks/learning_rules_peers.py

CPU time in ms on one pinned core (medians of a run; ranges over four to six runs with
pcx, two with ngc-learn), and how many times that of the library it is, or for ngc-learn
that by hand, which is as fast:

                                      T = 8                     T = 20
    bilevel            jax 0.10.2     2.8 to 3.4                5.2 to 6.0
    by hand            jax 0.4.38     4.5 to 5.2                7.9 to 8.7
    pcx, unrolled      jax 0.4.38     4.4 to 5.7  1.35 to 1.7   8.0 to 9.6  1.35 to 1.7
    pcx, scan          jax 0.4.38     4.5 to 5.6  1.4 to 1.7    8.3 to 9.7  1.4 to 1.65
    pcx, unrolled      jax 0.10.2     3.7 to 4.5  1.2 to 1.4    6.5 to 6.9  1.15 to 1.2
    pcx, scan          jax 0.10.2     3.7 to 4.2  1.2 to 1.3    6.2 to 6.9  1.1 to 1.2
    ngc-learn, calls   jax 0.12.0     33          11            61 to 66    11
    ngc-learn, scan    jax 0.12.0     18          6             22 to 23    4

A faster machine, later: bilevel 1.25 and 2.35 ms; pcx as it installs 1.8 to 1.95 times,
under jax 0.10.2 1.2 to 1.3 (T = 8) and 1.1 to 1.25 (T = 20); ngc-learn 8 to 14, and in
its scan 8 and 6.

Most of the factor against pcx as it installs is its older jax: there it takes 0.99 to
1.11 times what the same takes by hand. Two products of 64 x 256 x 256 a step bound what
is left to gain: 20 steps of them are 3.4 ms at this core's rate. The first call takes
pcx 1.3 to 1.7 s (T = 8) and 3 to 4 s (T = 20) unrolled, 0.6 s with its scan. `--donate`
gives pcx's state to the step to overwrite, which its tutorials do not: within the noise
under jax 0.10.2, 1.2 times slower under 0.4.38.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import itertools
import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

SIZES, BATCH = (784, 256, 256, 10), 64
RATE = 1e-5  # small: the same batch at every step, and no unit must die
STEPS, STEP_SIZE = (8, 20), 0.1
RTOL = 1e-4

Params = list[dict[str, jax.Array]]
Batch = tuple[jax.Array, jax.Array]


class Program(NamedTuple):
    """One row of the table.

    Attributes:
        name: of the row.
        step: takes one training step on the batch, and waits for its end.
        reference: the row its times are divided by.
        gradient: `() -> arrays`, of the first step; None where nothing is compared.
    """

    name: str
    step: Callable[[], None]
    reference: str
    gradient: Callable[[], list[np.ndarray]] | None = None


def data() -> Batch:
    """Inputs in [0, 1] with four of five zero, as in pictures of digits."""
    rng = np.random.default_rng(0)
    inputs = rng.random((BATCH, SIZES[0])) * (rng.random((BATCH, SIZES[0])) < 0.2)
    onehot = np.eye(SIZES[-1])[rng.integers(SIZES[-1], size=BATCH)]
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(onehot, jnp.float32)


def initial() -> Params:
    rng = np.random.default_rng(1)
    return [
        {
            "kernel": jnp.asarray(rng.normal(0, n**-0.5, (n, m)), jnp.float32),
            "bias": jnp.zeros(m, jnp.float32),
        }
        for n, m in itertools.pairwise(SIZES)
    ]


def drive(layer: dict[str, jax.Array], s: jax.Array) -> jax.Array:
    return s @ layer["kernel"] + layer["bias"]


def by_hand(params: Params, inputs: jax.Array, targets: jax.Array, steps: int) -> Any:
    """The gradient after a scan of gradient steps of the hidden states."""
    f = jax.nn.relu
    first = f(drive(params[0], inputs))  # the same at every step

    def total(params: Params, states: Any, first: jax.Array) -> jax.Array:
        s1, s2 = states
        errors = jnp.sum((s1 - first) ** 2)
        errors += jnp.sum((s2 - f(drive(params[1], s1))) ** 2)
        return (errors + jnp.sum((targets - drive(params[2], s2)) ** 2)) / 2

    def step(states: Any, _: None) -> tuple[Any, None]:
        slopes = jax.grad(total, argnums=1)(params, states, first)
        return jax.tree.map(lambda s, d: s - STEP_SIZE * d, states, slopes), None

    start = (first, f(drive(params[1], first)))
    states, _ = jax.lax.scan(step, start, None, length=steps)
    mean = lambda p: total(p, states, f(drive(p[0], inputs))) / len(inputs)
    return jax.grad(mean)(params)


def functional(name: str, gradient: Any, batch: Batch, reference: str) -> Program:
    """A program from `(params, inputs, targets) -> gradient`, its state donated."""
    optimizer = optax.adam(RATE)

    def update(state: Any, inputs: jax.Array, targets: jax.Array) -> Any:
        params, moments = state
        grads = gradient(params, inputs, targets)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments

    compiled = jax.jit(update, donate_argnums=0)
    params = initial()
    state = [(params, optimizer.init(params))]

    def step() -> None:
        state[0] = jax.block_until_ready(compiled(state[0], *batch))

    def first() -> list[np.ndarray]:
        grads = jax.jit(gradient)(initial(), *batch)
        return [np.asarray(layer["kernel"]) for layer in grads]

    return Program(name, step, reference, first)


def hand_programs(batch: Batch) -> list[Program]:
    found = []
    for steps in STEPS:
        rule = lambda p, x, y, steps=steps: by_hand(p, x, y, steps)
        name = f"by hand T={steps}"
        found.append(functional(name, rule, batch, name))
    return found


def library_programs(batch: Batch) -> list[Program]:
    """Those of this library, where it is installed beside the peer."""
    if importlib.util.find_spec("bilevel") is None:
        return []
    energy: Any = importlib.import_module("bilevel.energy")
    linen: Any = importlib.import_module("flax.linen")
    chain = energy.feedforward([linen.Dense(n) for n in SIZES[1:]], "relu")
    found = []
    for steps in STEPS:
        inference = energy.relaxations.sweeps(
            steps, order="synchronous", step_size=STEP_SIZE
        )
        rule = energy.predictive_coding(chain, energy.squared_error(), inference)
        gradient = lambda p, x, y, rule=rule: rule(p, x, y)[1]
        name = f"bilevel T={steps}"
        found.append(functional(name, gradient, batch, f"by hand T={steps}"))
    return found


def pcx_programs(batch: Batch, *, donate: bool) -> list[Program]:
    """pcx: inference unrolled in Python, as its tutorials do, and by its scan."""
    px: Any = importlib.import_module("pcx")
    pxc: Any = importlib.import_module("pcx.predictive_coding")
    pxf: Any = importlib.import_module("pcx.functional")
    pxn: Any = importlib.import_module("pcx.nn")
    pxu: Any = importlib.import_module("pcx.utils")

    class Network(pxc.EnergyModule):
        """Linear layers, a Vode behind each; the last one is held at the target."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = [pxn.Linear(n, m) for n, m in itertools.pairwise(SIZES)]
            self.vodes = [pxc.Vode() for _ in self.layers]
            self.vodes[-1].h.frozen = True
            for layer, own in zip(self.layers, initial(), strict=True):
                layer.nn.weight.set(own["kernel"].T)
                layer.nn.bias.set(own["bias"])

        def __call__(self, x: Any, y: Any) -> Any:
            for layer, vode in zip(self.layers[:-1], self.vodes[:-1], strict=True):
                x = vode(jax.nn.relu(layer(x)))
            self.vodes[-1](self.layers[-1](x))
            if y is not None:
                self.vodes[-1].set("h", y)
            return self.vodes[-1].get("u")

    cache, free = pxc.VodeParam.Cache, pxu.M_hasnot(pxc.VodeParam, frozen=True)
    weights = pxu.M(pxn.LayerParam)
    batched = pxu.M(pxc.VodeParam | cache).to((None, 0))
    of_states = pxu.M_hasnot(pxc.VodeParam, frozen=True).to([False, True])
    of_weights = pxu.M(pxn.LayerParam).to([False, True])

    @pxf.vmap(batched, in_axes=(0, 0), out_axes=0)
    def forward(x: Any, y: Any, *, model: Any) -> Any:
        return model(x, y)

    @pxf.vmap(batched, in_axes=(0,), out_axes=(None, 0), axis_name="batch")
    def energy(x: Any, *, model: Any) -> Any:
        outputs = model(x, None)
        return jax.lax.psum(model.energy(), "batch"), outputs

    def infer(_: Any, x: Any, *, model: Any, states: Any) -> Any:
        with pxu.step(model, clear_params=cache):
            _, slopes = pxf.value_and_grad(of_states, has_aux=True)(energy)(
                x, model=model
            )
        states.step(model, slopes["model"])
        return (x,), None

    def slopes_of(x: Any, y: Any, steps: int, scan: bool, model: Any, s: Any) -> Any:
        with pxu.step(model, (pxc.STATUS.INIT, None), clear_params=cache):
            forward(x, y, model=model)
        if scan:
            pxf.scan(infer, length=steps)(x, model=model, states=s)
        else:
            for _ in range(steps):
                infer(None, x, model=model, states=s)
        with pxu.step(model, clear_params=cache):
            _, slopes = pxf.value_and_grad(of_weights, has_aux=True)(energy)(
                x, model=model
            )
        return slopes["model"]

    def program(steps: int, *, scan: bool) -> Program:
        px.RKG.seed(0)
        model = Network()
        with pxu.step(model, (pxc.STATUS.INIT, None), clear_params=cache):
            forward(jnp.zeros((BATCH, SIZES[0])), None, model=model)
        states = pxu.Optim(lambda: optax.sgd(STEP_SIZE), free(model))
        optim = pxu.Optim(lambda: optax.adam(RATE), weights(model))

        @pxf.jit(donate_argnames=("model", "states", "optim") if donate else None)
        def train(x: Any, y: Any, *, model: Any, states: Any, optim: Any) -> None:
            slopes = slopes_of(x, y, steps, scan, model, states)
            optim.step(model, slopes, scale_by=1 / BATCH)

        @pxf.jit()
        def gradient(x: Any, y: Any, *, model: Any, states: Any) -> Any:
            slopes = slopes_of(x, y, steps, scan, model, states)
            return [layer.nn.weight.get() / BATCH for layer in slopes.layers]

        def step() -> None:
            train(*batch, model=model, states=states, optim=optim)
            jax.block_until_ready([layer.nn.weight.get() for layer in model.layers])

        def first() -> list[np.ndarray]:
            found = gradient(*batch, model=model, states=states)
            return [np.asarray(one).T for one in found]

        name = f"pcx T={steps}" + (" scan" if scan else "")
        return Program(name, step, f"by hand T={steps}", first)

    return [program(steps, scan=scan) for steps in STEPS for scan in (False, True)]


def ngclearn_programs(batch: Batch, *, donate: bool) -> list[Program]:
    """ngc-learn: cells and synapses wired by hand, as its predictive coding exhibit is.

    Its prediction is W f(z), not f(W s), so that no gradient is compared.
    """
    del donate  # a process keeps its state by itself
    ngc: Any = importlib.import_module("ngclearn")
    components: Any = importlib.import_module("ngclearn.components")
    generators: Any = importlib.import_module("ngclearn.utils.distribution_generator")
    state: Any = importlib.import_module("ngcsimlib.global_state").stateManager
    uniform = generators.DistributionGenerator.uniform(-0.05, 0.05)
    zero = generators.DistributionGenerator.constant(0.0)
    keys = jax.random.split(jax.random.PRNGKey(0), len(SIZES))
    ends, inputs, targets = range(1, len(SIZES)), *batch

    def cell(name: str, k: int, tau: float) -> Any:
        is_hidden = 0 < k < len(SIZES) - 1
        return components.RateCell(
            f"{name}{k}",
            n_units=SIZES[k],
            tau_m=tau if is_hidden else 0.0,
            act_fx="relu" if is_hidden else "identity",
            batch_size=BATCH,
            key=keys[k],
        )

    def wire(kind: Any, name: str, k: int, shape: tuple[int, ...], **rest: Any) -> Any:
        return kind(
            f"{name}{k}",
            shape=shape,
            weight_init=uniform,
            batch_size=BATCH,
            key=keys[k],
            **rest,
        )

    def process(name: str, methods: list[Any]) -> Any:
        found = ngc.MethodProcess(name)
        for method in methods:
            found = found >> method
        return found

    with ngc.Context("predictive_coding"):
        z = [cell("z", k, 1 / STEP_SIZE) for k in range(len(SIZES))]
        q = [cell("q", k, 0.0) for k in range(len(SIZES))]  # the forward pass
        e = {
            k: components.GaussianErrorCell(f"e{k}", n_units=SIZES[k], batch_size=BATCH)
            for k in ends
        }
        below = {k: (SIZES[k - 1], SIZES[k]) for k in ends}
        hebbian, static = components.HebbianSynapse, components.StaticSynapse
        learned = {
            "eta": RATE,
            "bias_init": zero,
            "w_bound": 0.0,
            "optim_type": "adam",
            "sign_value": -1.0,
        }
        w = {k: wire(hebbian, "W", k, below[k], **learned) for k in ends}
        p = {k: wire(static, "Q", k, below[k], bias_init=zero) for k in ends}
        back = {k: wire(static, "E", k, below[k][::-1]) for k in ends[1:]}
        for k in ends:
            _ = z[k - 1].zF >> w[k].inputs
            _ = w[k].outputs >> e[k].mu
            _ = z[k].z >> e[k].target
            _ = z[k - 1].zF >> w[k].pre
            _ = e[k].dmu >> w[k].post
            _ = q[k - 1].zF >> p[k].inputs
            _ = p[k].outputs >> q[k].j
        for k in ends[1:]:
            _ = e[k].dmu >> back[k].inputs
            _ = back[k].outputs >> z[k - 1].j
            _ = e[k - 1].dtarget >> z[k - 1].j_td
        order = [*back.values(), *z, *w.values(), *e.values()]
        advance = process("advance", [one.advance_state for one in order])
        order = [q[0], *(one for k in ends for one in (p[k], q[k]))]
        project = process("project", [one.advance_state for one in order])
        reset = process("reset", [one.reset for one in (*q, *z, *e.values())])
        evolve = process("evolve", [one.evolve for one in w.values()])

    def train(steps: int, *, scan: bool) -> None:
        reset.run()
        for k in ends:
            p[k].weights.set(w[k].weights.get())
            p[k].biases.set(w[k].biases.get())
        for k, one in back.items():
            one.weights.set(w[k].weights.get().T)
        q[0].j.set(inputs)
        project.run(dt=1.0)
        for k in ends[:-1]:
            z[k].z.set(q[k].z.get())
        z[0].j.set(inputs)
        z[-1].j.set(targets)
        if scan:
            state.set_state(advance.scan(jnp.ones((steps, 1)))[0])
        else:
            for _ in range(steps):
                advance.run(dt=1.0)
        evolve.run(dt=1.0)
        jax.block_until_ready([one.weights.get() for one in w.values()])

    def program(steps: int, *, scan: bool) -> Program:
        name = f"ngc-learn T={steps}" + (" scan" if scan else "")
        step = lambda: train(steps, scan=scan)
        return Program(name, step, f"by hand T={steps}")

    return [program(steps, scan=scan) for steps in STEPS for scan in (False, True)]


PEERS = {"pcx": pcx_programs, "ngclearn": ngclearn_programs}


def check(programs: list[Program]) -> None:
    """Raises unless the gradients of the weights are those by hand."""
    found = {
        one.name: np.concatenate([np.ravel(x) for x in one.gradient()])
        for one in programs
        if one.gradient is not None
    }
    for one in programs:
        if one.gradient is None or one.name == one.reference:
            continue
        expected = found[one.reference]
        error = np.linalg.norm(found[one.name] - expected) / np.linalg.norm(expected)
        print(f"{one.name:20} gradient differs from that by hand by {error:.1e}")
        if not error <= RTOL:
            raise AssertionError(f"{one.name}: expected at most {RTOL:.0e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=tuple(PEERS), default="pcx")
    parser.add_argument("--donate", action="store_true", help="pcx's state")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=5, help="in a row, of each row")
    options = parser.parse_args()
    batch = data()
    programs = [
        *hand_programs(batch),
        *library_programs(batch),
        *PEERS[options.peer](batch, donate=options.donate),
    ]
    check(programs)
    first = {}
    for one in programs:
        start = time.perf_counter()
        one.step()
        first[one.name] = time.perf_counter() - start
    times: dict[str, Any] = {one.name: [] for one in programs}
    load = os.getloadavg()[0]
    order = np.random.default_rng(0)
    for _ in range(options.rounds):
        for number in order.permutation(len(programs)):
            one = programs[number]
            one.step()  # not timed: it finds the caches as the row before left them
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(options.steps):
                one.step()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            pair = (1e3 * wall / options.steps, 1e3 * cpu / options.steps)
            times[one.name].append(pair)
    arrays = {name: np.array(pairs).T for name, pairs in times.items()}
    print(
        f"{'':20} {'wall ms':>8} {'min to max':>16} {'/ hand':>7} | {'cpu ms':>8} "
        f"{'/ hand':>7} | {'first s':>8}"
    )
    for one in programs:
        (wall, cpu), (hand, cpu_hand) = arrays[one.name], arrays[one.reference]
        spread = f"{wall.min():.2f} to {wall.max():.2f}"
        print(
            f"{one.name:20} {np.median(wall):8.3f} {spread:>16} "
            f"{np.median(wall / hand):7.3f} | {np.median(cpu):8.3f} "
            f"{np.median(cpu / cpu_hand):7.3f} | {first[one.name]:8.2f}"
        )
    version = importlib.metadata.version(options.peer)
    print(
        f"{options.peer} {version}, jax {jax.__version__}, "
        f"Python {platform.python_version()}, {len(os.sched_getaffinity(0))} core(s), "
        f"load {load:.1f} to {os.getloadavg()[0]:.1f}, {options.rounds} rounds of "
        f"{options.steps} steps"
    )


if __name__ == "__main__":
    main()
