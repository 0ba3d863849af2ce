"""Global settings of the tests, what they may hold in memory, and real data."""

import ctypes
import gc
import mmap
import os
import shutil
import signal
import sys
import tempfile
import zlib
from pathlib import Path

import jax
import pytest

# Tests compare with exact oracles, and an accidental broadcast of a rank is a bug.
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Most of a test's time is compilation, and most of that is spent by XLA's newer code
# generator. CI tests once as here, and on its other versions of Python as users
# compile: JAX_DISABLE_MOST_OPTIMIZATIONS=0 pytest
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for programs that tests start
    # jax 0.12 has the newer one only, and ends a process whose flag it does not know.
    if jax.__version_info__[:2] == (0, 10):
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}".strip()

# The same small programs (initialisers, single operations) are met in module after
# module, and again after `bounded_memory`: they are read, not compiled once more. Each
# worker has a folder of its own, since JAX does not write into it atomically.
COMPILED = tempfile.mkdtemp(prefix="bilevel-tests-")
jax.config.update("jax_compilation_cache_dir", COMPILED)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_unconfigure() -> None:
    shutil.rmtree(COMPILED, ignore_errors=True)


# A shell starts background jobs with Ctrl-C ignored, `nohup` ignores the hang-up, and
# children inherit that: the tests that send one would wait in vain.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Examples and notebooks that plot must not look for a display, in subprocesses either.
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def forget_warnings() -> None:
    """A line warns once of an untrustworthy gradient: in every test anew."""
    if "bilevel.hypergradients.watch" in sys.modules:
        sys.modules["bilevel.hypergradients.watch"].forget()


# JAX keeps every program that it compiled: some thousand tests would hold 4 GB in each
# worker. Forgetting all of them costs a second, and what later tests share must be
# compiled anew; so it is done above a limit, five to ten times in a worker's life, not
# at the end of every module. Below 0.4 GB no worker gets: imports and collected tests.
LIMIT = 900 * 2**20


def resident_memory() -> int:
    """Bytes that this process holds in memory; 0 where there is no /proc to ask."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * mmap.PAGESIZE


def return_freed_memory() -> None:
    """Gives the system what glibc keeps after `free`, which is nearly all of it."""
    # Other C libraries have no such function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@pytest.fixture(autouse=True)
def bounded_memory() -> None:
    """Before a test: above the limit, compiled programs are forgotten."""
    if resident_memory() > LIMIT:
        return_freed_memory()
    if resident_memory() > LIMIT:
        jax.clear_caches()
        gc.collect()
        return_freed_memory()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is marked `thinned(n)`, one case in n stays in the default
    selection; the others are `thorough`.

    Drawn by the name of the case, so that no column of a grid is always left out, and
    a new case moves no other.  Of every test at least one case stays.
    """
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        marked = item.get_closest_marker("thinned")
        if marked and not any(item.get_closest_marker(m) for m in ("slow", "thorough")):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for group in cases.values():
        (share,) = group[0].get_closest_marker("thinned").args
        drawn = [i for i in group if zlib.crc32(i.nodeid.encode()) % share == 0]
        for item in group:
            if item not in (drawn or group[:1]):
                item.add_marker(pytest.mark.thorough)


DATA_SETS = ("fashion_mnist", "ijcnn1", "mnist", "omniglot")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder `BILEVEL_DATA` with one sub-folder per data set.

    Skips where the variable is not set. Fails where it is set and data is missing: CI
    sets it, and a test that silently skips there would be no test.
    """
    value = os.environ.get("BILEVEL_DATA")
    if not value:
        pytest.skip(
            "needs real data: set BILEVEL_DATA to a folder that holds "
            + ", ".join(DATA_SETS)
        )
    folder = Path(value)
    missing = [name for name in DATA_SETS if not (folder / name).is_dir()]
    if missing:
        pytest.fail(
            f"BILEVEL_DATA is set to {value!r}, which lacks the folders "
            f"{', '.join(missing)}; mend the path, or unset it to skip these tests"
        )
    return folder
