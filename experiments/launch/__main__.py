r"""Starts an experiment on a TPU pod, a cluster or in a container: prints the script, or with --run runs it.

  python -m experiments.launch --on=tpu-vm --accelerator=v5litepod-16 --zone=us-west4-a --spot --collect=results \
    -- batch --file=sweep.yaml --mesh=fsdp:16 --workdir=gs://BUCKET/sweep
  python -m experiments.launch --on=gke --accelerator=v5p-16 --image=IMAGE --queue=tpus \
    -- census --model=gs://BUCKET/llama2_70b --mesh=fsdp:8 --workdir=gs://BUCKET/census
  python -m experiments.launch --on=slurm --accelerator=h100:8 --nodes=2 --time=04:00:00 \
    -- layerwise --model=llama2_70b --mesh=fsdp:16 --workdir=/shared/results
  python -m experiments.launch --on=docker --accelerator=h100:1 -- layerwise --workdir=results

What stands after -- is an experiment and its flags, which are checked here before anything is asked for. Text files
that they name, such as a sweep's, go along; models and results are in an object store (gs://…), on Slurm in folders
that all nodes see. The script creates (a queued resource; a JobSet, in Kueue's queue; a Slurm job), installs this
clone, runs the command on every host, which find each other, shows and keeps what they print, copies the results and
deletes what it made, also after a failure, unless --keep. Interrupted, it goes on: slices that are taken away are asked
for again, and the same launch a second time takes up what is there. It exits with the status of the experiment.

--on=gke --setup makes, once, the nodes for such slices and the queue, in a cluster that is there.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence

from experiments import common
from experiments.launch import options
from experiments.launch.command import Command
from experiments.launch.scripts import NEEDS, SCRIPTS, setup


def main(argv: Sequence[str]) -> None:
    """Runs the binary: `argv` has its flags, --, and an experiment with its own."""
    at = argv.index("--") if "--" in argv else len(argv)
    own, words = list(argv[:at]), list(argv[at + 1 :])
    if {"--help", "-h", "--helpfull", "--helpshort"} & {*own}:
        print(f"{__doc__}\n{options.OPTIONS.get_help()}")
        return
    options.parse(own)
    place = options.ON.value
    if options.SETUP.value:
        if words:
            raise ValueError("--setup runs no experiment; leave out what stands after --.")
        script = setup()
    else:
        script = SCRIPTS[place](Command.read(words))
    if not options.RUN.value:
        print(script, end="")
        return
    for program in NEEDS[place]:
        if shutil.which(program) is None:
            raise ValueError(f"--on={place} --run needs {program}, which is not installed here.")
    # In place of this program, which would kill it when it is interrupted itself: it has a slice to delete. From a
    # file, since what a shell reads from its input the programs that it starts would read, too.
    with tempfile.TemporaryFile() as file:
        file.write(script.encode())
        file.flush()
        file.seek(0)
        os.set_inheritable(file.fileno(), True)
        sys.stdout.flush()
        os.execvp("bash", ["bash", f"/dev/fd/{file.fileno()}"])


if __name__ == "__main__":
    # Only --traceback is for what all experiments share; the rest is read by `main`.
    _at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    _shared = [word for word in sys.argv[1:_at] if word == "--traceback"]
    _argv = [word for word in sys.argv[:_at] if word != "--traceback"] + sys.argv[_at:]
    sys.argv = [sys.argv[0], *_shared]
    common.run_experiment(functools.partial(main, _argv))
