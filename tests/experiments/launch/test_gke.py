"""The objects of Kubernetes are of its forms, and ask for what a slice has."""

import os
import pathlib

import jsonschema
import pytest
import yaml

from experiments.launch import gke
from experiments.launch.command import FOLDER, Command
from experiments.launch.slices import Slice
from tests.experiments.launch.conftest import NASTY
from tests.experiments.launch.schemas import SCHEMAS

COMMAND = Command("experiments.layerwise", (f"--prompt={NASTY}", "--distributed"), {})


def objects(accelerator="v5litepod-16", **more):
    options = {"image": "a/b:1", "mark": "0123abcd", "restarts": 3, "queue": "tpus", "spot": True} | more
    return gke.job("job", COMMAND, Slice.parse(accelerator), **options)


EVERYTHING = objects(service_account="ksa", files={"sweeps/a.yaml": f"models: [{NASTY!r}]\n"})
EVERYTHING += objects(spot=False, queue=None)
EVERYTHING += gke.queues("tpus", Slice.parse("v5p-16"), namespace="default")


@pytest.mark.parametrize("thing", EVERYTHING, ids=lambda thing: thing["kind"])
def test_every_field_is_one_that_kubernetes_has(thing):
    jsonschema.validate(thing, SCHEMAS[thing["kind"]])


def test_yaml_gives_back_what_went_in():
    assert list(yaml.safe_load_all(gke.as_yaml(EVERYTHING))) == EVERYTHING


@pytest.mark.parametrize(
    ("accelerator", "kind", "topology", "hosts", "chips"),
    [
        ("v5litepod-16", "tpu-v5-lite-podslice", "4x4", 4, 4),
        ("v5e-8", "tpu-v5-lite-podslice", "2x4", 1, 8),
        ("v5p-16", "tpu-v5p-slice", "2x2x2", 2, 4),
        ("v6e-256", "tpu-v6e-slice", "16x16", 64, 4),
        ("v4-8", "tpu-v4-podslice", "2x2x1", 1, 4),
    ],
)
def test_a_pod_a_host(accelerator, kind, topology, hosts, chips):
    jobset = objects(accelerator)[-1]
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    pod = job["template"]["spec"]
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == kind
    assert selector["cloud.google.com/gke-tpu-topology"] == topology
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": chips}
    assert ("annotations" in jobset["metadata"]) == (hosts > 1)


def test_a_failure_ends_the_job_where_no_peer_may_be_taken_away():
    assert "podFailurePolicy" not in str(objects()[-1]["spec"]["replicatedJobs"])
    assert "'values': [134, 137, 143]" in str(objects(spot=False)[-1]["spec"]["replicatedJobs"])


def test_files_are_where_the_command_looks():
    config, jobset = objects(files={"sweeps/a.yaml": "x", "b.txt": "y"})
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (volume,) = pod["volumes"]
    paths = {item["path"]: config["data"][item["key"]] for item in volume["configMap"]["items"]}
    assert paths == {"sweeps/a.yaml": "x", "b.txt": "y"}
    (container,) = pod["containers"]
    assert container["workingDir"] == FOLDER
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [f"{FOLDER}/sweeps/a.yaml", f"{FOLDER}/b.txt"]


def strict(schema):
    """A definition's schema in which no field may be that it does not name."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(part) for key, part in schema.items() if key not in ("format", "nullable")}
    if isinstance(found.get("properties"), dict) and not found.get("x-kubernetes-preserve-unknown-fields"):
        found["additionalProperties"] = False
    if found.pop("x-kubernetes-int-or-string", False):
        found["type"] = ["integer", "string"]
        found.pop("anyOf", None)
        found.pop("pattern", None)
    return found


@pytest.mark.slow
def test_every_field_is_in_the_definitions():
    """With the CRDs of JobSet and Kueue in a folder: MASSIVE_JAX_CRDS=FOLDER pytest -m slow -k definitions."""
    folder = os.environ.get("MASSIVE_JAX_CRDS")
    if folder is None:
        pytest.skip("MASSIVE_JAX_CRDS names no folder with the definitions")
    schemas = {}
    for path in pathlib.Path(folder).glob("*.yaml"):
        definition = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
        for version in definition["versions"]:
            api = f"{definition['group']}/{version['name']}"
            assert version["served"], api
            schemas[api, definition["names"]["kind"]] = version["schema"]["openAPIV3Schema"]
    checked = 0
    for thing in EVERYTHING:
        if thing["kind"] != "ConfigMap":
            schema = strict(schemas[thing["apiVersion"], thing["kind"]])
            schema["properties"]["metadata"] = {"type": "object"}
            jsonschema.validate(thing, schema)
            checked += 1
    assert checked == 5
