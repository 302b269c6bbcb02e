"""What is wrong is said in one line before anything is printed, let alone asked for."""

import subprocess
import sys

import pytest

from experiments.launch.command import Command
from experiments.launch.slices import Slice, gpus
from tests.experiments.launch.conftest import STORE
from tests.experiments.launch.test_scripts import GKE, SLURM, TPU

RUN = ("--", "layerwise", STORE)
SWEEPS = {
    "wrong": "experiment: censsus",
    "flags": "experiment: layerwise, windws: 1",
    "here": "experiment: layerwise, model: folder",
    "alone": "experiment: emergence",
    "mesh": "experiment: layerwise, mesh: '8,1'",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TPU, "give what to run after --"),
        ((*TPU, "stray", *RUN), "unexpected arguments 'stray'"),
        ((*TPU, "--kepe", *RUN), "Did you mean: keep"),
        ((*TPU, "--on=aws", *RUN), "--on=aws"),
        (("--zone=us-west4-a", *RUN), "--on=tpu-vm needs --accelerator"),
        (("--on=gke", *RUN), "needs --accelerator and --image"),
        (("--on=gke", "--setup", *TPU), "--on=gke --setup needs --cluster and --queue"),
        ((*TPU, "--zone=us-west4", *RUN), "a region: give a zone"),
        ((*TPU, "--zone=us-west4-a;id", *RUN), "give a zone"),
        ((*TPU, "--zone=us-west4-a\n", *RUN), "give a zone"),
        ((*TPU, "--name=a b", *RUN), "give at most 40"),
        ((*TPU, "--name=-rf", *RUN), "give at most 40"),
        ((*TPU, "--name=" + 41 * "a", *RUN), "give at most 40"),
        ((*TPU, "--project=$(id)", *RUN), "give the id of a project"),
        ((*TPU, "--runtime=`id`", *RUN), "give a name such as"),
        ((*TPU, "--collect=", *RUN), "give a path"),
        ((*TPU, "--collect=a\nb", *RUN), "give a path"),
        ((*TPU, "--queue=q", *RUN), "--queue has no effect with --on=tpu-vm"),
        ((*GKE, "--partition=x", *RUN), "--partition has no effect with --on=gke"),
        ((*GKE, "--image=a b", *RUN), "give an image"),
        ((*GKE, "--queue=Q", *RUN), "give the name of a local queue"),
        ((*GKE, "--cluster=c", *RUN), "--cluster needs --zone"),
        ((*SLURM, "--partition=a\n#SBATCH --x", *RUN), "give names of partitions"),
        ((*SLURM, "--time=4h", *RUN), "HOURS:MINUTES:SECONDS"),
        ((*SLURM, "--accelerator=v5p-16", *RUN), "the GPUs of a node"),
        ((*SLURM, "--nodes=0", *RUN), "--nodes=0"),
        ((*TPU, "--accelerator=h100:8", *RUN), "give a TPU slice"),
        ((*TPU, "--accelerator=v5p-15", *RUN), "no slice of that size; there are v5p-8, v5p-16"),
        ((*TPU, "--accelerator=v5litepod-2", *RUN), "v5litepod-1, v5litepod-4"),
        (("--on=docker", "--accelerator=v5p-16", *RUN), "2 hosts, and this a container on one"),
        ((*TPU, "--", "no_such"), "there is no experiment 'no_such'; there are attention,"),
        ((*TPU, "--", "common"), "there is no experiment 'common'"),
        ((*TPU, "--", "../x"), "there is no experiment '../x'"),
        ((*TPU, "--", "layerwise", "--windws=1", STORE), "layerwise: Unknown command line flag 'windws'"),
        ((*TPU, "--", "layerwise", "--windows=0", STORE), "--windows=0"),
        ((*TPU, "--", "layerwise", "stray", STORE), "unexpected arguments 'stray'"),
        ((*TPU, "--", "layerwise", "--prompt=a\nb", STORE), "printable characters only"),
        ((*TPU, "--", "layerwise", "--prompt=a\x1b[2J", STORE), "printable characters only"),
        ((*TPU, "--", "layerwise"), "results in 'results' would be lost"),
        ((*TPU, "--", "layerwise", "--workdir=/mnt/x"), "give --workdir=gs://"),
        ((*TPU, "--", "layerwise", "--workdir=ftp://x/y"), "no way to read ftp://"),
        ((*TPU, "--", "layerwise", "--model=folder", STORE), "a folder of this machine"),
        ((*TPU, "--", "layerwise", "--model=../outside", STORE), "must be below the current folder"),
        ((*TPU, "--", "layerwise", "--model=large.gguf", STORE), "too large to go along"),
        ((*GKE, "--", "train_gpt2", "--data=bytes.bin", STORE), "only text can go along"),
        ((*TPU, "--", "train_gpt2", "--mesh=8,1", STORE), "--mesh=8,1: 8 devices; the accelerator has 16"),
        ((*SLURM, "--", "train_gpt2", "--mesh=8,1"), "the accelerator has 16"),
        ((*TPU, "--", "layerwise", "--coordinator=a:1", STORE), "--coordinator: the hosts of a launch find each other"),
        ((*TPU, "--", "layerwise", "--nobos=true", STORE), "layerwise: --nobos=true does not take an argument"),
        ((*TPU, "--", "layerwise", "--flagfile=nowhere", STORE), "layerwise: ERROR:: Unable to open flagfile"),
        ((*TPU, "--", "layerwise", "--text=wikitext2:folder", STORE), "a folder of this machine"),
        ((*TPU, "--", "batch", STORE), "batch: --file is missing"),
        ((*TPU, "--", "batch", "--file=nowhere", STORE), "--file 'nowhere' cannot be opened"),
        ((*TPU, "--", "batch", "--file=folder", STORE), "--file 'folder' is a directory"),
        ((*TPU, "--", "batch", "--file=wrong.yaml", STORE), "line 1: no experiment 'censsus'; did you mean census?"),
        ((*TPU, "--", "batch", "--file=flags.yaml", STORE), "layerwise: Unknown command line flag 'windws'"),
        ((*TPU, "--", "batch", "--file=here.yaml", STORE), "--model=folder is a folder of this machine"),
        ((*TPU, "--", "batch", "--file=alone.yaml", STORE), "emergence runs in one process"),
        ((*TPU, "--", "batch", "--file=mesh.yaml", STORE), "--mesh=8,1: 8 devices; the accelerator has 16"),
        ((*SLURM, "--", "batch", "--file=mesh.yaml", "--shard=0/2"), "--shard=0/2 would be the same on every host"),
        ((*SLURM, "--", "batch", "--file=mesh.yaml", "--shard=auto", "--mesh=16,1"), "16 devices; a host has 8"),
        (
            ("--on=docker", "--accelerator=h100:1", "--", "layerwise", "--workdir=/mnt/x"),
            "results in /mnt/x: the container",
        ),
        (
            ("--on=docker", "--accelerator=h100:1", "--", "layerwise", "--model=../outside"),
            "--model=../outside: the cont",
        ),
    ],
)
def test_said_in_one_line(refused, tmp_path, arguments, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "bytes.bin").write_bytes(b"\xff\xfe")
    with (tmp_path / "large.gguf").open("wb") as file:
        file.truncate(1 << 20)
    (tmp_path.parent / "outside").write_text("x")
    for name, group in SWEEPS.items():
        (tmp_path / f"{name}.yaml").write_text(f"- {{{group}}}")
    assert message in refused(*arguments)


def test_what_is_taken_for_the_same(tmp_path):
    assert Slice.parse("v5e-16") == Slice.parse("V5litepod-16")
    assert [Slice.parse(name).hosts for name in ("v5e-1", "v5e-4", "v6e-8", "v6e-16", "v5p-8", "v4-1024")] == [
        *(1, 1, 1, 4, 1, 128)
    ]
    assert gpus("H100:8") == gpus("a100-80gb:8") == 8
    assert Command.read(["experiments.layerwise"]).words() == Command.read(["layerwise"]).words()


def test_what_runs_in_one_process_is_not_started_on_several_hosts(refused):
    assert "experiments.emergence runs in one process" in refused(*TPU, "--", "emergence", STORE)


def test_one_process_is_not_told_of_others():
    command = Command("experiments.train_gpt2", (), {})
    assert command.together(4, 1).arguments == ()
    assert command.together(8, 2).arguments == ("--distributed",)
    given = Command("experiments.train_gpt2", ("--distributed",), {"distributed": True})
    assert given.together(8, 2).arguments == ("--distributed",)


def test_run_becomes_the_script(script, refused, pretend, monkeypatch, tmp_path):
    """Whoever interrupts it interrupts the script, which then deletes what it made; the exit status is the script's."""
    argv = ("--on=docker", "--accelerator=h100:1", "--image=a/b", "--run", "--", "layerwise")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "needs docker, which is not installed" in refused(*argv)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    pretend("docker", 'echo "$@" > "$state/given"; exit 7')

    def become(program, arguments):
        sys.exit(subprocess.run([program, *arguments[1:]], close_fds=False, check=False).returncode)

    monkeypatch.setattr("os.execvp", become)
    with pytest.raises(SystemExit) as stopped:
        script(*argv)
    assert stopped.value.code == 7
    assert (tmp_path / "given").read_text().endswith("a/b -m experiments.layerwise\n")


@pytest.mark.slow
def test_from_the_command_line():
    """A bad flag is a line and status 1; --traceback is common to all programs; what is good is printed."""

    def run(*argv):
        command = [sys.executable, "-m", "experiments.launch", *argv]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    bad = run(*TPU, "--", "train_gpt2")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: results in 'results' would be lost")
    assert bad.stderr.count("\n") == 1
    assert "Traceback" in run("--traceback", *TPU, "--", "train_gpt2").stderr
    assert "--accelerator" in run("--help").stdout
    good = run("--on=docker", "--accelerator=h100:1", "--", "layerwise", "--traceback")
    assert good.returncode == 0
    assert "experiments.layerwise --traceback" in good.stdout
