#!/usr/bin/env bash
# Everything that README calls not measured, on one GPU, in under eight minutes: see gpu.py. It installs nothing and needs no
# network: JAX with flax, optax, orbax-checkpoint, jaxtyping and fsspec are enough; PyTorch is a peer where it is installed.
#
#   bash benchmarks/gpu.sh --output=benchmarks/results/gpu_h200
#   bash benchmarks/gpu.sh --tiny               the same with toy sizes, on a CPU, too
#
#   PYTHON   the interpreter to use   (default: python3)
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu.py" "$@"
