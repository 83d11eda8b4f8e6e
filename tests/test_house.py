"""The package: six levels that import only from lower ones, quick imports, a list of names that is true."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import parallelcnn

PACKAGE = Path(parallelcnn.__file__).parent

# From the lowest level up. A module imports from lower levels, or from modules of its own level.
LEVELS = [
    {
        *(
            "_version",
            "arguments",
            "errors",
            "notebook",
            "pixels",
            "plotting",
            "png",
            "resources",
            "status_line",
            "kernels",
        ),
        "wording",
        *("files.archive", "files.atomic", "files.npy", "files.regular", "files.rows", "files.safetensors"),
    },
    {
        "activations",
        "autodiff.array_functions",
        "autodiff.contraction",
        "autodiff.derivatives",
        "autodiff.dual",
        "autodiff.reduction",
        "autodiff.traced_array",
        "autodiff.tracing",
        "layers",
        "losses",
        "metrics",
        "pointwise_loss",
        "schedules",
    },
    {
        "architecture",
        "autodiff",
        "call_list",
        "data",
        "exchange",
        "files",
        "folding",
        "fusions",
        "label_mixing",
        "models",
        "network",
        "network_summary",
        "optimizers",
        "parameters",
        "replica",
        "tape",
    },
    {"comm", "training"},
    {"doctor", "profiling", "report", "resilience"},
    {"__main__", "cli", "estimators", "trainer"},
]
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


def unit_of(name):
    """The module or package in LEVELS that a module, named relative to `parallelcnn`, belongs to."""
    parts = name.split(".")
    return ".".join(parts[:2]) if ".".join(parts[:2]) in LEVEL_OF else parts[0]


def name_of(path):
    return unit_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def imports_of(path):
    """Names of modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = path.relative_to(PACKAGE).parts[: -node.level]
                yield ".".join(["parallelcnn", *package, node.module or ""])
            else:
                yield node.module or ""


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_its_own_level_and_lower_ones(path):
    for name in imports_of(path):
        if name.startswith("parallelcnn."):
            imported = unit_of(name.removeprefix("parallelcnn."))
            assert LEVEL_OF[imported] <= LEVEL_OF[name_of(path)], f"{path.name} imports {name}"


def test_packages_of_one_level_do_not_import_each_other_in_a_circle():
    neighbours = {name: set() for name in LEVEL_OF}
    for path in FILES:
        imported = {
            unit_of(name.removeprefix("parallelcnn.")) for name in imports_of(path) if name.startswith("parallelcnn.")
        }
        neighbours[name_of(path)] |= {name for name in imported if LEVEL_OF[name] == LEVEL_OF[name_of(path)]}
        neighbours[name_of(path)].discard(name_of(path))
    tuple(graphlib.TopologicalSorter(neighbours).static_order())  # raises CycleError


def test_only_comm_imports_mpi4py():
    importers = {name_of(path) for path in FILES for name in imports_of(path) if name.startswith("mpi4py")}
    assert importers == {"comm"}


def test_scripts_may_still_import_world_from_where_it_was():
    import parallelcnn.comm

    assert parallelcnn.comm.world is parallelcnn.world
    with pytest.raises(AttributeError, match="no attribute 'MPIRanks'"):
        _ = parallelcnn.comm.MPIRanks


def test_kernels_import_nothing_but_what_their_cache_watches():
    for path in (PACKAGE / "kernels").glob("*.py"):
        for name in imports_of(path):
            watched = name.startswith("parallelcnn.kernels._") or (path.name, name) == (
                "_cache.py",
                "parallelcnn.errors",
            )
            assert not name.startswith("parallelcnn") or watched, path.name


def test_importing_the_package_loads_neither_numba_nor_mpi_and_its_list_of_names_is_true():
    script = """
import sys
import parallelcnn
assert not {"numba", "mpi4py", "numpy"} & set(sys.modules)
for module, names in parallelcnn._MODULES.items():
    for name in names:
        value = getattr(parallelcnn, name)
        assert value.__module__.startswith(f"parallelcnn.{module}"), (name, value.__module__)
        assert name in parallelcnn.__all__
listed = dir(parallelcnn)
assert len(set(listed)) == len(listed)
assert {name for name in listed if not name.startswith("__")} == set(parallelcnn.__all__) - {"__version__"}
assert "mpi4py" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60)
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name for node in block.body for alias in node.names}
    assert declared == {name for names in parallelcnn._MODULES.values() for name in names}


def test_an_unknown_name_is_an_attribute_error():
    for name in ("Conv3D", "Any", "TYPE_CHECKING", "import_module"):
        with pytest.raises(AttributeError, match=f"no attribute {name!r}"):
            getattr(parallelcnn, name)


def test_a_type_checker_knows_each_name_and_no_other(tmp_path):
    lines = [f"pc.{name}" for name in parallelcnn.__all__]
    (tmp_path / "user.py").write_text("\n".join(["import parallelcnn as pc", *lines, "pc.Adamm(0.1)", "pc.Any"]))
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "setup.cfg"), str(tmp_path / "user.py")]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert re.findall(r"user.py:\d+: error: (.*?)(?:; maybe .*)?  ", checked.stdout) == [
        f'Module has no attribute "{name}"' for name in ("Adamm", "Any")
    ], checked.stdout


def test_training_works_where_no_mpi_library_is_installed():
    script = """
import sys
sys.modules["mpi4py"] = None
import numpy as np
import parallelcnn as pc
dataset = pc.Dataset(np.zeros((4, 5), np.uint8), np.array([0, 1, 0, 1]), 2)
pc.train(pc.NetworkHandler((pc.Dense(2),), (5,)), dataset, dataset, pc.SGD(), 1, 2)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
