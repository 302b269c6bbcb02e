"""What Kubernetes takes, as far as a launch uses it: compact schemas of objects in which no other field may be.

Written from the definitions of JobSet (jobset.x-k8s.io_jobsets.yaml, v1alpha2) and of Kueue
(kueue.x-k8s.io_{clusterqueues,localqueues,resourceflavors}.yaml, v1beta2), with which `test_gke` compares them.
"""


def closed(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def listed(items):
    return {"type": "array", "items": items, "minItems": 1}


TEXT, NUMBER, YES = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
LABEL = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}
METADATA = closed(["name"], name=LABEL, namespace=LABEL, labels=TEXTS, annotations=TEXTS)
TPUS = closed(["google.com/tpu"], **{"google.com/tpu": NUMBER})

CONTAINER = closed(
    ["name"],
    name=LABEL,
    image=TEXT,
    command=listed(TEXT),
    workingDir=TEXT,
    ports=listed(closed(["containerPort"], containerPort=NUMBER)),
    resources=closed(limits=TPUS, requests=TPUS),
    volumeMounts=listed(closed(["name", "mountPath"], name=TEXT, mountPath=TEXT, subPath=TEXT, readOnly=YES)),
)
ITEM = closed(["key", "path"], key=TEXT, path=TEXT)
POD = closed(
    ["containers"],
    restartPolicy={"type": "string", "enum": ["Never"]},  # podFailurePolicy takes no other
    terminationGracePeriodSeconds=NUMBER,
    nodeSelector=TEXTS,
    tolerations=listed(closed(key=TEXT, operator={"enum": ["Equal"]} | TEXT, value=TEXT, effect=TEXT)),
    serviceAccountName=TEXT,
    containers=listed(CONTAINER),
    volumes=listed(
        closed(
            ["name"], name=TEXT, configMap=closed(name=TEXT, items=listed(closed(["key", "path"], key=TEXT, path=TEXT)))
        )
    ),
)
EXIT_CODES = closed(
    ["operator", "values"], containerName=TEXT, operator={"enum": ["In", "NotIn"]} | TEXT, values=listed(NUMBER)
)
ACTIONS = {"enum": ["FailJob", "FailIndex", "Ignore", "Count"]} | TEXT
JOB = closed(
    ["template"],
    backoffLimit=NUMBER,
    completionMode={"enum": ["Indexed", "NonIndexed"]} | TEXT,
    parallelism=NUMBER,
    completions=NUMBER,
    podFailurePolicy=closed(["rules"], rules=listed(closed(["action"], action=ACTIONS, onExitCodes=EXIT_CODES))),
    template=closed(metadata=closed(labels=TEXTS), spec=POD),
)
RULE = closed(
    ["action", "name"],
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
    action={"enum": ["FailJobSet", "RestartJobSet"]} | TEXT,
    onJobFailureReasons=listed({"enum": ["BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"]} | TEXT),
)
REPLICATED = closed(["name", "template"], name=LABEL, replicas=NUMBER, template=closed(spec=JOB))
JOBSET = closed(failurePolicy=closed(maxRestarts=NUMBER, rules=listed(RULE)), replicatedJobs=listed(REPLICATED))
FLAVOR = closed(nodeLabels=TEXTS)
RESOURCE = closed(["name", "nominalQuota"], name=TEXT, nominalQuota=NUMBER)
FLAVORS = listed(closed(["name", "resources"], name=LABEL, resources=listed(RESOURCE)))
CLUSTER_QUEUE = closed(
    namespaceSelector={"type": "object", "maxProperties": 0},
    resourceGroups=listed(closed(["coveredResources", "flavors"], coveredResources=listed(TEXT), flavors=FLAVORS)),
)


def of(version, kind, **rest):
    head = {"apiVersion": {"enum": [version]} | TEXT, "kind": {"enum": [kind]} | TEXT, "metadata": METADATA}
    return closed([*head, *rest], **head, **rest)


SCHEMAS = {
    "ConfigMap": of("v1", "ConfigMap", data=TEXTS),
    "JobSet": of("jobset.x-k8s.io/v1alpha2", "JobSet", spec=JOBSET),
    "ResourceFlavor": of("kueue.x-k8s.io/v1beta2", "ResourceFlavor", spec=FLAVOR),
    "ClusterQueue": of("kueue.x-k8s.io/v1beta2", "ClusterQueue", spec=CLUSTER_QUEUE),
    "LocalQueue": of("kueue.x-k8s.io/v1beta2", "LocalQueue", spec=closed(clusterQueue=LABEL)),
}
