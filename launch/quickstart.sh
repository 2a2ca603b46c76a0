#!/usr/bin/env bash
# A small English LLaMA learns Chinese, with and without replay, and shows what it forgot.
#
#   bash launch/quickstart.sh [--out DIR] [--nproc N] [--fast] [--until-base] [--english DIR] [--chinese DIR]
#
# --out DIR       where everything goes (default: runs/quickstart)
# --nproc N       ranks: 1, 2, 4 or 8 (default: 2, or 1 where there is one GPU)
# --fast          half the training budget; give it twice for a quarter
# --until-base    end with the base and its extended vocabulary, which launch/findings.sh goes on from
# --english DIR, --chinese DIR   your own text (folders of .txt or .jsonl files) in place of the downloaded one
#
# Run it again after an interruption: finished steps are not repeated.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=runs/quickstart
nproc=
shorter=1
until_base=
texts=()

while (($#)); do
    case $1 in
        --out) out=${2:?--out needs a folder}; shift 2 ;;
        --nproc) nproc=${2:?--nproc needs a number}; shift 2 ;;
        --fast) shorter=$((shorter * 2)); shift ;;
        --until-base) until_base=yes; shift ;;
        --english | --chinese) texts+=("$1" "$(realpath "${2:?$1 needs a folder}")"); shift 2 ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
        *) printf 'quickstart: unknown option %s; see --help\n' "$1" >&2; exit 2 ;;
    esac
done

# The GPUs that torch will see; 0 without a driver.
count_gpus() {
    if [[ ${DS_ACCELERATOR:-} == cpu ]] || ! nvidia-smi >/dev/null 2>&1; then
        echo 0
    elif [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        tr , '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c '^[^-]' || true
    else
        nvidia-smi -L | grep -c '^GPU ' || true
    fi
}
gpus=$(count_gpus)
nproc=${nproc:-$((gpus == 1 ? 1 : 2))}
[[ $nproc =~ ^(1|2|4|8)$ ]] || { printf 'quickstart: --nproc %s: give 1, 2, 4 or 8\n' "$nproc" >&2; exit 2; }
((gpus == 0 || nproc <= gpus)) ||
    { printf 'quickstart: --nproc %s: there are %s GPUs; give at most that many ranks\n' "$nproc" "$gpus" >&2; exit 2; }
[[ $out != *[[:space:]]* ]] || { printf 'quickstart: --out %s: give a path without spaces\n' "$out" >&2; exit 2; }
mkdir -p "$out" && out=$(cd "$out" && pwd)

step=0
headline() { step=$((step + 1)); printf '\n[%d/9] %s\n' "$step" "$*"; }

headline "environment"
bash "$root/launch/setup.sh"
export PATH=$root/.venv/bin:$PATH TORCH_EXTENSIONS_DIR=$root/.venv/torch_extensions
cd "$root"
((gpus > 0)) || export DS_ACCELERATOR=cpu
threads=$(($(nproc) / nproc))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1)) TOKENIZERS_PARALLELISM=false

headline "real text"
python launch/quickstart/texts.py --out "$out" ${texts[@]+"${texts[@]}"}
text=$out/text

headline "vocabulary: English, Chinese, English extended with Chinese"
tokenizers=$out/tokenizers
[[ -d $tokenizers/english ]] || rewarm vocab train --input "$text/english-train.jsonl" --size 4096 --out "$tokenizers/english"
[[ -d $tokenizers/chinese ]] || rewarm vocab train --input "$text/chinese-train.jsonl" --size 5120 --out "$tokenizers/chinese"
[[ -d $tokenizers/extended ]] || rewarm vocab extend --base "$tokenizers/english" --add "$tokenizers/chinese" --out "$tokenizers/extended"
rewarm vocab report --tokenizer "$tokenizers/extended" --against "$tokenizers/english" \
    --text "$text/english-validation.jsonl" "$text/chinese-validation.jsonl"

headline "token shards for both tokenizers"
for tokenizer in english extended; do
    for corpus in english-train english-validation chinese-train chinese-validation; do
        prefix=$out/tokens/$tokenizer/$corpus
        [[ -e $prefix.json ]] || rewarm data prepare --input "$text/$corpus.jsonl" --tokenizer "$tokenizers/$tokenizer" --out "$prefix"
    done
done

# Overrides that point a recipe to the shards of one tokenizer.
data() {
    echo "model.tokenizer=$tokenizers/$1" \
        "sources.english.path=$out/tokens/$1/english-train" "sources.chinese.path=$out/tokens/$1/chinese-train" \
        "validation.upstream=$out/tokens/$1/english-validation" \
        "validation.downstream=$out/tokens/$1/chinese-validation"
}
# A port that nothing uses: another run of this machine may have the launcher's own.
free_port() { python -c 'from trainer.machine.ranks import free_port; print(free_port())'; }
# A recipe on all ranks, with overrides.
launcher=(deepspeed --log_level error --num_accelerators "$nproc" --master_port)
train() { "${launcher[@]}" "$(free_port)" launch/train.py "$@"; }

headline "the English base, from random weights (98 % English, 2 % Chinese)"
# shellcheck disable=SC2046 # the paths of an output folder with spaces in it are refused above
train launch/recipes/quickstart-base.yaml "run_dir=$out/base" $(data english) "phases.0.tokens=$((1228800 / shorter))"
[[ -d $out/models/base ]] || rewarm export "$out/base" --out "$out/models/base" --dtype fp32
[[ -d $out/models/base-extended ]] || rewarm model extend --base "$out/models/base" \
    --tokenizer "$tokenizers/extended" --out "$out/models/base-extended" \
    --text "$text/english-validation.jsonl" "$text/chinese-validation.jsonl"

[[ -z $until_base ]] || exit 0

headline "continued pretraining on Chinese, without replay and with 25 % English"
# The recipe and overrides of the arm that replays $1 per cent.
arm() {
    echo launch/recipes/quickstart.yaml "name=quickstart-replay-$1" "run_dir=$out/replay-$1" $(data extended) \
        "model.base=$out/models/base-extended" "phases.0.mixture.replay_ratio=$1%" \
        "phases.0.tokens=$((tokens / shorter))" "checkpoint.every_tokens=$((81920 / shorter))"
}
tokens=409600
# shellcheck disable=SC2046
train $(arm 0)

headline "the second arm is killed half-way and started again with the same command"
# shellcheck disable=SC2046
python launch/quickstart/kill_halfway.py --run "$out/replay-25" --tokens "$((tokens / shorter / 2))" -- \
    "${launcher[@]}" "$(free_port)" launch/train.py $(arm 25)
# shellcheck disable=SC2046
train $(arm 25)
python launch/quickstart/compare_restored.py "$out/replay-25"

headline "export to Hugging Face, loaded and compared"
[[ -d $out/models/replay-25 ]] || rewarm export "$out/replay-25" --out "$out/models/replay-25" --dtype fp32
python launch/quickstart/check_export.py --run "$out/replay-25" --model "$out/models/replay-25" --prompt "第一条　为了"

headline "what was learnt, and what was forgotten"
rewarm report "$out/base" "$out/replay-0" "$out/replay-25" --out "$out/report.html"
