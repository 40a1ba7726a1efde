#!/usr/bin/env bash
# Everything that wants a GPU, in one command: the tests on the device, then the speeds.
#
#   bench/gpu.sh BIN_DIR OUT_DIR
#
# BIN_DIR holds offshoot and offshoot-runner (release builds) and the test programs bindings,
# models-it, engine-it and graph_cost. libmlx with CUDA must be on LD_LIBRARY_PATH. Each part
# writes its raw output to OUT_DIR and none stops the others.
set -uo pipefail
bin=$(cd "$1" && pwd)
out=$2
mkdir -p "$out"

part() { # name, seconds, command...
  local name=$1 limit=$2
  shift 2
  local begun=$SECONDS
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  echo "$name: exit $?, $((SECONDS - begun)) s"
  tail -n 6 "$out/$name.txt" | cut -c1-200
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
part doctor 60 "$bin/offshoot" doctor
# As offshoot sets it for its runner: references are in f32, and TF32 would miss them.
export MLX_ENABLE_TF32=0
part bindings 180 "$bin/bindings" --test-threads 1
part models 240 "$bin/models-it" --test-threads 1
part engine 120 "$bin/engine-it" --test-threads 1
part demo 60 "$bin/offshoot" run demo "What is Offshoot?" --temperature 0 --verbose
part graph_cost 60 "$bin/graph_cost" --bench
for shape in qwen3-0.6b:bf16 qwen3-8b:4bit qwen3-8b:bf16; do
  part "bench-${shape/:/-}" 120 "$bin/offshoot" bench "shape:$shape" -p 2048 -n 128 -b 1,8 --json
done
