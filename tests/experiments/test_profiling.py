"""Where the time goes: scopes, intervals, and the table of a real trace."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import bilevel
from bilevel import hypergradients, inner_solvers
from bilevel.experiments import profiling

REPOSITORY = Path(bilevel.__file__).parents[1]

PROGRAM = """
import jax, jax.numpy as jnp, optax
import bilevel
from bilevel import experiments, inner_solvers, solvers
from bilevel.experiments import config


def main(cfg, run):
    data = jax.random.normal(jax.random.key(0), (400, 100))
    loss = lambda w, x, b: jnp.mean(jnp.logaddexp(0, b @ w)) + jnp.exp(x) * w @ w
    solver = solvers.two_loop(
        bilevel.Problem(loss, lambda w, x, b: jnp.mean(jnp.logaddexp(0, -b @ w))),
        inner_solvers.gradient_descent(0.1, max_steps=200),
        outer_optimizer=optax.adam(0.1),
        certify=True,
    )
    state = solver.init(jnp.zeros(100), 0.0, jax.random.key(0))
    batches = bilevel.Batches(data, data)
    experiments.train(run, solver, state, batches, num_steps=30, chunk_size=5)
    run.finish({})


if __name__ == "__main__":
    bilevel.launch(main, config.of(seed=0))
"""


def test_covered_is_the_length_of_a_union():
    assert profiling.covered([]) == 0.0
    assert profiling.covered([(0, 4), (1, 2), (3, 5), (7, 8), (7, 8)]) == 6.0


def test_outermost_scope_counts():
    scope_of = profiling.scope_of
    assert scope_of("jit(many)/while/body/adjoint/inner_solve/dot") == "adjoint"
    assert scope_of("jit(f)/transpose(jvp(inner_solve))/mul") == "inner_solve"
    assert scope_of("jit(f)/my_inner_solve/mul") == ""


@pytest.mark.thorough
def test_scopes_are_in_the_compiled_program():
    """Through value_and_hypergradient and through jax.grad."""
    problem = bilevel.Problem(
        lambda w, x, b: jnp.sum((w - x) ** 2), lambda w, x, b: jnp.sum(w**2)
    )
    evaluate = bilevel.value_and_hypergradient(problem)
    solve = bilevel.argmin(
        problem.inner_objective,
        inner_solvers.newton(),
        hypergradients.implicit(),
        on_untrustworthy="ignore",
    )
    start = jnp.ones(3)
    unrolled = bilevel.value_and_hypergradient(
        problem,
        inner_solvers.gradient_descent(0.1, max_steps=9),
        hypergradients.unrolled(),
    )
    for function in (
        lambda x: evaluate(start, x, bilevel.Batches()).gradient,
        lambda x: unrolled(start, x, bilevel.Batches()).gradient,
        jax.grad(lambda x: jnp.sum(solve(start, x, None)[0] ** 2)),
    ):
        text = jax.jit(function).lower(start).compile().as_text()
        names = re.findall(r'op_name="([^"]*)"', text)
        assert {"inner_solve", "adjoint"} <= set(map(profiling.scope_of, names))


@pytest.mark.thorough
def test_profile_of_a_program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", "--workdir=a b", "--profile=10"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "a b" / "profile"
    table = (folder / "table.txt").read_text()
    assert "profile of steps 6 to 15:\n" + table.rstrip() in done.stderr
    rows = {
        line.split()[0]: float(line.split()[1]) for line in table.splitlines()[1:-1]
    }
    names = ["inner_solve", "adjoint", "certificate", "other", "compile", "host"]
    assert list(rows) == [*names, "step"]
    assert abs(sum(rows[name] for name in names) - rows["step"]) < 0.05 * rows["step"]
    # Which is larger is no matter for a test: these are tenths of a ms.
    assert min(rows["inner_solve"], rows["adjoint"], rows["certificate"]) > 0
    assert list(folder.glob("trace/**/*.trace.json.gz"))
    assert list(folder.glob("hlo/*.txt"))
    assert {one.name for one in tmp_path.iterdir()} == {"program.py", "a b"}
    assert len((tmp_path / "a b" / "metrics.jsonl").read_text().splitlines()) == 30
    flags = json.loads((tmp_path / "a b/starts/1/environment.json").read_text())
    assert "--xla_dump_to" in flags["variables"]["XLA_FLAGS"]


def test_a_run_that_ends_early_has_its_profile(tmp_path):
    said = []
    programs = tmp_path / "programs"
    with profiling.profiler(tmp_path, programs, 20, said.append) as look:
        look(5)
        jnp.ones(3).block_until_ready()
        look(10)
    assert said[-1].startswith("profile of steps 6 to 10:")
    with profiling.profiler(tmp_path, programs, 20, said.append) as look:
        look(5)
    assert said[-1] == "no profile: the run ended at step 5, where the trace began"
    with profiling.profiler(tmp_path, programs, 20, said.append):
        pass
    assert said[-1].startswith("no profile: run.save")
