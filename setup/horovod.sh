#!/usr/bin/env bash
# Installs Horovod with PyTorch and Gloo: compiled once per Python, torch and CUDA, then kept as a wheel in the cache.
set -euo pipefail
cd "$(dirname "$0")/.."
source setup/common.sh

# A Horovod serves the torch it was compiled against and no other, so the wheel's folder is named after it, for
# example 2.13.0+cu130-cp311-x86_64-cpu. The toolkit is the one that torch finds, as Horovod's CMake files ask torch.
{ read -r torch_key; read -r cuda_home; } < <("$python" - <<'PYTHON'
import platform
import sys

import torch
from torch.utils.cpp_extension import CUDA_HOME

print(f"{torch.__version__}-cp{sys.version_info.major}{sys.version_info.minor}-{platform.machine()}")
print(CUDA_HOME or "none" if torch.version.cuda else "none")
PYTHON
)

# GPU operations need the compiler of the CUDA toolkit and NCCL's headers; with less Horovod is built for the CPU.
if [ -x "$cuda_home/bin/nvcc" ] && ls {"$cuda_home","${HOROVOD_NCCL_HOME:-/usr}"}/include/nccl.h >/dev/null 2>&1; then
    device=nccl
else
    device=cpu
fi
wheels="$cache/wheels/$torch_key-$device"

build() {
    local work log="$cache/horovod-build.log"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' RETURN
    "$python" -m pip download --quiet --no-deps --no-binary :all: --no-build-isolation --require-hashes \
        --dest "$work" -r setup/pins/horovod.txt
    tar -xzf "$work"/horovod-*.tar.gz -C "$work"
    local source=("$work"/horovod-*/)

    # its CMake files ask for C++14, torch's headers need C++17
    sed -i 's/set(CMAKE_CXX_STANDARD 14)/set(CMAKE_CXX_STANDARD 17)/' "${source[0]}"{,horovod/torch/}CMakeLists.txt
    sed -i 's/RelWithDebInfo/Release/' "${source[0]}setup.py"  # without debug information: a wheel of 1 MB, not 18
    if [ "$device" = nccl ]; then
        export HOROVOD_GPU_OPERATIONS=NCCL HOROVOD_CUDA_HOME="$cuda_home" CUDA_HOME="$cuda_home"
    else  # else they turn CUDA on as soon as torch finds a folder of that name
        sed -i 's/(torch.version.cuda is not None) and (CUDA_HOME is not None)/False/' \
            "${source[0]}cmake/Modules/FindPytorch.cmake"
    fi

    # CXXFLAGS: Gloo forgets <cstdint>, which GCC before 13 included by chance.
    # MAKEFLAGS: not those of our own make; each compiler takes up to 2 GB, so no more than four.
    export HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_GLOO=1
    export HOROVOD_WITHOUT_MPI=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    export HOROVOD_CMAKE="$PWD/.venv/bin/cmake" CXXFLAGS="-include cstdint" MAKEFLAGS="-j$(($(nproc) < 4 ? $(nproc) : 4))"
    "$python" -m pip wheel --verbose --no-deps --no-build-isolation --no-cache-dir \
        --wheel-dir "$work/wheel" "${source[0]}" >"$log" 2>&1 ||
        fail "Horovod could not be compiled; the compiler's words are in $log, the last error:" \
            "$(grep -iE 'error' "$log" | tail -n 1)"
    mkdir -p "$wheels"
    mv "$work"/wheel/horovod-*.whl "$wheels/"
}

if ! ls "$wheels"/horovod-*.whl >/dev/null 2>&1; then
    mkdir -p "$cache"
    say "compiling Horovod for torch $torch_key, $device (once; about 4 minutes on 2 cores)"
    build
fi
say "installing Horovod from $wheels"
.venv/bin/uv pip install --quiet --no-deps --python "$python" "$wheels"/horovod-*.whl
"$python" -c 'import horovod.torch as hvd; assert hvd.gloo_built()' ||
    fail "the Horovod of $wheels does not load with this torch: remove that folder and run make setup again."
