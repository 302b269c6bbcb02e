#!/usr/bin/env bash
# What one host does: `job.sh install`, `start`, `run`, `status`, `forget`. Written by experiments.launch.
set -euo pipefail
cd "$(dirname "$0")"
#VALUES#

case ${1:-} in
  install)
    [ ! -e installed ] || exit 0
    # The runtime's Ubuntu 22.04 has Python 3.10; uv brings a newer one. https://docs.astral.sh/uv/guides/install-python
    python3 -m pip install --quiet --user uv
    rm -rf venv source
    python3 -m uv venv --quiet --python=3.12 venv
    mkdir source
    tar -xzf source.tgz -C source
    python3 -m uv pip install --quiet --python=venv/bin/python "./source[$extra]" "${packages[@]}"
    [ ! -e files.tgz ] || tar -xzf files.tgz
    touch installed
    ;;
  start) # whoever is logged out, it goes on
    [ ! -e pid ] || exit 0
    setsid nohup bash job.sh run >> log 2>&1 < /dev/null &
    echo $! > pid
    ;;
  run)
    code=0
    "$PWD/venv/bin/python" -m "${command[@]}" || code=$?
    echo "$code" > code.new
    mv code.new code
    ;;
  status)
    if [ -e code ]; then
      echo "job: $(cat code)"
    elif [ ! -e pid ]; then
      echo "job: none"
    elif kill -0 "$(cat pid)" 2> /dev/null; then
      echo "job: running"
    else # the host was started again, say, after maintenance
      echo "job: lost"
    fi
    ;;
  forget) rm -f pid code ;;
  *)
    echo "job.sh: give install, start, run, status or forget" >&2
    exit 2
    ;;
esac
