import pkgutil
import subprocess
import sys

import manta.envs

HEAVY = ("torch", "ray", "transformers", "datasets", "vllm")


def test_the_world_loads_neither_torch_nor_ray_nor_transformers() -> None:
    modules = [m.name for m in pkgutil.walk_packages(manta.envs.__path__, "manta.envs.")]
    assert "manta.envs.families.gsm8k" in modules
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "import tokenizers, pyarrow.dataset\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
