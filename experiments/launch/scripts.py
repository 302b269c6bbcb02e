"""The scripts: templates, and values that a shell takes as they are."""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping, Sequence

from experiments.launch import gke, options
from experiments.launch.command import FOLDER, Command
from experiments.launch.slices import Slice, gpus
from massive_jax import storage

HERE = pathlib.Path(__file__).resolve().parent
CLONE = HERE.parent.parent
# What is installed from.
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "massive_jax", "experiments", "checkpoints")

# The releases that --setup installs: those of xpk (github.com/AI-Hypercomputer/xpk, June 2026).
_JOBSET, _KUEUE = "v0.10.1", "v0.17.1"

Value = str | int | bool | Sequence[str]


def fill(template: str, values: Mapping[str, Value], **blocks: str) -> str:
    """Fills a template of this folder: `values` as assignments of the shell where it says #VALUES#, and `blocks`.

    Raises:
      ValueError: a value with a control character: no command needs one.
    """
    text = (HERE / "templates" / template).read_text(encoding="utf-8")
    lines = []
    for name, value in values.items():
        words = [str(int(value)) if isinstance(value, bool) else str(value)] if isinstance(value, str | int) else value
        for word in words:
            if word and not word.isprintable():
                raise ValueError(f"{name} {word!r} has characters that are not printable.")
        quoted = " ".join(map(shlex.quote, words))
        if "$" in quoted or "`" in quoted:
            lines.append("# shellcheck disable=SC2016  # as it stands")
        lines.append(f"{name}={quoted}" if isinstance(value, str | int) else f"{name}=({quoted})")
    for mark, block in {"values": "\n".join(lines), **blocks}.items():
        line = f"\n#{mark.upper()}#\n"
        assert text.count(line) == 1, (template, mark)
        text = text.replace(line, f"\n{block}\n")
    return text


def tpu_vm(command: Command) -> str:
    """Makes the script for a TPU VM slice."""
    slice_ = Slice.parse(str(options.ACCELERATOR.value))
    command = command.together(slice_.chips, slice_.hosts)
    files = command.local_files()
    flags = {"network": options.NETWORK, "subnetwork": options.SUBNETWORK, "service-account": options.SERVICE_ACCOUNT}
    extra = [f"--{name}={holder.value}" for name, holder in flags.items() if holder.value]
    values: dict[str, Value] = {
        **_everywhere(command, slice_, files),
        "zone": str(options.ZONE.value),
        "project": options.PROJECT.value or "",
        "accelerator": slice_.accelerator,
        "runtime": options.RUNTIME.value or slice_.runtime,
        "options": [*(["--spot"] if options.SPOT.value else []), *extra],
        "source": _clone(),
        "parts": PARTS,
        "from": str(pathlib.Path.cwd()),
        "files": sorted(files),
        "restarts": options.RESTARTS.value,
    }
    # Texts come from the hub with `data`; the store of a sweep's models is not looked for in the file.
    packages = sorted({storage.SCHEMES["gs"]} | {storage.SCHEMES[scheme] for scheme in command.schemes()})
    job = fill("job.sh", {"extra": "tpu,data", "packages": packages, "command": command.words()})
    return fill("tpu_vm.sh", values, job=job.rstrip("\n"))


def on_gke(command: Command) -> str:
    """Makes the script for a slice of a GKE cluster."""
    slice_ = Slice.parse(str(options.ACCELERATOR.value))
    command = command.together(slice_.chips, slice_.hosts)
    files = command.local_files()
    try:
        texts = {path: content.decode("utf-8") for path, content in files.items()}
    except UnicodeDecodeError:
        raise ValueError(f"of {', '.join(files)}, only text can go along; copy the rest to an object store.") from None
    values = _everywhere(command, slice_, files)
    objects = gke.job(
        options.NAME.value,
        command,
        slice_,
        image=str(options.IMAGE.value),
        mark=str(values["mark"]),
        restarts=options.RESTARTS.value,
        queue=options.QUEUE.value,
        spot=options.SPOT.value,
        service_account=options.SERVICE_ACCOUNT.value,
        files=texts,
    )
    values |= {"namespace": options.NAMESPACE.value, "cluster": options.CLUSTER.value or ""}
    values |= {"at": _of_cluster() if options.CLUSTER.value else []}
    return fill("gke.sh", values, manifest=gke.as_yaml(objects))


def setup() -> str:
    """Makes the script that adds a slice and its queue to a GKE cluster."""
    slice_ = Slice.parse(str(options.ACCELERATOR.value))
    flags = [f"--tpu-topology={slice_.topology}"] if slice_.hosts > 1 else []
    flags += [f"--node-locations={options.NODE_ZONE.value}"] if options.NODE_ZONE.value else []
    values: dict[str, Value] = {
        "cluster": str(options.CLUSTER.value),
        "at": _of_cluster(),
        "pool": f"{options.NAME.value}-{slice_.accelerator}",
        "machine": slice_.machine,
        "hosts": slice_.hosts,
        "options": [*flags, *(["--spot"] if options.SPOT.value else [])],
        "jobset": _JOBSET,
        "kueue": _KUEUE,
    }
    objects = gke.queues(str(options.QUEUE.value), slice_, namespace=options.NAMESPACE.value)
    return fill("setup.sh", values, manifest=gke.as_yaml(objects))


def slurm(command: Command) -> str:
    """Makes the script that submits the job of Slurm."""
    count = gpus(str(options.ACCELERATOR.value))
    nodes = options.NODES.value
    command = command.together(count * nodes, nodes)
    directives = {
        "job-name": options.NAME.value,
        "nodes": nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": count,
        "time": options.TIME.value,
        "partition": options.PARTITION.value,
        "account": options.ACCOUNT.value,
        "exclusive": True,
        "mem": 0,  # all of the node's
        "signal": "TERM@120",  # to the processes, which save
        "requeue": True,
        "open-mode": "append",
        "output": "%x-%j.log",
    }
    lines = [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={value}"
        for name, value in directives.items()
        if value is not None
    ]
    inside: dict[str, Value] = {
        "command": command.words(),
        "python": options.PYTHON.value,
        "devices": ",".join(map(str, range(count))),
        "restarts": options.RESTARTS.value,
    }
    job = fill("slurm.sh", inside, directives="\n".join(lines))
    return fill("submit.sh", {"name": options.NAME.value, "from": str(pathlib.Path.cwd())}, job=job.rstrip("\n"))


def docker(command: Command) -> str:
    """Makes the script that builds the image and runs it here."""
    accelerator = str(options.ACCELERATOR.value)
    gpu = ":" in accelerator
    slice_ = None if gpu else Slice.parse(accelerator)
    if slice_ is not None and slice_.hosts > 1:
        raise ValueError(f"--accelerator={accelerator} is {slice_.hosts} hosts, and this a container on one.")
    command = command.together(gpus(accelerator) if slice_ is None else slice_.chips, 1)
    command.check_below()
    extra = "gpu" if gpu else "tpu"
    # docs.cloud.google.com/tpu/docs/run-in-container; docs.docker.com/engine/containers/gpu
    devices = ["--gpus=all", "--shm-size=16g"] if gpu else ["--privileged", "--network=host"]
    values: dict[str, Value] = {
        "name": options.NAME.value,
        "command": command.words(),
        "image": options.IMAGE.value or f"massive_jax:{extra}",
        "build": options.IMAGE.value is None,
        "extra": extra,
        "source": _clone() if options.IMAGE.value is None else "",
        "options": devices,
        "from": str(pathlib.Path.cwd()),
        "folder": FOLDER,
    }
    return fill("docker.sh", values)


def _everywhere(command: Command, slice_: Slice, files: Mapping[str, bytes]) -> dict[str, Value]:
    return {
        "name": options.NAME.value,
        "hosts": slice_.hosts,
        "mark": command.mark(slice_.accelerator, sorted(files.items())),
        "workdir": command.results,
        "results": options.COLLECT.value or "",
        "logs": options.LOGS.value,
        "keep": options.KEEP.value,
    }


def _of_cluster() -> list[str]:
    """Where the cluster is, as gcloud takes it."""
    project = [f"--project={options.PROJECT.value}"] if options.PROJECT.value else []
    return [f"--location={options.ZONE.value}", *project]


def _clone() -> str:
    missing = [part for part in PARTS if not (CLONE / part).exists()]
    if missing:
        raise ValueError(f"{CLONE} has no {', '.join(missing)}: start this from a clone, which the workers install.")
    return str(CLONE)


SCRIPTS = {"tpu-vm": tpu_vm, "gke": on_gke, "slurm": slurm, "docker": docker}
# Programs that a script needs here.
NEEDS = {"tpu-vm": ("gcloud", "tar"), "gke": ("kubectl",), "slurm": ("sbatch",), "docker": ("docker",)}
