#!/usr/bin/env bash
# One command on every host of a TPU VM slice: asks for the slice as a queued resource, waits, installs, runs, collects and
# deletes. The results are in the object store, so a slice that is taken away is asked for again and the command goes on;
# so does this script, run a second time. Its exit status is that of the command. Written by experiments.launch.
#
# https://docs.cloud.google.com/tpu/docs/queued-resources, https://docs.cloud.google.com/tpu/docs/spot
set -euo pipefail
#VALUES#

at=("--zone=$zone")
[ -z "$project" ] || at+=("--project=$project")
wait=${LAUNCH_WAIT:-30} # seconds between two looks
here=$(mktemp -d)
ours=0     # whether the queued resource is this command's
attached=0 # whether it was there before this script
looks=0    # since it was asked for

say() { echo "$(date +%H:%M:%S) $*" >&2; }

# The state of the queued resource; nothing where there is none.
state() {
  gcloud compute tpus queued-resources list "${at[@]}" --format='value(name.basename(),state.state)' |
    awk -v name="$name" '$1 == name { print $2 }'
}

# A mark that says whose it is: two launches of one name do not share a slice.
marked() {
  local found
  found=$(gcloud compute tpus queued-resources describe "$name" "${at[@]}" \
    --format='value(tpu.nodeSpec[0].node.labels.massive-jax-launch)')
  [ "$found" = "$mark" ]
}

on_all() { gcloud compute tpus tpu-vm ssh "$name" "${at[@]}" --worker=all --quiet --command="$1"; }

create() {
  gcloud compute tpus queued-resources create "$name" "${at[@]}" --node-id="$name" \
    --accelerator-type="$accelerator" --runtime-version="$runtime" --labels="massive-jax-launch=$mark" \
    "${options[@]}" --async --quiet
}

remove() { gcloud compute tpus queued-resources delete "$name" "${at[@]}" --force --quiet; }

collect() {
  mkdir -p "$logs"
  # shellcheck disable=SC2016  # the host's own name
  on_all 'sed "s/^/$HOSTNAME: /" massive_jax_job/log' > "$logs/$name.log" 2> "$here/ssh" || say "not all logs were there"
  tail -n 30 "$logs/$name.log" >&2
  say "what all hosts said: $logs/$name.log"
}

finish() {
  local code=$?
  set +e
  trap - EXIT
  trap '' INT TERM HUP
  if [ "$ours" = 1 ]; then
    [ "$(state || true)" != ACTIVE ] || collect || true
    if [ -n "$results" ]; then
      mkdir -p "$results"
      gcloud storage rsync "$workdir" "$results" --recursive || say "no results could be fetched from $workdir"
    fi
    if [ "$(state || echo UNKNOWN)" = "" ]; then
      say "nothing to delete"
    elif [ "$keep" = 1 ]; then
      say "kept: gcloud compute tpus queued-resources delete $name ${at[*]} --force"
    else
      remove || say "NOT DELETED: gcloud compute tpus queued-resources delete $name ${at[*]} --force"
    fi
  fi
  rm -rf "$here"
  exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

send() {
  tar -C "$source" --exclude=__pycache__ -czf "$here/source.tgz" -- "${parts[@]}" &&
    { [ "${#files[@]}" = 0 ] || tar -C "$from" -czf "$here/files.tgz" -- "${files[@]}"; } &&
    on_all "mkdir -p massive_jax_job" &&
    gcloud compute tpus tpu-vm scp "$here/job.sh" "$here"/*.tgz "$name:massive_jax_job/" "${at[@]}" --worker=all --quiet &&
    on_all "bash massive_jax_job/job.sh install"
}
cat > "$here/job.sh" << 'JOB'
#JOB#
JOB

# What the hosts say, a word each: running, none, lost, or an exit status.
statuses() { on_all "bash massive_jax_job/job.sh status 2> /dev/null || echo job: none" 2> "$here/ssh" |
  sed -n 's/^job: //p'; }

again() { # after an interruption; not for ever
  restarts=$((restarts - 1))
  if [ "$restarts" -lt 0 ]; then
    say "interrupted too often (--restarts)"
    exit 1
  fi
}

state > "$here/list" # here, so that one who is not logged in is told so
say "job $name on $accelerator ($hosts hosts) in $zone"
before=
while :; do
  now=$(state) || now=UNKNOWN
  [ "$now" = "$before" ] || say "queued resource: ${now:-none}"
  before=$now
  if [ -n "$now" ] && [ "$now" != UNKNOWN ] && [ "$ours" = 0 ]; then
    if ! marked; then
      say "there is a queued resource $name for something else; give another --name, or delete it"
      exit 1
    fi
    ours=1
    attached=1
  fi
  case $now in
    '')
      if [ "$looks" = 0 ]; then
        ours=1
        create
      elif [ "$looks" -gt 20 ]; then
        say "it is gone: somebody deleted it"
        exit 1
      fi
      looks=$((looks + 1))
      ;;
    FAILED)
      gcloud compute tpus queued-resources describe "$name" "${at[@]}" >&2 || true
      say "the request failed: no capacity or quota, or a wrong zone for $accelerator"
      exit 1
      ;;
    SUSPENDED) # preempted
      again
      remove
      looks=0
      continue
      ;;
    ACTIVE)
      found=$(statuses) || found=
      count=$(grep -c . <<< "$found" || true)
      if [ "$count" -lt "$hosts" ]; then
        say "no answer from all hosts yet"
      elif [ "$attached" = 1 ] && ! grep -qx running <<< "$found"; then
        attached=0 # it has ended, well or not: it is installed and started again, and goes on with what is missing
        on_all "cd massive_jax_job 2> /dev/null && bash job.sh forget && rm -f installed || true"
        continue
      elif grep -qx none <<< "$found"; then
        say "installs and starts"
        if send; then
          on_all "bash massive_jax_job/job.sh start" || true # whether it runs is seen below
        else
          say "not installed"
          again
        fi
      elif grep -qx running <<< "$found"; then
        [ ! -t 2 ] || printf . >&2
      elif ! grep -qvx 0 <<< "$found"; then
        say "done"
        exit 0
      elif ! grep -qxE '143|137|lost' <<< "$found" && code=$(grep -vxE '0|134' <<< "$found" | head -n 1); then
        sleep "$wait"
        if [ "$(state || true)" != ACTIVE ]; then continue; fi # it lost a peer with a slice that is taken away
        say "failed with status $code"
        exit "$code"
      else # terminated (143), killed (137), or a peer was (134): the slice is being taken away, or goes on
        say "interrupted: $(sort -u <<< "$found" | tr '\n' ' ')"
        again
        sleep "$wait"
        [ "$(state || true)" != ACTIVE ] || on_all "bash massive_jax_job/job.sh forget" || true
        continue
      fi
      ;;
  esac
  sleep "$wait"
done
