"""The scripts do what they say with clouds that pretend, whatever is in a value; and no linter finds anything."""

import json
import re
import shlex
import subprocess

import pytest
import yaml

from experiments.launch.command import FOLDER
from experiments.launch.scripts import CLONE, HERE, PARTS, fill
from tests.experiments.launch.conftest import NASTY, STORE, shellcheck

TPU = ("--zone=us-west4-a", "--accelerator=v5litepod-16")
GKE = ("--on=gke", "--accelerator=v5p-16", "--image=us-docker.pkg.dev/p/r/massive_jax:1", "--queue=tpus", "--spot")
SLURM = ("--on=slurm", "--accelerator=h100:8", "--nodes=2", "--time=1-04:00:00")
TRAIN = ("--", "train_gpt2", f"--data={NASTY}", STORE)
LAUNCHES = {
    "tpu-vm": (*TPU, "--spot", "--collect=my results", "--project=my-project", "--network=n", *TRAIN),
    "gke": (*GKE, "--cluster=c", "--zone=us-east5-a", "--collect=it's", "--service_account=ksa", *TRAIN),
    "setup": (
        "--on=gke",
        "--setup",
        *GKE[1:2],
        "--cluster=c",
        "--zone=us-east5",
        "--node_zone=us-east5-a",
        "--queue=q",
    ),
    "slurm": (*SLURM, "--partition=gpu", "--account=me", f"--python={NASTY}", *TRAIN),
    "docker": ("--on=docker", "--accelerator=h100:1", "--", "layerwise", f"--prompt={NASTY}"),
}

# A cloud: two hosts are two folders; states and the experiment's exit statuses come from files, a line a look or run.
GCLOUD = r"""
echo "gcloud $*" >> "$state/log"
next() { head -n 1 "$state/$1"; [ "$(wc -l < "$state/$1")" = 1 ] || sed -i 1d "$state/$1"; }
case "$*" in
  *queued-resources\ list*) [ ! -e "$state/made" ] || echo "other ACTIVE
massive-jax $(next states)" ;;
  *queued-resources\ create*) touch "$state/made"
    for a in "$@"; do case $a in --labels=*) echo "${a##*=}" > "$state/mark" ;; esac; done ;;
  *queued-resources\ describe*) cat "$state/mark" ;;
  *queued-resources\ delete*) rm -rf "$state/made" "$state"/worker* ;;
  *storage\ rsync*) touch "$state/collected" ;;
  *tpu-vm\ ssh*) for a in "$@"; do case $a in --command=*) command=${a#--command=} ;; esac; done
    worst=0
    for w in 0 1; do
      mkdir -p "$state/worker$w"
      (cd "$state/worker$w" && HOSTNAME=w$w bash -c "$command") || worst=$?
    done
    exit $worst ;;
  *tpu-vm\ scp*)
    for w in 0 1; do
      for a in "$@"; do case $a in /*) cp "$a" "$state/worker$w/massive_jax_job/" ;; esac; done
    done ;;
  *) echo "what is $*" >&2; exit 2 ;;
esac
"""
# The host's python: pip does nothing; uv makes an environment whose python says what it was given, and how it ends.
PYTHON = r"""
case "$*" in
  *uv\ venv*) mkdir -p venv/bin; cat > venv/bin/python << END
#!/bin/bash
printf '%s\n' "\$@" > "$state/given"
echo ran in "\$PWD"
code=\$(head -n 1 "$state/codes")
case \$PWD in *worker1*) [ "\$(wc -l < "$state/codes")" = 1 ] || sed -i 1d "$state/codes" ;; esac
exit "\$code"
END
    chmod +x venv/bin/python ;;
esac
"""


@pytest.fixture
def cloud(pretend, tmp_path, monkeypatch):
    pretend("gcloud", GCLOUD)
    pretend("python3", PYTHON)
    # On one machine hosts that start together would read the same line of a file: one after the other.
    pretend("setsid", 'shift; exec "$@"')
    (tmp_path / "states").write_text("WAITING_FOR_RESOURCES\nACTIVE\n")
    (tmp_path / "codes").write_text("0\n")
    small = tmp_path / "clone"
    small.mkdir()
    for part in PARTS:
        (small / part).write_text("")
    monkeypatch.setattr("experiments.launch.scripts.CLONE", small)
    return pretend


SMALL = ("--zone=us-west4-a", "--accelerator=v5p-16", "--restarts=2")  # two hosts


class TestTpuVm:
    def test_runs_collects_and_deletes(self, script, cloud, tmp_path):
        (tmp_path / "sweeps").mkdir()
        (tmp_path / "sweeps/a.txt").write_text("goes along")
        text = script(*SMALL, "--spot", "--collect=my results", "--", "train_gpt2", "--data=sweeps/a.txt", STORE)
        assert cloud.run(text) == 0, cloud.said
        given = (tmp_path / "given").read_text().splitlines()
        assert given == ["-m", "experiments.train_gpt2", "--data=sweeps/a.txt", STORE, "--distributed"]
        (create,) = [call for call in cloud.calls if "queued-resources create" in call]
        assert "--accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5" in create
        assert "--spot" in create
        assert cloud.calls[-1].endswith("delete massive-jax --zone=us-west4-a --force --quiet")
        assert (tmp_path / "collected").exists()
        assert "w0: ran in" in (tmp_path / "logs/massive-jax.log").read_text()
        assert "w1: ran in" in (tmp_path / "logs/massive-jax.log").read_text()

    @pytest.mark.parametrize(
        ("states", "codes", "status", "created"),
        [
            ("ACTIVE", "7", 7, 1),  # what the experiment says, and nothing else
            pytest.param("FAILED", "0", 1, 1, marks=pytest.mark.slow),  # no capacity
            ("ACTIVE ACTIVE ACTIVE SUSPENDED ACTIVE", "143 0", 0, 2),  # preempted: asked for again
            pytest.param("ACTIVE", "134 0", 0, 1, marks=pytest.mark.slow),  # interrupted on a slice that stays
            pytest.param("ACTIVE", "143", 1, 1, marks=pytest.mark.slow),  # not for ever
        ],
    )
    def test_ends_as_the_experiment_does(self, script, cloud, tmp_path, states, codes, status, created):
        (tmp_path / "states").write_text(states.replace(" ", "\n") + "\n")
        (tmp_path / "codes").write_text(codes.replace(" ", "\n") + "\n")
        text = script(*SMALL, *TRAIN)
        assert cloud.run(text) == status, cloud.said
        assert sum("queued-resources create" in call for call in cloud.calls) == created
        assert not (tmp_path / "made").exists()  # deleted, whatever happened
        if (tmp_path / "given").exists():
            assert (tmp_path / "given").read_text().splitlines()[2] == f"--data={NASTY}"

    @pytest.mark.slow
    def test_kept_and_taken_up_again_but_not_by_another(self, script, cloud, tmp_path):
        (tmp_path / "codes").write_text("7\n")
        text = script(*SMALL, "--keep", *TRAIN)
        assert cloud.run(text) == 7, cloud.said
        assert (tmp_path / "made").exists()
        (tmp_path / "codes").write_text("0\n")
        assert cloud.run(text) == 0, cloud.said
        assert sum("queued-resources create" in call for call in cloud.calls) == 1
        assert cloud.run(script(*SMALL, "--", "train_gpt2", STORE)) == 1
        assert "for something else" in cloud.said
        assert (tmp_path / "made").exists()


# JobSets: apply makes one; its states come from a file.
KUBECTL = r"""
echo "kubectl $*" >> "$state/log"
next() { head -n 1 "$state/$1"; [ "$(wc -l < "$state/$1")" = 1 ] || sed -i 1d "$state/$1"; }
case "$*" in
  *apply*) cat > "$state/applied" ;;
  *delete*) cat > /dev/null; rm "$state/applied" ;;
  *logs*) echo "[pod/x] said" ;;
  *get\ pods*) printf '134\n\n%s\n' "$(cat "$state/codes")" ;;
  *labels*) [ ! -e "$state/applied" ] || grep -m 1 -oP 'massive-jax-launch: \K.*' "$state/applied" ;;
  *-o\ name*) [ ! -e "$state/applied" ] || echo jobset/massive-jax ;;
  *restarts*) next states ;;
  *terminalState*) cat "$state/ended" 2> /dev/null ;;
  *) exit 2 ;;
esac
"""


class TestGke:
    @pytest.mark.parametrize(("states", "status"), [(" 0 true|Completed 1 false", 0), ("Failed 0 false", 7)])
    def test_ends_as_the_experiment_does(self, script, pretend, tmp_path, states, status):
        pretend("kubectl", KUBECTL)
        (tmp_path / "states").write_text(states.replace("|", "\n") + "\n")
        (tmp_path / "codes").write_text("7")
        text = script(*GKE, *TRAIN)
        assert pretend.run(text) == status, pretend.said
        assert "said" in (tmp_path / "logs/massive-jax.log").read_text()
        assert not (tmp_path / "applied").exists()

    @pytest.mark.slow
    def test_kept_and_taken_up_again_but_not_by_another(self, script, pretend, tmp_path):
        pretend("kubectl", KUBECTL)
        (tmp_path / "states").write_text("Completed 0 false\n")
        text = script(*GKE, "--keep", *TRAIN)
        assert pretend.run(text) == 0, pretend.said
        assert (tmp_path / "applied").exists()
        (tmp_path / "ended").write_text("Completed")
        assert pretend.run(text) == 0, pretend.said
        assert sum(" apply " in call for call in pretend.calls) == 2
        assert pretend.run(script(*GKE, "--", "train_gpt2", STORE)) == 1
        assert "for something else" in pretend.said


class TestSlurm:
    @pytest.mark.parametrize(
        ("status", "restarted", "requeued"), [(0, 0, False), (7, 0, False), (143, 0, True), (143, 10, False)]
    )
    def test_ends_as_the_experiment_does(self, script, pretend, tmp_path, status, restarted, requeued):
        pretend("sbatch", f'[ "$1" = --wait ] && SLURM_JOB_ID=1 SLURM_RESTART_COUNT={restarted} bash "$2"')
        pretend("srun", f"""printf '%s\\n' "$JAX_LOCAL_DEVICE_IDS" "$@" > "$state/given"; exit {status}""")
        pretend("scontrol", 'echo "scontrol $*" >> "$state/log"')
        pretend("sleep", "exit 0")
        text = script(*SLURM, f"--python={NASTY}", *TRAIN)
        assert pretend.run(text) == status, pretend.said
        given = (tmp_path / "given").read_text().splitlines()
        assert given[0] == "0,1,2,3,4,5,6,7"
        at = given.index(NASTY)
        assert given[at + 1 :] == ["-m", "experiments.train_gpt2", f"--data={NASTY}", STORE, "--distributed"]
        assert pretend.calls == (["scontrol requeue 1"] if requeued else [])

    def test_the_directives_are_sbatchs(self, script):
        """The options of sbatch(1) of Slurm 22.05 that a job here may have, with the form of their values."""
        known = {
            "job-name": "[a-z0-9-]+", "nodes": r"\d+", "ntasks-per-node": r"\d+", "gpus-per-node": r"\d+",
            "time": r"(\d+-)?\d+:\d\d:\d\d", "partition": r"\w+", "account": r"\w+", "exclusive": None, "mem": r"\d+",
            "signal": r"[A-Z]+@\d+", "requeue": None, "open-mode": "append|truncate", "output": r"[%\w.-]+",
        }  # fmt: skip
        found = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script(*LAUNCHES["slurm"]), re.M)
        assert {name for name, _ in found} == set(known)
        for name, value in found:
            assert re.fullmatch(known[name] or "", value), name
        job = script(*LAUNCHES["slurm"]).split("<< 'JOB'\n")[1]
        before = job[: job.index("set -euo")]  # directives after the first command are ignored
        assert before.startswith("#!")
        assert before.count("#SBATCH") == len(found)


def test_docker_is_given_the_words(script, pretend, tmp_path):
    pretend("docker", """echo "docker $1" >> "$state/log"; printf '%s\\n' "$@" > "$state/given" """)
    assert pretend.run(script(*LAUNCHES["docker"])) == 0, pretend.said
    assert pretend.calls == ["docker build", "docker run"]
    given = (tmp_path / "given").read_text().splitlines()
    assert given[-3:] == ["-m", "experiments.layerwise", f"--prompt={NASTY}"]
    assert "--gpus=all" in given
    assert f"--volume={tmp_path}:{FOLDER}" in given
    assert f"--workdir={FOLDER}" in given


@pytest.mark.parametrize("place", LAUNCHES)
def test_no_linter_finds_anything(script, place):
    text = script(*LAUNCHES[place])
    inner = text.partition("<< 'JOB'\n")[2].partition("\nJOB\n")[0]
    for part in filter(None, (text, inner)):
        subprocess.run(["bash", "-n"], input=part, text=True, check=True, capture_output=True)
        assert shellcheck(part) == ""
    for flag in re.findall(r"^#[A-Z]+#$", text, re.M):
        pytest.fail(f"{flag} was not filled")


def test_a_template_takes_no_control_characters():
    with pytest.raises(ValueError, match="not printable"):
        fill("docker.sh", {"name": "a\nrm -rf /"})


def test_the_image_has_what_is_installed():
    """A parser of a Dockerfile's first words; hadolint 2.15.1 finds nothing in it, either."""
    text = (HERE / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert [line.split()[0] for line in lines] == [
        *("FROM", "ARG", "WORKDIR", "COPY", "COPY", "COPY", "COPY", "RUN", "WORKDIR", "ENV", "ENTRYPOINT")
    ]
    copied = [word.rstrip("/") for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert copied == list(PARTS)
    assert all((CLONE / part).exists() for part in PARTS)
    ignored = (HERE / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(PARTS)
    assert [line.split()[1] for line in lines if line.startswith("WORKDIR")][-1] == FOLDER
    assert json.loads(lines[-1].removeprefix("ENTRYPOINT ")) == ["python"]


def test_values_reach_yaml_as_they_are(script):
    text = script(*LAUNCHES["gke"]).split("<< 'YAML'\n")[1].split("\nYAML\n")[0]
    (jobset,) = yaml.safe_load_all(text)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][3] == f"--data={NASTY}".replace("$", "$$")  # Kubernetes makes one of two
    assert shlex.split(text.splitlines()[0])[0] == "apiVersion:"
