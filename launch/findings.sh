#!/usr/bin/env bash
# All studies on the quickstart's text, and a page with the verdicts as they fall.
#
#   bash launch/findings.sh [--out DIR] [--page FILE] [--seeds N] [--tokens N] [--parallel N]
#
# --out DIR      the quickstart's folder (default: runs/quickstart); its base is trained if it is not there
# --page FILE    what is written (default: docs/findings.md)
# --seeds N      seeds of every arm (default: 3)
# --tokens N     tokens of every arm (default: 92160)
# --parallel N   arms trained at a time, each on one rank (default: 2)
#
# 120 arms with three seeds: under an hour on 2 CPU cores. Run it again after an interruption: what is finished is
# not trained again.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=runs/quickstart
page=docs/findings.md
seeds=3
tokens=92160
parallel=2

while (($#)); do
    case $1 in
        --out) out=${2:?--out needs a folder}; shift 2 ;;
        --page) page=${2:?--page needs a file}; shift 2 ;;
        --seeds) seeds=${2:?--seeds needs a number}; shift 2 ;;
        --tokens) tokens=${2:?--tokens needs a number}; shift 2 ;;
        --parallel) parallel=${2:?--parallel needs a number}; shift 2 ;;
        -h | --help) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) printf 'findings: unknown option %s; see --help\n' "$1" >&2; exit 2 ;;
    esac
done
[[ $out != *[[:space:]]* ]] || { printf 'findings: --out %s: give a path without spaces\n' "$out" >&2; exit 2; }
[[ $tokens =~ ^[0-9]+$ ]] && ((tokens >= 10240)) ||
    { printf 'findings: --tokens %s: give a whole number of at least 10240\n' "$tokens" >&2; exit 2; }
page=$(realpath -m "$page")
mkdir -p "$out" && out=$(cd "$out" && pwd)
started=$SECONDS

[[ -d $out/models/base-extended ]] || bash "$root/launch/quickstart.sh" --out "$out" --until-base
cd "$root"
export PATH=$root/.venv/bin:$PATH TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$root/.venv/torch_extensions}
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

studies=$out/findings
mkdir -p "$studies"
for name in quickstart quickstart-unextended; do
    sed "s#runs/quickstart#$out#g" "launch/recipes/$name.yaml" >"$studies/$name.yaml"
done
every=$((tokens / 10240 * 1024))
fields=(global_batch_size=4 "phases.0.tokens=$tokens" "checkpoint.every_tokens=$tokens"
    "validation.every_tokens=$every" validation.max_tokens=4096 logging.tensorboard=false)

# All arms of the study $1, with the options after it.
study() {
    local name=$1
    shift
    printf '\n%s\n' "study $name"
    rewarm study "$name" --recipe "$studies/quickstart.yaml" --out "$studies/$name" --nproc 1 \
        --seeds "$seeds" --parallel "$parallel" "$@" "${fields[@]}"
}
names=(replay max_lr warmup schedule same_data restore new_rows merge self_replay)
for name in "${names[@]}"; do
    if [[ $name == new_rows ]]; then
        study "$name" --unextended "$studies/quickstart-unextended.yaml"
    else
        study "$name"
    fi
done

# Processor time tells more than the clock where other work shares the machine.
times >"$studies/times" # not in a pipe: a subshell has times of its own
processor=$(awk 'NR == 2 { gsub(/[ms]/, " "); print int($1 + $3 + ($2 + $4) / 60 + 1) }' "$studies/times")
python launch/quickstart/findings.py --page "$page" --minutes "$(((SECONDS - started + 59) / 60))" \
    --processor-minutes "$processor" "${names[@]/#/$studies/}"
