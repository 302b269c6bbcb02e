"""The Kubernetes objects of a job on a TPU slice of GKE.

The forms are those of JobSet v1alpha2 (jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2), of Kueue v1beta2
(kueue.sigs.k8s.io/docs/tasks/run/jobsets) and of docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from experiments.launch.command import FOLDER, Command
from experiments.launch.slices import Slice

_SPOT = "cloud.google.com/gke-spot"
# How a process ends that was interrupted and did not fail: ended (143), killed (137), left alone by a peer (134).
INTERRUPTED = (134, 137, 143)


def job(
    name: str,
    command: Command,
    slice_: Slice,
    *,
    image: str,
    mark: str,
    restarts: int,
    queue: str | None = None,
    spot: bool = False,
    service_account: str | None = None,
    files: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Makes the JobSet, one pod a host, and the ConfigMap of the files that go along, if there are any.

    An interrupted pod has all pods start again, at most `restarts` times; one that fails ends the job at once, but
    not on spot nodes, where a pod may fail because another was taken away.
    """
    labels = {"massive-jax-launch": mark}
    container: dict[str, Any] = {
        "name": "experiment",
        "image": image,
        # Kubernetes puts the value of X for $(X), and $ for $$.
        "command": ["python", "-m", *(word.replace("$", "$$") for word in command.words())],
        "workingDir": FOLDER,
        "ports": [{"containerPort": 8471}, {"containerPort": 8482}],  # of libtpu, of jax's coordinator
        "resources": {"limits": {"google.com/tpu": slice_.per_host}, "requests": {"google.com/tpu": slice_.per_host}},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,  # to save in; of a spot node less may be left
        "nodeSelector": _labels(slice_),
        "containers": [container],
    }
    objects: list[dict[str, Any]] = []
    if spot:
        pod["nodeSelector"][_SPOT] = "true"
        pod["tolerations"] = [{"key": _SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    if service_account:
        pod["serviceAccountName"] = service_account
    if files:
        keys = {f"file-{number}": path for number, path in enumerate(files)}  # a key has no slash
        metadata = {"name": f"{name}-files", "labels": labels}
        data = {key: files[path] for key, path in keys.items()}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
        items = [{"key": key, "path": path} for key, path in keys.items()]
        pod["volumes"] = [{"name": "files", "configMap": {"name": f"{name}-files", "items": items}}]
        container["volumeMounts"] = [
            {"name": "files", "mountPath": f"{FOLDER}/{path}", "subPath": path, "readOnly": True} for path in files
        ]
    rule = {"action": "FailJob", "onExitCodes": {"containerName": "experiment", "operator": "NotIn"}}
    rule["onExitCodes"]["values"] = list(INTERRUPTED)  # type: ignore[index]
    template: dict[str, Any] = {
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "parallelism": slice_.hosts,
        "completions": slice_.hosts,
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    if not spot:  # there a peer of what was taken away may end like one that fails
        template["podFailurePolicy"] = {"rules": [rule]}
    failed = {"name": "failed", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    spec = {
        "failurePolicy": {"maxRestarts": restarts, "rules": [failed]},
        "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": template}}],
    }
    metadata = {"name": name, "labels": labels | ({"kueue.x-k8s.io/queue-name": queue} if queue else {})}
    if slice_.hosts > 1:  # then a slice is one node pool, and one job's
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    objects.append({"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec})
    return objects


def queues(queue: str, slice_: Slice, *, namespace: str, slices: int = 1) -> list[dict[str, Any]]:
    """Makes what Kueue needs for a queue of one kind of slice: a flavor, a cluster's queue and a local one."""
    api = "kueue.x-k8s.io/v1beta2"
    flavor = slice_.accelerator
    quota = {"name": "google.com/tpu", "nominalQuota": slice_.chips * slices}
    group = {"coveredResources": ["google.com/tpu"], "flavors": [{"name": flavor, "resources": [quota]}]}
    return [
        {
            "apiVersion": api,
            "kind": "ResourceFlavor",
            "metadata": {"name": flavor},
            "spec": {"nodeLabels": _labels(slice_)},
        },
        {
            "apiVersion": api,
            "kind": "ClusterQueue",
            "metadata": {"name": queue},
            "spec": {"namespaceSelector": {}, "resourceGroups": [group]},
        },
        {
            "apiVersion": api,
            "kind": "LocalQueue",
            "metadata": {"name": queue, "namespace": namespace},
            "spec": {"clusterQueue": queue},
        },
    ]


def _labels(slice_: Slice) -> dict[str, str]:
    """What GKE writes on the nodes of a slice."""
    return {
        "cloud.google.com/gke-tpu-accelerator": slice_.node,
        "cloud.google.com/gke-tpu-topology": slice_.topology,
    }


def as_yaml(objects: list[dict[str, Any]]) -> str:
    """Writes the objects as YAML, escaped as YAML needs it."""
    return yaml.safe_dump_all(objects, sort_keys=False, width=120, allow_unicode=True).rstrip("\n")
