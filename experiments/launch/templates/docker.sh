#!/usr/bin/env bash
# One command in a container on this machine, on all its chips. Written by experiments.launch.
set -euo pipefail
#VALUES#

if [ "$build" = 1 ]; then
  docker build --file="$source/experiments/launch/Dockerfile" --build-arg="EXTRA=$extra" --tag="$image" "$source"
fi
exec docker run --rm --name="$name" "${options[@]}" --volume="$from:$folder" --workdir="$folder" "$image" -m "${command[@]}"
