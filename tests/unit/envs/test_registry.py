import sys
from pathlib import Path

import pytest

from manta.envs.families.arithmetic import Arithmetic
from manta.envs.registry import build
from manta.envs.rewards.exact import Exact

PLUGIN = """
from manta.envs.families.arithmetic import Arithmetic

class Sums(Arithmetic):
    pass

def twice(factor: float, *, name: str = "x"):
    class Constant:
        version = f"{name}#{factor}"
        async def score(self, task, trajectory, services):
            return 2.0 * factor
    return Constant()

class Bare:
    pass
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_plugin", raising=False)
    return "my_plugin"


def test_by_name() -> None:
    assert isinstance(build("env", "arithmetic", {"operations": ["+", "-"]}), Arithmetic)
    assert isinstance(build("reward", "exact", {}), Exact)


def test_plugins(plugin: str) -> None:
    env = build("env", f"{plugin}:Sums", {"digits": 1, "eval_size": 5})
    assert len(env.source("train")) == 95
    assert build("reward", f"{plugin}:twice", {"factor": 2, "name": "n"}).version == "n#2"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("arithmetics", "did you mean 'arithmetic'"),
        ("zzz", "there are arithmetic, countdown, gsm8k"),
        ("no_such_module_here:X", "no module 'no_such_module_here'"),
        ("manta.envs.nothing:X", r"no module 'manta\.envs\.nothing'"),
        ("manta.envs.seeds:Missing", "has no class 'Missing'"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("env", name, {})


def test_a_plugin_with_a_broken_import_shows_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text("import module_that_is_missing")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="module_that_is_missing"):
        build("env", "broken_plugin:X", {})


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("env", "arithmetic", {"digit": 2}, r"no option 'digit': did you mean 'digits'\? it takes"),
        ("env", "arithmetic", {"digits": "2"}, r"option 'digits' cannot be '2'.*digits=2"),
        ("env", "arithmetic", {"digits": True}, "option 'digits' cannot be True"),
        ("env", "arithmetic", {"operations": 1}, "option 'operations' cannot be 1"),
        ("env", "gsm8k", {}, r"needs the option train: it takes \(train, eval=None"),
        ("env", "gsm8k", {"train": "a", "prompt": "html"}, "option 'prompt' cannot be 'html'"),
        ("env", "gsm8k", {"train": "a", "eval": 3}, "option 'eval' cannot be 3"),
        ("reward", "length", {"target": 1}, "needs the option limit"),
        ("reward", "exact", {"after": ["#"]}, "option 'after' cannot be"),
    ],
)
def test_options_that_do_not_fit(
    kind: str, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, name, options)  # type: ignore[call-overload]


def test_plugins_that_do_not_fit_the_seam(plugin: str) -> None:
    with pytest.raises(ValueError, match=r"lacks source, gold, .*Family"):
        build("env", f"{plugin}:Bare", {})
    with pytest.raises(ValueError, match="has none of the methods"):
        build("reward", f"{plugin}:Bare", {})
