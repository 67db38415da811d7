#!/bin/bash
# A sweep of 12 trials, end to end, on each engine and each shared storage that this machine has; one line for each.
#
#   benchmarks/cluster.sh [ENGINE...]        of: local slurm array ray postgresql journal grpc; without any, all
#
# slurm, array: a SLURM that answers. For a job that was killed its launcher asks sacct, so SLURM must keep accounts.
# ray: starts one in a network namespace (unshare -n, as root). postgresql: starts one on loopback, with initdb.
# Must hold: 12 trials, two workers, each trial once, exit status 0, and no engine waits for ever.
set -uo pipefail
python="${PYTHON:-python}"
trials=12
scratch="$(mktemp -d)"
script="$(cd "$(dirname "$0")/.." && pwd)/examples/sweep_slurm.sh"
sweep=(+codec=nnc +sweep=nnc hydra.sweeper.study_name=s "hydra.sweeper.n_trials=$trials" hydra.sweeper.report=false)
trap 'rm -rf "$scratch"' EXIT

told() { # NAME STATUS SECONDS URL: what the study holds
  "$python" - "$@" <<'PY'
import sys
from tracker.sweep.alive import OWNER
from tracker.sweep.storage import Storage
import optuna
name, status, seconds, url = sys.argv[1:]
try:
    trials = optuna.load_study(study_name="s", storage=Storage(url).backend).trials
except Exception as error:
    sys.exit(f"{name}: status {status} after {seconds} s, no study ({error})")
owners = [trial.system_attrs.get(OWNER, {}) for trial in trials]
workers = len({owner.get("pid") for owner in owners})
nodes = sorted({owner["SLURMD_NODENAME"] for owner in owners if "SLURMD_NODENAME" in owner})
ended = sum(trial.state.name in ("COMPLETE", "PRUNED") for trial in trials)
where = f" on {', '.join(nodes)}" if nodes else ""
print(f"{name}: {ended} of {len(trials)} trials by {workers} workers{where}, status {status}, {seconds} s", flush=True)
PY
}

measure() { # NAME URL COMMAND...: run it in a folder of its own
  local name="$1" url="$2" began=$SECONDS
  shift 2
  mkdir -p "$scratch/$name"
  (cd "$scratch/$name" && timeout 600 "$@" >>out.txt 2>&1)
  local status=$?
  told "$name" $status $((SECONDS - began)) "${url:-sqlite:///$scratch/$name/mlruns/optuna.db}"
  [ $status = 0 ] || tail -n 5 "$scratch/$name/out.txt"
}

joined() { # URL: two commands on one study
  local words=("${sweep[@]}" hydra.sweeper.threads=1 "hydra.sweeper.storage=$1") status=0
  "$python" -m tracker -m "${words[@]}" & local first=$!
  "$python" -m tracker -m "${words[@]}" || status=$?
  wait $first || status=$?
  return $status
}
export -f joined
export python

run_postgresql() {
  local tools as=()
  tools="$(dirname "$(readlink -f "$(command -v initdb || ls /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -1)")")"
  [ -x "$tools/initdb" ] || { echo "postgresql: there is no initdb"; return; }
  mkdir "$scratch/pg"
  chmod 755 "$scratch"
  [ "$(id -u)" = 0 ] && as=(setpriv --reuid=postgres --regid=postgres --clear-groups) && chown postgres "$scratch/pg"
  local data="$scratch/pg/data" port=$((20000 + RANDOM % 20000))
  (cd "$scratch/pg" && "${as[@]}" "$tools/initdb" -D "$data" -U tracker -A trust &&
    "${as[@]}" "$tools/pg_ctl" -D "$data" -w -l "$scratch/pg/log" -o "-h 127.0.0.1 -p $port -k $scratch/pg" start) \
    >/dev/null || return
  measure_joined postgresql "postgresql://tracker@127.0.0.1:$port/postgres"
  (cd "$scratch/pg" && "${as[@]}" "$tools/pg_ctl" -D "$data" -m fast -w stop >/dev/null)
}

run_grpc() {
  local port=$((20000 + RANDOM % 20000))
  "$python" -W ignore -c "import optuna
optuna.storages.run_grpc_proxy_server(
    optuna.storages.RDBStorage('sqlite:///$scratch/behind.db'), host='127.0.0.1', port=$port)" >/dev/null 2>&1 &
  local server=$!
  measure_joined grpc "grpc://127.0.0.1:$port"
  kill $server
}

measure_joined() { # NAME URL
  local words
  words="$(printf '%q ' "${sweep[@]}")"
  measure "$1" "$2" bash -c "sweep=($words); joined '$2'"
}

[ $# = 0 ] && set -- local slurm array ray postgresql journal grpc
for engine; do
  case "$engine" in
    local) measure local "" "$python" -m tracker -m "${sweep[@]}" +cluster=local ;;
    slurm) measure slurm "" "$python" -m tracker -m "${sweep[@]}" +cluster=slurm \
      "+hydra.launcher.additional_parameters={exclusive: true}" ;;
    array) measure array "" env PYTHON="$python" sbatch --wait --exclusive --array=1-2 "$script" "${sweep[@]}" ;;
    ray) measure ray "" env HOME="$scratch" RAY_TMPDIR="$scratch" unshare -n \
      sh -c 'ip link set lo up && exec "$@"' sh "$python" -m tracker -m "${sweep[@]}" +cluster=ray ;;
    postgresql) run_postgresql ;;
    journal) measure_joined journal "journal://$scratch/study.log" ;;
    grpc) run_grpc ;;
    *) echo "$engine is none of: local slurm array ray postgresql journal grpc"; exit 2 ;;
  esac
done
