#!/usr/bin/env bash
# Makes a folder of wheels: what benchmarks/gpu.sh needs and a bare CUDA image with PyTorch and transformers lacks.
#
#   bash benchmarks/gpu_wheels.sh DIR [--python 3.12]
#
# Run it where there is a network, for the Python version of the machine with the card (Linux, x86-64). There:
#   python3 -m pip install --no-index --no-deps --target SITE DIR/*.whl && export PYTHONPATH=SITE
#
# PYTHON   the interpreter whose pip is used (default: python3)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
most_mib=60
packages=(
    gigatoken awkward awkward_cpp pydantic pydantic_core annotated-types typing-inspection typing_extensions
    orjson xxhash zstandard hjson msgpack py-cpuinfo einops psutil sentencepiece
)
optional=(liger-kernel==0.8.5) # measured beside our own loss; the trainer does without

fail() {
    printf 'gpu_wheels: %s\n' "$*" >&2
    exit 2
}

# The line of requirements.lock that pins a package.
pin() {
    grep -ixE "${1//[-_]/[-_]}==.*" "$root/requirements.lock" || fail "requirements.lock does not pin $1"
}

[[ $# -ge 1 && $1 != -* ]] || fail "name a folder: bash benchmarks/gpu_wheels.sh DIR [--python 3.12]"
folder=$1
shift
version=3.12
while (($#)); do
    case $1 in
        --python) version=${2:-} && shift 2 || fail "--python needs a version, such as 3.12" ;;
        *) fail "$1 is not an option; the options are DIR and --python 3.12" ;;
    esac
done
[[ $version =~ ^3\.[0-9]+$ ]] || fail "--python $version is not a version such as 3.12"
"$python" -m pip --version >/dev/null || fail "$python has no pip; name another interpreter: PYTHON=..."

# Two versions of one package would stop the whole install, and nothing of others is deleted here.
[[ -z $(ls -A "$folder" 2>/dev/null) ]] || fail "$folder is not empty; name a new folder"
mkdir -p "$folder" || fail "$folder cannot be made"
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT

pins=()
for package in "${packages[@]}"; do
    line=$(pin "$package")
    pins+=("$line")
done
deepspeed=$(pin deepspeed)
platforms=()
for glibc in 2_28 2_27 2_26 2_24 2_17 2_12 2_5; do
    platforms+=(--platform "manylinux_${glibc}_x86_64")
done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
"$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$version" \
    "${platforms[@]}" --dest "$made" "${pins[@]}" "${optional[@]}" ||
    fail "a wheel for Python $version could not be fetched (the lines above say which)"

# DeepSpeed comes as source. Without its compiled operators it is the same for every Python; nothing here needs CUDA.
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu "$python" -m pip wheel --quiet --no-deps --no-cache-dir --wheel-dir "$made" \
    "$deepspeed" || fail "deepspeed could not be built (the lines above say why)"
compgen -G "$made/deepspeed-*-py3-none-any.whl" >/dev/null ||
    fail "deepspeed was not built as a wheel for every Python: $(ls "$made"/deepspeed-*)"
mv "$made"/*.whl "$folder"/

mib=$(($(du -sk --apparent-size "$folder" | cut -f1) / 1024))
printf 'gpu_wheels: %d wheels for Python %s, %d MiB together, in %s\n' "$(ls "$folder"/*.whl | wc -l)" "$version" "$mib" "$folder"
((mib < most_mib)) || fail "that is not under $most_mib MiB"
