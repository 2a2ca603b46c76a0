#!/usr/bin/env bash
# Makes .venv in the repository's root: torch, the pinned packages, rewarm. Safe to run again at any time.
#
#   bash launch/setup.sh
#
# PYTHON               the interpreter to start from (default: the first of python3, python3.13 … python3.11 that fits)
# REWARM_TORCH_INDEX   one more package index to look for torch in, such as PyTorch's own index of CPU builds or of
#                      builds for another CUDA; without it torch comes from wherever pip is set up to look
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
lock=$root/requirements.lock
torch_version=2.13.0

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

# Leaves in $python an interpreter of at least 3.11, which the pinned numpy and pandas need.
find_python() {
    local candidate candidates=(python3 python3.13 python3.12 python3.11)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        python=$(command -v "$candidate") || continue
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    fail "no Python of at least 3.11 found (looked for ${candidates[*]});" \
        "install one, or name it: PYTHON=/path/to/python3 bash launch/setup.sh"
}

check_machine() {
    find_python
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
    local need_gib=3 free_gib
    has_nvidia && need_gib=10
    free_gib=$(($(df -Pk "$root" | awk 'NR == 2 {print $4}') / 1048576))
    ((free_gib >= need_gib)) ||
        fail "$root has $free_gib GiB free and the environment needs $need_gib; free some, or clone elsewhere"
}

has_nvidia() { command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; }

# What the environment was made from: another lock, package or interpreter makes it stale.
wanted() { cat "$lock" "$root/setup.py" | sha256sum | cut -d' ' -f1; }

is_ready() {
    [[ -f $venv/rewarm.stamp && $(<"$venv/rewarm.stamp") == "$(wanted)" ]] &&
        "$venv/bin/python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' 2>/dev/null
}

# Python compiles what it imports; compiling every package would take half a minute more.
install() {
    "$venv/bin/python" -m pip install -qq --no-compile --disable-pip-version-check --no-input "$@" ||
        fail "pip install $* failed (its reason is above); once that is mended, run this again: it goes on from here"
}

make_environment() {
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        say "making $venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
    fi
    rm -f "$venv/rewarm.stamp"

    say "installing torch $torch_version"
    install ${REWARM_TORCH_INDEX:+--extra-index-url "$REWARM_TORCH_INDEX"} "torch==$torch_version"
    say "installing the $(grep -c == "$lock") packages of requirements.lock"
    install --no-deps -r "$lock"
    install --no-deps --no-build-isolation -e "$root"

    "$venv/bin/python" -m pip check --quiet --disable-pip-version-check ||
        say "pip check found conflicts between the packages above; run launch/test.sh to see whether they matter"
    wanted >"$venv/rewarm.stamp"
}

report() {
    local cuda
    cuda=$("$venv/bin/python" -c 'import torch; print(torch.version.cuda or "")')
    if has_nvidia && [[ -z $cuda ]]; then
        say "this machine has an NVIDIA driver and pip brought torch's CPU build;" \
            "name an index of CUDA builds in REWARM_TORCH_INDEX, remove .venv and run this again"
    fi
    command -v g++ >/dev/null ||
        say "no g++: DeepSpeed's compiled optimizers cannot be built; torch's AdamW is used (slower, same numbers)"
    say "ready: torch $torch_version for ${cuda:+CUDA }${cuda:-the CPU}, in $venv"
}

# Two jobs that start at once on a shared folder must not install over each other.
if command -v flock >/dev/null; then
    exec 9>"$root/.venv.lock"
    flock 9 || true
fi
if ! is_ready; then
    check_machine
    make_environment
    report
fi
