"""What importing `manta.algorithms` loads, seen from a fresh process."""

import subprocess
import sys

import pytest

import manta.algorithms

ALL_MODULES = """
import importlib, pkgutil, manta.algorithms
for module in pkgutil.iter_modules(manta.algorithms.__path__, "manta.algorithms."):
    importlib.import_module(module.name)
"""


def loaded_by(code: str) -> set[str]:
    """The names of all modules that `code` leaves in sys.modules."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    folder = manta.algorithms.__path__[0].removesuffix("manta/algorithms")
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder
    )
    return set(done.stdout.split())


def test_algorithms_load_neither_ray_nor_transformers_nor_a_sibling() -> None:
    loaded = loaded_by(ALL_MODULES)
    assert {"manta.algorithms.objective", "manta.algorithms.presets", "torch"} <= loaded
    assert loaded.isdisjoint(
        {"ray", "transformers", "manta.envs", "manta.actors", "manta.orchestrator"}
    )


@pytest.mark.parametrize("module", ["settings", "presets"])
def test_what_a_run_file_needs_loads_no_torch(module: str) -> None:
    loaded = loaded_by(f"import manta.algorithms.{module}")
    assert f"manta.algorithms.{module}" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "ray", "transformers"})
