"""The flags of a launch, each checked by itself.

They are in a set of their own: an experiment, whose flags are read in the same process, may use the same names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from absl import flags

PLACES = ("tpu-vm", "gke", "slurm", "docker")
OPTIONS = flags.FlagValues()

_Define: TypeAlias = Callable[..., flags.FlagHolder[Any]]
_text: _Define = functools.partial(flags.DEFINE_string, flag_values=OPTIONS)
_yes: _Define = functools.partial(flags.DEFINE_bool, flag_values=OPTIONS)
_whole: _Define = functools.partial(flags.DEFINE_integer, flag_values=OPTIONS)

ON = flags.DEFINE_enum("on", "tpu-vm", PLACES, "Where it runs.", flag_values=OPTIONS)
RUN = _yes("run", False, "Runs the script that is otherwise printed.")
ACCELERATOR = _text(
    "accelerator", None, "The chips, as experiments.plan names them: v5litepod-16 or v5e-16, v5p-16, v6e-8, h100:8."
)
NODES = _whole("nodes", 1, "Machines of --accelerator; --on=slurm.", lower_bound=1, upper_bound=4096)
NAME = _text("name", "massive-jax", "Of the job and of what is made for it.")
ZONE = _text("zone", None, "Of the TPUs (--on=tpu-vm), of the cluster (--on=gke; or a region).")
PROJECT = _text("project", None, "Of Google Cloud; gcloud's own where none is given.")
SPOT = _yes("spot", False, "Chips that may be taken away; the job then goes on with others.")
RUNTIME = _text("runtime", None, "Software of the TPU VMs, in place of the usual one for the chips.")
NETWORK = _text("network", None, "Of the TPU VMs.")
SUBNETWORK = _text("subnetwork", None, "Of the TPU VMs.")
SERVICE_ACCOUNT = _text(
    "service_account", None, "Whose rights the job has: an address (--on=tpu-vm), or of Kubernetes (--on=gke)."
)
CLUSTER = _text("cluster", None, "Of GKE; where none is given, what kubectl is set to.")
NAMESPACE = _text("namespace", "default", "Of Kubernetes.")
QUEUE = _text("queue", None, "Kueue's local queue, which starts the job when its chips are free.")
SETUP = _yes("setup", False, "Makes nodes and queue of a GKE cluster in place of a job.")
NODE_ZONE = _text("node_zone", None, "Of the nodes that --setup makes, where --zone is a region.")
IMAGE = _text("image", None, "Of the container; --on=docker builds it where none is given.")
PARTITION = _text("partition", None, "Of Slurm.")
ACCOUNT = _text("account", None, "Of Slurm.")
TIME = _text("time", None, "Slurm's limit, [DAYS-]HOURS:MINUTES:SECONDS; then it is queued again.")
PYTHON = _text("python", ".venv/bin/python", "On the nodes of Slurm.")
RESTARTS = _whole("restarts", 10, "How often an interrupted job goes on by itself.", lower_bound=0)
COLLECT = _text("collect", None, "A folder here, where the results are copied at the end.")
LOGS = _text("logs", "logs", "A folder here for what the hosts print.")
KEEP = _yes("keep", False, "Leaves the slice or the JobSet where it is, also after a failure.")

# Which flags mean something where; the others would be ignored.
WHERE = {
    "nodes": "slurm",
    "partition": "slurm",
    "account": "slurm",
    "time": "slurm",
    "python": "slurm",
    "runtime": "tpu-vm",
    "network": "tpu-vm",
    "subnetwork": "tpu-vm",
    "zone": "tpu-vm gke",
    "project": "tpu-vm gke",
    "spot": "tpu-vm gke",
    "service_account": "tpu-vm gke",
    "collect": "tpu-vm gke",
    "logs": "tpu-vm gke",
    "keep": "tpu-vm gke",
    "restarts": "tpu-vm gke slurm",
    "cluster": "gke",
    "namespace": "gke",
    "queue": "gke",
    "setup": "gke",
    "node_zone": "gke",
    "image": "gke docker",
}

_LABEL = r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?"  # of DNS, with room for what Kubernetes adds to it
_FORMS = (
    # flag, pattern, what to give
    (NAME, _LABEL, "at most 40 lower-case letters, digits and dashes, a letter first"),
    (ZONE, r"[a-z]+-[a-z]+[0-9]+(-[a-z])?", "a zone such as us-west4-a"),
    (NODE_ZONE, r"[a-z]+-[a-z]+[0-9]+-[a-z]", "a zone such as us-west4-a"),
    (PROJECT, r"([a-z][-a-z0-9.]{0,60}:)?[a-z][-a-z0-9]{4,28}[a-z0-9]", "the id of a project"),
    (RUNTIME, r"[a-z0-9][-a-z0-9._]{0,62}", "a name such as v2-alpha-tpuv6e"),
    (NETWORK, r"[a-z0-9][-a-z0-9_/.]{0,254}", "the name of a network"),
    (SUBNETWORK, r"[a-z0-9][-a-z0-9_/.]{0,254}", "the name of a subnetwork"),
    (SERVICE_ACCOUNT, r"[a-zA-Z0-9][-a-zA-Z0-9._@]{0,254}", "the name of an account"),
    (CLUSTER, _LABEL, "the name of a cluster"),
    (NAMESPACE, _LABEL, "the name of a namespace"),
    (QUEUE, _LABEL, "the name of a local queue"),
    (
        IMAGE,
        r"[a-z0-9][-a-zA-Z0-9._/:@]{0,254}",
        "an image, such as us-docker.pkg.dev/PROJECT/REPOSITORY/NAME:TAG",
    ),
    (PARTITION, r"[A-Za-z0-9_][-A-Za-z0-9_.,]{0,254}", "names of partitions"),
    (ACCOUNT, r"[A-Za-z0-9_][-A-Za-z0-9_.]{0,254}", "the name of an account"),
    (TIME, r"([0-9]{1,3}-)?[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]", "[DAYS-]HOURS:MINUTES:SECONDS"),
)


def parse(argv: Sequence[str]) -> None:
    """Reads the flags, the program's name first, and checks what can be checked of them alone.

    Raises:
      ValueError: no such flag, or no flag; a value of another form; a flag that means nothing where the job runs; one
        that is missing.
    """
    OPTIONS.unparse_flags()
    try:
        rest = OPTIONS(list(argv))
    except flags.Error as error:
        raise ValueError(str(error)) from None
    if len(rest) > 1:
        raise ValueError(f"unexpected arguments {' '.join(rest[1:])!r}; what to run stands after --.")
    for flag, pattern, what in _FORMS:
        if flag.value is not None and not re.fullmatch(pattern, flag.value, re.ASCII):
            raise ValueError(f"--{flag.name}={flag.value!r}: give {what}.")
    for holder in (COLLECT, LOGS, PYTHON):
        if holder.value is not None and (not holder.value or not holder.value.isprintable()):
            raise ValueError(f"--{holder.name}={holder.value!r}: give a path of printable characters.")
    for name, places in WHERE.items():
        if OPTIONS[name].present and ON.value not in places.split():
            raise ValueError(f"--{name} has no effect with --on={ON.value}; leave it out.")
    needed = {
        "tpu-vm": (ACCELERATOR, ZONE),
        "gke": (ACCELERATOR, IMAGE),
        "slurm": (ACCELERATOR, TIME),
        "docker": (ACCELERATOR,),
    }
    needed["setup"] = (ACCELERATOR, CLUSTER, ZONE, QUEUE)
    missing = [f"--{f.name}" for f in needed.get("setup" if SETUP.value else ON.value, ()) if f.value is None]
    if missing:
        raise ValueError(f"--on={ON.value}{' --setup' * SETUP.value} needs {' and '.join(missing)}.")
    if SETUP.value and re.fullmatch(r".*[0-9]", str(ZONE.value)) and NODE_ZONE.value is None:
        raise ValueError(f"--zone={ZONE.value} is a region: say with --node_zone where in it the nodes are.")
    if ON.value == "tpu-vm" and re.fullmatch(r".*[0-9]", str(ZONE.value)):
        raise ValueError(f"--zone={ZONE.value} is a region: give a zone such as {ZONE.value}-a.")
    if CLUSTER.value and not ZONE.value:
        raise ValueError("--cluster needs --zone, where the cluster is.")
