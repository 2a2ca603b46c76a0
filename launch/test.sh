#!/usr/bin/env bash
# Make or reuse .venv, then run every check: linters, types, import floors, spelling, tests.
#
#   bash launch/test.sh [--fast] [--coverage] [pytest's own arguments]
#
# --fast      leaves out the tests marked slow (those that launch several processes or train)
# --coverage  tells which lines the tests' own processes ran; they take up to twice as long
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

pytest_arguments=()
for argument in "$@"; do
    case $argument in
        -h | --help)
            sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --fast) pytest_arguments+=(-m "not slow") ;;
        --coverage) pytest_arguments+=(--cov --cov-report=term:skip-covered) ;;
        *) pytest_arguments+=("$argument") ;;
    esac
done

# A shell inside a job, or one set up for another project, must not change what the tests see.
for name in $(compgen -e); do
    case $name in
        PYTHONPATH | PYTHONHOME | PYTHONDONTWRITEBYTECODE | PYTHONUNBUFFERED | PYTEST_* | RANK | LOCAL_RANK | WORLD_SIZE | MASTER_ADDR | MASTER_PORT | CUDA_VISIBLE_DEVICES) unset "$name" ;;
        SLURM_* | PMI_* | PMIX_* | OMPI_* | TORCHELASTIC_* | WANDB_* | DS_*) unset "$name" ;;
    esac
done
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

bash launch/setup.sh
# Compiled ops of this environment; a cache that environments share is rebuilt at every change between them.
export PATH=$PWD/.venv/bin:$PATH TORCH_EXTENSIONS_DIR=$PWD/.venv/torch_extensions

# By name: other files in the working folder (runs, data, a user's scripts) are not checked.
code=(benchmarks launch tests tokenization trainer setup.py)

failed=()
check() {
    printf '\n== %s\n' "$*"
    "$@" || failed+=("$*")
}
check ruff check "${code[@]}"
check ruff format --check "${code[@]}"
check mypy
check lint-imports --no-cache
check codespell "${code[@]}" docs README.md README.zh-CN.md CHANGELOG.md CONTRIBUTING.md

printf '\n== pytest\n'
status=0
# Much of the time goes to imports, one after another in each launch, so two files run at a time; long ones first.
pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=20 \
    ${pytest_arguments[@]+"${pytest_arguments[@]}"} || status=$?
((${#failed[@]} == 0)) || printf 'failed: %s\n' "${failed[@]}" >&2
((status == 0 && ${#failed[@]} == 0))
