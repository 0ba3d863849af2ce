"""What others install: wheel and sdist, used by a project that is not this repository.

With BILEVEL_DIST=<folder> the wheel and the sdist that lie there are tested, otherwise
new ones: `.github/workflows/release.yml` tests the files that it publishes.
"""

import importlib.resources
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[1]
DOWNSTREAM = ROOT / "tests" / "downstream"
BESIDE = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
# Folders that stand beside the package, and what pytest and ruff leave in them.
NOT_PACKAGED = ("configs", "examples", "tests")
CACHES = ("__pycache__", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints")


class Dist(NamedTuple):
    """The two files that are published."""

    wheel: Path
    sdist: Path


def run(
    *command: str | Path, cwd: Path, codes: tuple[int, ...] = (0,), **variables: str
) -> str:
    """Output of a command, as a user has it: no setting of this test process."""
    hidden = ("JAX_ENABLE_X64", "JAX_NUMPY_RANK_PROMOTION", "PYTHONPATH")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=env | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode in codes, done.stdout + done.stderr
    return done.stdout


def build(kind: str, tree: Path, out: Path) -> Path:
    """Builds a wheel or an sdist of a tree with the backend that pyproject.toml names.

    Without pip: it would make an environment for the backend, from the network.
    """
    code = f"import sys, flit_core.buildapi as b; print(b.build_{kind}(sys.argv[1]))"
    out.mkdir(exist_ok=True)
    return out / run(sys.executable, "-c", code, out, cwd=tree).strip()


def needs(module: str) -> None:
    """Skips, with the reason, where a tool of the dev extra is not installed.

    Not in a release: nothing is published that was not tested.
    """
    if importlib.util.find_spec(module) is None:
        refuse = pytest.fail if "BILEVEL_DIST" in os.environ else pytest.skip
        refuse(f"needs {module}: pip install -e '.[dev]'")


def in_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def is_metadata(name: str) -> bool:
    return name.startswith(f"bilevel-{VERSION}.dist-info/")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the repository, with bytecode in it that does not belong in a file."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("bilevel", *NOT_PACKAGED):
        ignored = shutil.ignore_patterns(*CACHES)
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in (*BESIDE, "requirements.lock"):
        shutil.copy(ROOT / name, copy / name)
    for folder in (copy / "bilevel", copy / "bilevel" / "solvers"):
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"bytecode")
    return copy


@pytest.fixture(scope="module")
def sources(tree) -> set[str]:
    """The files of the package."""
    return {
        path.relative_to(tree).as_posix()
        for path in (tree / "bilevel").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


@pytest.fixture(scope="module")
def dist(tree, tmp_path_factory) -> Dist:
    """Wheel and sdist, given or built."""
    folder = os.environ.get("BILEVEL_DIST")
    if folder:
        (wheel,), (sdist,) = (
            sorted(Path(folder).glob(pattern)) for pattern in ("*.whl", "*.tar.gz")
        )
        return Dist(wheel.absolute(), sdist.absolute())
    needs("flit_core")
    out = tmp_path_factory.mktemp("dist")
    return Dist(build("wheel", tree, out), build("sdist", tree, out))


@pytest.fixture(scope="module")
def python(dist, tmp_path_factory) -> Path:
    """The Python of an environment into which the wheel was installed, and only it.

    The dependencies are those of this Python, by a path at the end of `sys.path`: a
    bilevel there, editable or not, is behind the one that was installed.
    """
    folder = tmp_path_factory.mktemp("environment")
    builder = venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt")
    builder.create(folder)
    executable = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(executable, "-c", code, cwd=folder).strip())
    # Lines of a .pth file are paths; .pth files in these folders are not read, so that
    # no editable install of bilevel gets in.
    packages = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(packages) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", executable, "install")
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check")
    run(*pip, *offline, "--quiet", "--no-compile", dist.wheel, cwd=folder)
    return executable


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of the downstream project, outside of this repository."""
    folder = tmp_path / "downstream"
    shutil.copytree(DOWNSTREAM, folder, ignore=shutil.ignore_patterns(*CACHES))
    return folder


def test_wheel_holds_the_package_only(dist, sources):
    files = set(in_wheel(dist.wheel))
    assert {name for name in files if not is_metadata(name)} == sources
    assert {"bilevel/py.typed", "bilevel/experiments/fingerprint.json"} <= sources
    # Nothing that an editor or a run left behind.
    assert {Path(name).suffix for name in sources} == {".json", ".py", ".typed"}
    assert f"bilevel-{VERSION}.dist-info/licenses/LICENSE" in files
    assert dist.wheel.name == f"bilevel-{VERSION}-py3-none-any.whl"


def test_sdist_holds_the_package_and_its_papers(dist, sources):
    with tarfile.open(dist.sdist) as sdist:
        files = {one.name for one in sdist.getmembers() if one.isfile()}
    top = f"bilevel-{VERSION}"
    assert dist.sdist.name == f"{top}.tar.gz"
    assert files == {f"{top}/{name}" for name in {*sources, *BESIDE, "PKG-INFO"}}


def test_wheel_of_the_sdist_is_the_same(dist, tmp_path):
    needs("flit_core")
    with tarfile.open(dist.sdist) as sdist:
        sdist.extractall(tmp_path, filter="data")
    rebuilt = build("wheel", tmp_path / f"bilevel-{VERSION}", tmp_path / "dist")
    assert in_wheel(rebuilt) == in_wheel(dist.wheel)


def test_metadata_is_valid(dist):
    text = in_wheel(dist.wheel)[f"bilevel-{VERSION}.dist-info/METADATA"]
    metadata = Metadata.from_email(text, validate=True)
    assert str(metadata.version) == VERSION
    readme = (ROOT / "README.md").read_text()
    assert (metadata.description or "").strip() == readme.strip()
    assert metadata.description_content_type == "text/markdown"
    assert metadata.classifiers
    assert "Typing :: Typed" in metadata.classifiers


@pytest.mark.thorough
def test_installed_wheel_computes(python, project, tmp_path):
    report = json.loads(run(python, project / "gradients.py", cwd=tmp_path))
    installed = Path(report.pop("file"))
    assert installed.is_relative_to(python.parents[1])
    assert not installed.is_relative_to(ROOT)
    # w*(x) = target / (1 + exp(x)), and F = |w* - target|^2.
    assert report.pop("gradient") == pytest.approx(10.0 / 2, rel=1e-2)
    assert report.pop("solution") == pytest.approx([1.0, 2.0], rel=1e-2)
    assert report == {
        "version": VERSION,
        "trustworthy": True,
        "has_load_run": True,
        "doubled": 128.0,
    }


@pytest.mark.thorough
def test_installed_wheel_runs_an_experiment(python, project, tmp_path):
    folder = tmp_path / "run"
    flags = ("--config=small.py", f"--workdir={folder}")
    run(python, "study.py", *flags, cwd=project)
    report = json.loads(run(python, "read_back.py", folder, cwd=project))
    assert report["finished"]
    assert report["steps"] == [1, 2, 3]
    # x_t = 0.8^t, and the value is of the point that a step starts from.
    assert report["values"] == pytest.approx([2.0, 2 * 0.8**2, 2 * 0.8**4], rel=1e-4)
    assert report["outer"] == pytest.approx([0.8**3] * 2, rel=1e-4)


def pyright(*arguments: str, python: Path, cwd: Path) -> dict[str, Any]:
    """What pyright says as a user of `python`."""
    needs("pyright")
    out = run(
        *(sys.executable, "-m", "pyright", "--outputjson", *arguments),
        cwd=cwd,
        codes=(0, 1),  # 1: errors were found
        # It asks the first python on the path; --verifytypes has no other way.
        PATH=f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        # Otherwise it asks the network whether there is a newer pyright.
        PYRIGHT_PYTHON_IGNORE_WARNINGS="1",
    )
    return json.loads(out)


@pytest.mark.thorough
def test_types_of_the_installed_wheel(python, project):
    """Pyright finds every marked mistake, with its rule, and nothing else.

    The setting `useLibraryCodeForTypes: false` makes it look only into packages that
    have a py.typed.
    """
    found = {
        (
            Path(one["file"]).name,
            one["range"]["start"]["line"] + 1,
            one.get("rule", one["message"]),
        )
        for one in pyright(python=python, cwd=project)["generalDiagnostics"]
    }
    marked = {
        (path.name, number, mark[1])
        for path in project.glob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (mark := re.search(r"# error: (\w+)$", line))
    }
    assert {name for name, *_ in marked} == {"misuse.py"}
    assert found == marked, sorted(found ^ marked)


@pytest.mark.thorough
def test_everything_public_has_a_type(python, project):
    if not importlib.resources.files("absl").joinpath("py.typed").is_file():
        pytest.skip("this old absl-py has no types, and ours mention its own")
    arguments = ("--verifytypes", "bilevel", "--ignoreexternal")
    report = pyright(*arguments, python=python, cwd=project)["typeCompleteness"]
    assert Path(report["pyTypedPath"]).is_relative_to(python.parents[1])
    untyped = [
        one["name"]
        for one in report["symbols"]
        if one["isExported"] and not one["isTypeKnown"]
    ]
    assert not untyped, "\n".join(untyped)
