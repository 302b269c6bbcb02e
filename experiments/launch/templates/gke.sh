#!/usr/bin/env bash
# One command on every host of a TPU slice of a GKE cluster, as a JobSet: applies it, waits, shows the logs, collects and
# deletes. JobSet starts all pods again after an interruption, and the command goes on from its object store. The exit
# status is that of the command. Written by experiments.launch.
set -euo pipefail
#VALUES#

wait=${LAUNCH_WAIT:-15} # seconds between two looks
ours=0
[ -z "$cluster" ] || gcloud container clusters get-credentials "$cluster" "${at[@]}"

say() { echo "$(date +%H:%M:%S) $*" >&2; }
kube() { kubectl --namespace="$namespace" "$@"; }
pods=("--selector=jobset.sigs.k8s.io/jobset-name=$name")

finish() {
  local code=$?
  set +e
  trap - EXIT
  trap '' INT TERM HUP
  if [ "$ours" = 1 ]; then
    mkdir -p "$logs"
    kube logs "${pods[@]}" --tail=-1 --prefix > "$logs/$name.log" || true
    tail -n 30 "$logs/$name.log" >&2
    if [ -n "$results" ]; then
      mkdir -p "$results"
      gcloud storage rsync "$workdir" "$results" --recursive || say "no results could be fetched from $workdir"
    fi
    if [ "$keep" = 1 ]; then
      say "kept: kubectl --namespace=$namespace delete jobset/$name"
    else
      manifest | kube delete --ignore-not-found -f - >&2 || say "NOT DELETED: kubectl delete jobset/$name"
    fi
  fi
  exit "$code"
}

manifest() {
  cat << 'YAML'
#MANIFEST#
YAML
}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# A mark that says whose it is: two launches of one name do not share a JobSet.
found=$(kube get jobset "$name" --ignore-not-found -o 'jsonpath={.metadata.labels.massive-jax-launch}')
there=$(kube get jobset "$name" --ignore-not-found -o name)
if [ -z "$there" ]; then
  ours=1
  manifest | kube apply -f - >&2
elif [ "$found" = "$mark" ]; then
  ours=1
  say "goes on with the JobSet $name that is there"
  if [ -n "$(kube get jobset "$name" -o 'jsonpath={.status.terminalState}')" ]; then # ended: what is missing runs now
    manifest | kube delete -f - >&2
    manifest | kube apply -f - >&2
  fi
else
  say "there is a JobSet $name for something else; give another --name, or delete it"
  exit 1
fi

say "job $name: $hosts pods in $namespace"
before=
while :; do
  # Completed or Failed at the end. https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2
  now=$(kube get jobset "$name" -o 'jsonpath={.status.terminalState} {.status.restarts} {.spec.suspend}') || now=
  [ "$now" = "$before" ] || say "JobSet (state, restarts, waits for the queue): $now"
  before=$now
  case $now in
    Completed*) exit 0 ;;
    Failed*)
      codes=$(kube get pods "${pods[@]}" \
        -o 'jsonpath={range .items[*]}{.status.containerStatuses[0].state.terminated.exitCode}{"\n"}{end}') || codes=
      # The cause, not what it did to the others: 134 is a peer that lost one, 137 and 143 were ended.
      code=$(grep -xE '[0-9]+' <<< "$codes" | grep -vxE '0|134|137|143' | head -n 1) ||
        code=$(grep -xE '[1-9][0-9]*' <<< "$codes" | head -n 1) || code=1
      exit "$code"
      ;;
  esac
  sleep "$wait"
done
