"""Programs that are called without `jit`, compiled once.

A library function that is called eagerly makes new closures in every call, and JAX,
which knows programs by the identity of functions, compiles them anew.  Here a program
is known by what it is: the equations of the objectives that it contains, with all their
constants, and the settings of the library's own functions.  What cannot be compared for
certain is not shared: such a call costs compilation, as before, and is never stale.
"""

import dataclasses
import functools
import hashlib
import types
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.extend import core as extended

from bilevel import closures, trees


class Unknown(Exception):
    """Something that cannot be compared for certain."""


_PROGRAMS: OrderedDict[Hashable, Callable[..., Any]] = OrderedDict()
_KEPT = 64  # compiled programs
_LARGEST_CONSTANT = 2**20  # bytes


def shared(key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit(function)`, or what an earlier function of the same key became."""
    program = _PROGRAMS.get(key)
    if program is None:
        program = _PROGRAMS[key] = jax.jit(function)
        while len(_PROGRAMS) > _KEPT:
            _PROGRAMS.popitem(last=False)
    _PROGRAMS.move_to_end(key)
    return program


Function = tuple[Callable[..., Any], bool]
"""An objective as a function of arrays that closes over nothing, and whether it has
auxiliary output."""


def program(
    function: Callable[..., Any],
    objectives: Sequence[Function],
    settings: Any,
    *example: Any,
) -> Callable[..., Any]:
    """`function` itself inside of `jit`; without, compiled once for equal programs.

    Args:
        function: a program of arrays.
        objectives: the user's functions in it.
        settings: all else that decides what it does.
        *example: arguments of the objectives.
    """
    if is_staged():
        return function
    try:
        keys = [
            objective_key(objective, *example, has_aux=has_aux)
            for objective, has_aux in objectives
        ]
        return shared((signature(settings), *keys), function)
    except Unknown:
        return function


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)`, compiled once for all functions of the same equations.

    For results that are not differentiated any further: arguments that are being
    transformed by JAX are passed to the function as it is.  Values that it closes over
    become arguments, so that other values are no other program.

    Args:
        function: any traceable function of pytrees.
        *arguments: of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> float(call(lambda x: x + 1.0, jnp.ones(())))
        2.0
    """
    leaves = jax.tree.leaves(arguments)
    if is_staged() or any(isinstance(x, core.Tracer) for x in leaves):
        return function(*arguments)
    hoisted, constants = closures.hoist(function, *arguments)
    try:
        if any(isinstance(x, core.Tracer) for x in constants):
            raise Unknown("closes over a traced value")
        closed, out = jax.make_jaxpr(hoisted, return_shape=True)(constants, *arguments)
        shapes = jax.tree.structure(((constants, *arguments), out))
        key = ("call", shapes, structure(closed))
    except Unknown:
        return function(*arguments)
    return shared(key, hoisted)(constants, *arguments)


def is_staged() -> bool:
    """Whether a surrounding `jit` (or scan, or `make_jaxpr`) collects the operations.

    Then there is nothing to compile here.
    """
    return isinstance(jnp.zeros(()), core.Tracer)


# Functions of these packages do what their code and the values they close over say.
_TRUSTED = ("bilevel", "optax", "jax", "functools", "numpy")


def signature(value: Any) -> Hashable:
    """What a setting is: two values of one signature behave alike.

    Args:
        value: numbers, texts, None, containers, dataclasses and NamedTuples of them,
            and functions of this library, of optax and of JAX with what they close
            over.

    Raises:
        Unknown: anything else, a function of the user's or an array, say.

    Example:
        >>> from bilevel import linear_solvers
        >>> one, same, other = (linear_solvers.cg(rtol=r) for r in (0.1, 0.1, 0.2))
        >>> signature(one) == signature(same), signature(one) == signature(other)
        (True, False)
    """
    return _signature(value, {})


def _signature(value: Any, seen: dict[int, tuple[int, Any]]) -> Hashable:
    if value is None or isinstance(value, bool | int | str | bytes):
        return (type(value).__name__, value)
    if isinstance(value, float | np.generic):
        return (type(value).__name__, repr(value))
    if isinstance(value, type | types.BuiltinFunctionType | np.dtype | np.ufunc):
        return value
    if id(value) in seen:  # a rule whose functions refer to the rule
        return ("seen", seen[id(value)][0])
    # With the value itself: once it were gone, another could have its id.
    seen[id(value)] = (len(seen), value)
    each = functools.partial(_signature, seen=seen)
    kind = type(value)
    if isinstance(value, tuple | list):
        return (kind, *map(each, value))
    if isinstance(value, dict):
        return (kind, *(each(item) for item in value.items()))
    if dataclasses.is_dataclass(value):
        return (
            kind,
            *(each(getattr(value, f.name)) for f in dataclasses.fields(value)),
        )
    if isinstance(value, functools.partial):
        return (kind, each(value.func), each(value.args), each(value.keywords))
    if isinstance(value, types.FunctionType) and _is_trusted(value):
        cells = value.__closure__ or ()
        return (
            value.__code__,
            each(value.__defaults__),
            each(value.__kwdefaults__),
            *map(each, _contents(cells)),
        )
    if callable(value) and _is_trusted(value) and hasattr(value, "__wrapped__"):
        # Jitted, or with a derivative rule of its own (not a user's).
        return (kind, each(getattr(value, "__wrapped__", None)))
    raise Unknown(f"{kind.__name__}: {value!r:.80}")


def _is_trusted(function: Any) -> bool:
    module = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] in _TRUSTED


def _contents(cells: Iterable[Any]) -> list[Any]:
    contents = []
    for cell in cells:
        try:
            contents.append(cell.cell_contents)
        except ValueError:
            contents.append("empty")
    return contents


def objective_key(
    function: Callable[..., Any], *example: Any, has_aux: bool = False
) -> Hashable:
    """What an objective computes, its first and second derivatives included.

    The derivatives tell objectives apart whose rules of differentiation differ
    (`jax.custom_jvp`, `jax.custom_vjp`).

    Args:
        function: of arrays only, with no constants of its own (`closures.hoist`).
        *example: its arguments.
        has_aux: it returns `(scalar, aux)`.

    Raises:
        Unknown: the function cannot be compared for certain.
    """
    floats, merge = trees.split_floats(example)

    def value(floats: list[Any]) -> Any:
        out = function(*merge(floats))
        return out[0] if has_aux else out

    def curved(floats: list[Any]) -> Any:
        return jax.jvp(jax.grad(value), (floats,), (floats,))

    shape = jax.tree.structure(example)
    plain = jax.make_jaxpr(lambda *args: function(*args))(*example)
    return shape, structure(plain), structure(jax.make_jaxpr(curved)(floats))


def structure(closed: Any) -> Hashable:
    """The equations of a traced program, constants inside of it included.

    Its own constants (of the outermost level) are not: they are arguments of what is
    compiled.  Of functions with derivative rules of their own the rules are not seen;
    who differentiates must compare the derivative's equations too.

    Raises:
        Unknown: a parameter of an equation that cannot be compared for certain.
    """
    digest = hashlib.sha256()
    _write_jaxpr(closed.jaxpr, digest)
    return digest.digest()


def _write_jaxpr(jaxpr: Any, out: Any) -> None:
    names: dict[Any, int] = {}

    def write(atom: Any) -> None:
        if isinstance(atom, extended.Literal):
            out.update(b"literal")
            _write(atom.val, out)
            out.update(str(atom.aval).encode())
        else:
            index = names.setdefault(atom, len(names))
            out.update(f"v{index}:{atom.aval}".encode())

    for variable in (*jaxpr.constvars, *jaxpr.invars):
        write(variable)
    for equation in jaxpr.eqns:
        out.update(f"\n{equation.primitive.name}(".encode())
        for atom in equation.invars:
            write(atom)
        has_rules = equation.primitive.name.startswith("custom_")
        for name in sorted(equation.params):
            value = equation.params[name]
            out.update(name.encode())
            if not (has_rules and callable(value) and not hasattr(value, "jaxpr")):
                _write(value, out)
        for atom in equation.outvars:
            write(atom)
    out.update(b")")
    for atom in jaxpr.outvars:
        write(atom)


def _write(value: Any, out: Any) -> None:
    """One parameter of an equation."""
    if isinstance(value, extended.ClosedJaxpr):
        for constant in value.consts:
            _write(constant, out)
        _write_jaxpr(value.jaxpr, out)
    elif isinstance(value, extended.Jaxpr):
        _write_jaxpr(value, out)
    elif isinstance(value, core.Tracer):
        raise Unknown("a traced constant inside of a program")
    elif isinstance(value, np.ndarray | np.generic | jax.Array):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(cast(jax.Array, value))
        if value.nbytes > _LARGEST_CONSTANT:
            raise Unknown("a large constant inside of a program")
        out.update(f"{value.dtype}{value.shape}".encode() + np.asarray(value).tobytes())
    elif isinstance(value, tuple | list | set | frozenset):
        out.update(f"{type(value).__name__}{len(value)}".encode())
        for item in value:
            _write(item, out)
    elif isinstance(value, dict):
        for name in value:
            out.update(repr(name).encode())
            _write(value[name], out)
    else:
        text = repr(value)
        if " at 0x" in text or isinstance(value, types.FunctionType):
            raise Unknown(f"a parameter {text:.80}")
        out.update(text.encode())
