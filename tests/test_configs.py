"""Every configuration loads, states its command and what to expect, and can start."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bilevel.experiments import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
SHAPES = {"digits": (8, 8), "mnist": (28, 28), "fashion_mnist": (28, 28)}


def test_there_are_some():
    assert len(CONFIGS) > 20


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_docstring_states_the_command_and_a_figure(path):
    said = ast.get_docstring(ast.parse(path.read_text()))
    assert said is not None
    assert f"configs/{path.name}" in said
    assert "python examples/" in said
    assert re.search(r"\d\.\d", said.split(path.name, 1)[1]), "no figure"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.thinned(4)
def test_config_loads_and_an_energy_based_one_takes_a_step(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    config = load_config(path).config
    if not hasattr(config, "learning"):
        return
    from examples.energy_based_optimizer import optimizer_of
    from examples.energy_based_rules import rule_of

    height, width = SHAPES[config.dataset]
    shape = (height, width, 1) if config.model.channels else (height * width,)
    rule, optimizer = rule_of(config, shape[-1]), optimizer_of(config, 10)

    def step(key):
        inputs, labels = jnp.zeros((2, *shape), jnp.float32), jnp.zeros(2, int)
        params = rule.init(key, inputs)
        (value, aux), grads = rule(params, inputs, labels, key)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return value, aux.outputs, params, updates

    value, outputs, params, updates = jax.eval_shape(step, jax.random.key(0))
    assert (value.shape, outputs.shape) == ((), (2, 10))
    assert jax.tree.structure(params) == jax.tree.structure(updates)
