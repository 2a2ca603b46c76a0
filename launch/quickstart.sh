#!/usr/bin/env bash
# A small English LLaMA learns Chinese, with and without replay, and shows what it forgot.
#
#   bash launch/quickstart.sh [--out DIR] [--nproc N] [--fast] [--english DIR] [--chinese DIR]
#
# --out DIR       where everything goes (default: quickstart)
# --nproc N       ranks (default: 2)
# --fast          half the training budget
# --english DIR, --chinese DIR   your own text (folders of .txt or .jsonl files) in place of the downloaded one
#
# Run it again after an interruption: what is done is not done again.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=quickstart
nproc=2
scale=1
texts=()

while (($#)); do
    case $1 in
        --out) out=${2:?--out needs a folder}; shift 2 ;;
        --nproc) nproc=${2:?--nproc needs a number}; shift 2 ;;
        --fast) scale=0.5; shift ;;
        --english | --chinese) texts+=("$1" "$(realpath "${2:?$1 needs a folder}")"); shift 2 ;;
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) printf 'quickstart: unknown option %s; see --help\n' "$1" >&2; exit 2 ;;
    esac
done
[[ $nproc =~ ^(1|2|4|8|16)$ ]] || { printf 'quickstart: --nproc %s: take 1, 2, 4, 8 or 16\n' "$nproc" >&2; exit 2; }
mkdir -p "$out"
out=$(cd "$out" && pwd)

step=0
headline() { step=$((step + 1)); printf '\n[%d/9] %s\n' "$step" "$*"; }

headline "environment"
bash "$root/launch/setup.sh"
export PATH=$root/.venv/bin:$PATH
cd "$root"
if ! nvidia-smi >/dev/null 2>&1; then
    export DS_ACCELERATOR=cpu
fi
threads=$(($(nproc) / nproc))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1)) TOKENIZERS_PARALLELISM=false
quiet=(--log_level error)

headline "real text"
python launch/texts.py --out "$out" ${texts[@]+"${texts[@]}"}
text=$out/text

headline "vocabulary: English, Chinese, English extended with Chinese"
tokenizers=$out/tokenizers
[[ -d $tokenizers/english ]] || rewarm vocab train --input "$text/english-train.jsonl" --size 4096 --out "$tokenizers/english"
[[ -d $tokenizers/chinese ]] || rewarm vocab train --input "$text/chinese-train.jsonl" --size 3072 --out "$tokenizers/chinese"
[[ -d $tokenizers/extended ]] || rewarm vocab extend --base "$tokenizers/english" --add "$tokenizers/chinese" --out "$tokenizers/extended"
rewarm vocab report --tokenizer "$tokenizers/extended" --against "$tokenizers/english" \
    --text "$text/english-validation.jsonl" "$text/chinese-validation.jsonl"

headline "token shards for both tokenizers"
for pair in base:english extended:extended; do
    for corpus in english-train english-validation chinese-train chinese-validation; do
        prefix=$out/data/${pair%:*}/$corpus
        [[ -e $prefix.json ]] || rewarm data prepare --input "$text/$corpus.jsonl" --tokenizer "$tokenizers/${pair#*:}" --out "$prefix"
    done
done

# Trains a recipe on all ranks; every later argument overrides a field of it.
train() {
    deepspeed "${quiet[@]}" --num_accelerators "$nproc" launch/train.py "$@"
}
tokens() { python -c "import sys; print(round($1 * $scale))"; }

headline "the English base, from random weights (98 % English, 2 % Chinese)"
base=(launch/recipes/quickstart-base.yaml "run_dir=$out/base" "model.tokenizer=$tokenizers/english"
    "sources.english.path=$out/data/base/english-train" "sources.chinese.path=$out/data/base/chinese-train"
    "validation.upstream=$out/data/base/english-validation" "validation.downstream=$out/data/base/chinese-validation"
    "phases.0.tokens=$(tokens 1.6e6)")
train "${base[@]}"
[[ -d $out/models/base ]] || rewarm export "$out/base" --out "$out/models/base" --dtype fp32
[[ -d $out/models/extended ]] || rewarm model extend --base "$out/models/base" --tokenizer "$tokenizers/extended" \
    --out "$out/models/extended" --text "$text/english-validation.jsonl" "$text/chinese-validation.jsonl"

headline "continued pretraining on Chinese, without replay and with 25 % English"
budget=$(tokens 6e5)
# The overrides of one arm, in `arm`.
arm_of() {
    arm=(launch/recipes/quickstart.yaml "name=quickstart-replay-$1" "run_dir=$out/replay-$1"
        "model.tokenizer=$tokenizers/extended" "model.base=$out/models/extended"
        "sources.english.path=$out/data/extended/english-train" "sources.chinese.path=$out/data/extended/chinese-train"
        "validation.upstream=$out/data/extended/english-validation"
        "validation.downstream=$out/data/extended/chinese-validation"
        "phases.0.mixture.replay_ratio=$1%" "phases.0.tokens=$budget" "allow=[no_replay]")
}
arm_of 0
train "${arm[@]}"

headline "the second arm is killed half-way and started again with the same command"
arm_of 25
python launch/kill_halfway.py --run "$out/replay-25" --tokens "$((budget / 2))" -- \
    deepspeed "${quiet[@]}" --num_accelerators "$nproc" launch/train.py "${arm[@]}"
train "${arm[@]}"
python launch/done_twice.py "$out/replay-25"

headline "export to Hugging Face, loaded and compared"
[[ -d $out/models/replay-25 ]] || rewarm export "$out/replay-25" --out "$out/models/replay-25" --dtype fp32
python launch/try_export.py --run "$out/replay-25" --model "$out/models/replay-25" --prompt "中华人民共和国"

headline "what was learnt, and what was forgotten"
rewarm report "$out/base" "$out/replay-0" "$out/replay-25" --out "$out/report.html"
