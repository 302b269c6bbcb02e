#!/usr/bin/env bash
# Once for a GKE cluster: the nodes of one TPU slice, JobSet, Kueue, and a queue for such slices. Written by
# experiments.launch.
#
# https://docs.cloud.google.com/kubernetes-engine/docs/how-to/tpus
# https://docs.cloud.google.com/kubernetes-engine/docs/tutorials/tpu-multislice-kueue
set -euo pipefail
#VALUES#

gcloud container clusters get-credentials "$cluster" "${at[@]}"
gcloud container node-pools create "$pool" --cluster="$cluster" "${at[@]}" --machine-type="$machine" \
  --num-nodes="$hosts" "${options[@]}"
kubectl apply --server-side -f "https://github.com/kubernetes-sigs/jobset/releases/download/$jobset/manifests.yaml"
kubectl apply --server-side -f "https://github.com/kubernetes-sigs/kueue/releases/download/$kueue/manifests.yaml"
kubectl --namespace=jobset-system wait deployment --all --for=condition=Available --timeout=10m
kubectl --namespace=kueue-system wait deployment --all --for=condition=Available --timeout=10m
kubectl apply -f - << 'YAML'
#MANIFEST#
YAML
