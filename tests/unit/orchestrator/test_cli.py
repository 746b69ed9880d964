"""Commands as a user types them: exit codes, messages, and what is printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import manta
from manta.orchestrator.cli import main
from tests.unit.orchestrator.tiny_run import TINY, write

HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed")


def test_check_says_what_would_happen_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", write(tmp_path), "stages.rl.steps=7"]) == 0
    output = capsys.readouterr().out
    for words in (
        "name: tiny",
        "steps: 7",
        "Stage 2, rl (grpo)",
        "8 prompts x 4 samples = 32 completions a step",
        "CPUs each",
        "Memory at most",
        "Nothing was started.",
    ):
        assert words in output
    assert "\x1b[" not in output
    assert list(tmp_path.iterdir()) == [tmp_path / "run.yaml"]


def test_the_printed_run_file_loads_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["check", write(tmp_path)])
    first = capsys.readouterr().out
    resolved = first[: first.index("Stage 1, ")]
    assert main(["check", write(tmp_path, resolved)]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("command", ["train", "check", "eval"])
@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (TINY, ["stages.rl.stepz=3"], "override 'stages.rl.stepz=3': key 'stages[1].stepz': "
         "unknown key; did you mean 'steps'?"),
        (TINY.replace("coef:", "coeff:"), [],
         "FILE:12: key 'stages[1].algorithm.kl.coeff': unknown key; did you mean 'coef'?"),
        (TINY, ["rollout.top_k=3"],
         "FILE: rollout.top_k: is 3, must be 0 while training: the engine's log-probs would be "
         "those of the kept tokens, the learner computes its own over the whole vocabulary, and "
         "their ratio would be wrong"),
        (TINY, ["learner.workers=x", "rollout.workers=0.5"],
         "2 problems\noverride 'rollout.workers=0.5': key 'rollout.workers': expected a whole "
         "number (int), found 0.5 (float)\noverride 'learner.workers=x': key 'learner.workers': "
         "expected a whole number (int), found 'x' (str)"),
    ],
    ids=["override", "file", "cross-check", "two"],
)  # fmt: skip
def test_mistakes_exit_2_with_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str,
    overrides: list[str], message: str,
) -> None:  # fmt: skip
    path = write(tmp_path, text)
    assert main([command, path, *overrides]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"manta {command}: {message.replace('FILE', path)}\n"
    assert captured.out == ""


PLUG_IN = """
from manta.envs.rewards.artifact import ArtifactReward

class Polite(ArtifactReward):
    version = "polite#1"

    def judge(self, task, artifact):
        return float("please" in artifact)
"""


def test_plug_ins_are_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    components = "reward.components={polite: {reward: 'polite_plug_in:Polite'}}"
    words = ["check", write(tmp_path), "reward.formula=polite", components, "evaluate=null"]
    assert main(words) == 2
    assert "there is no module 'polite_plug_in'" in capsys.readouterr().err
    (tmp_path / "polite_plug_in.py").write_text(PLUG_IN, encoding="utf-8")
    assert main(words) == 0


def test_a_missing_file_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "absent.yaml"]) == 2
    assert capsys.readouterr().err == "manta train: absent.yaml: there is no such run file\n"


def test_memory_that_cannot_be_estimated_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    overrides = [f"model.path={folder}", "model.build=null"]
    assert main(["check", write(tmp_path), *overrides]) == 0
    assert "Memory: not estimated: no memory formula for the architecture 'mamba'" in (
        capsys.readouterr().out
    )


def test_overrides_may_follow_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", write(tmp_path), "run.seed=1", "--checkpoint", "step=3", "run.name=3"]
    assert main(arguments) == 2
    assert "override 'run.name=3': key 'run.name': expected text" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["traim", "x.yaml"], ["train"], ["check", "x.yaml", "--fast", "a=1"]]
)
def test_a_wrong_command_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: manta" in capsys.readouterr().err


def test_help_has_examples_and_version_is_the_packages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments, words in (
        (["--help"], "manta check recipes/demo.yaml"),
        (["eval", "--help"], "--checkpoint PATH"),
        (["--version"], f"manta {manta.__version__}"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        assert words in capsys.readouterr().out


def test_check_loads_no_heavy_library(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from manta.orchestrator.cli import main\n"
        "code = main(sys.argv[1:])\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.exit(f'loaded {loaded}' if loaded else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "check", write(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Nothing was started." in done.stdout
