#!/usr/bin/env bash
# One run on Slurm: a Ray head on the first node of the allocation, workers on the others.
#   sbatch --nodes=4 --gpus-per-node=8 deploy/slurm.sh recipes/gsm8k.yaml run.dir=/shared/runs
# Ten minutes before the time is up, and at scancel --batch --signal=TERM, the run saves at the end of
# its step and stops; the same command goes on from there. With LEARNER_NODES=N the first N nodes offer
# themselves to learners and the others to rollouts (docs/cluster.md). Manta must be on the PATH of
# all nodes, which share the run directory and the home directory.
#SBATCH --job-name=manta
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@600
set -euo pipefail

[ "$#" -gt 0 ] || { echo "usage: sbatch deploy/slurm.sh RUN.yaml [KEY=VALUE ...]" >&2; exit 2; }
run_file=$1
port=${MANTA_PORT:-6379}
dashboard_port=${MANTA_DASHBOARD_PORT:-8265}
agent_port=${MANTA_AGENT_PORT:-52365}
learner_nodes=${LEARNER_NODES:-0}

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(getent ahostsv4 "$head" | awk 'NR == 1 {print $1}')
address=http://$head_ip:$dashboard_port

# The token lies in a file that only this user can read, not in anybody's environment. From the login
# node: RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=... manta runs list --address ... (both are printed).
folder=${MANTA_SLURM_FOLDER:-$HOME/.manta}/slurm-$SLURM_JOB_ID
(umask 077 && mkdir -p "$folder" && python3 -c 'import secrets; print(secrets.token_hex(32))' > "$folder/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token
unset RAY_AUTH_TOKEN
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-2000} RAY_USAGE_STATS_ENABLED=0

steps=()
end() {
  local code=$?
  trap - EXIT TERM INT
  for step in "${steps[@]}"; do kill -TERM "$step" 2> /dev/null || true; done
  for step in "${steps[@]}"; do wait "$step" 2> /dev/null || true; done
  rm -f "$folder/token"
  if [ "$code" -eq 0 ]; then
    rm -rf "$folder"
  else
    echo "exit code $code: the logs of ray start and of the submission stay in $folder" >&2
  fi
}
trap end EXIT

# What node number $1 offers by role.
roles() {
  if [ "$learner_nodes" -eq 0 ]; then
    echo '{}'
  elif [ "$1" -lt "$learner_nodes" ]; then
    echo '{"learner_node": 1, "environment_node": 1}'
  else
    echo '{"rollout_node": 1, "environment_node": 1}'
  fi
}

start() { # NODE, then the arguments of ray start
  local node=$1
  shift
  srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \
    ray start --block --num-cpus="${SLURM_CPUS_ON_NODE:-$(nproc)}" "$@" > "$folder/ray-$node.log" 2>&1 &
  steps+=("$!")
}

until_it_answers() { # PORT of the head, process that is to open it
  for _ in $(seq 120); do
    if (exec 3<> "/dev/tcp/$head_ip/$1") 2> /dev/null; then return; fi
    kill -0 "$2" 2> /dev/null || break
    sleep 0.5
  done
  echo "Ray's head did not start on $head:" >&2
  tail -n 20 "$folder/ray-$head.log" >&2
  exit 1
}

echo "head: $head, dashboard: $address, token: $folder/token"
start "$head" --head --node-ip-address="$head_ip" --port="$port" --dashboard-host="$head_ip" \
  --dashboard-port="$dashboard_port" --dashboard-agent-listen-port="$agent_port" \
  --resources="$(roles 0)"
until_it_answers "$port" "${steps[0]}"
for number in "${!nodes[@]}"; do
  [ "$number" -eq 0 ] && continue
  start "${nodes[$number]}" --address="$head_ip:$port" --dashboard-agent-listen-port=0 \
    --resources="$(roles "$number")"
done
until_it_answers "$dashboard_port" "${steps[0]}"

# A run asks for its resources at once, so every node must be there.
python3 - "$head_ip:$port" "${#nodes[@]}" <<'WAIT'
import sys
import time

import ray

address, wanted = sys.argv[1], int(sys.argv[2])
ray.init(address, log_to_driver=False, logging_level="ERROR")
deadline = time.monotonic() + 300
while (there := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > deadline:
        sys.exit(f"{there} of {wanted} nodes have joined after 300 s: see the logs of ray start")
    time.sleep(0.5)
WAIT

stop() {
  echo "SIGTERM (the time is up, or scancel): saving at the end of the step"
  manta runs stop "$(sed -n 's/^submitted \([^ ]*\) .*/\1/p' "$folder/submit.log" | head -n 1)" \
    --address "$address" || true
}
trap stop TERM INT

manta submit "$@" --address "$address" --working-dir "${SLURM_SUBMIT_DIR:-.}" --wait \
  > >(tee "$folder/submit.log") 2>&1 &
submitted=$!
code=0
while true; do
  wait "$submitted" && code=0 || code=$?
  # A signal ends the wait, not the run
  kill -0 "$submitted" 2> /dev/null || break
done
exit "$code"
