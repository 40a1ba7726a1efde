#!/usr/bin/env bash
# Everything that wants a GPU, in one command: the tests on the device, then the speeds.
#
#   bench/gpu.sh BIN_DIR OUT_DIR
#
# BIN_DIR holds offshoot and offshoot-runner (release builds), the test programs kernels-it,
# bindings, models-it and engine-it, the bench programs fused and graph_cost, and engine's examples
# cache_speed, concurrency and parity. libmlx with CUDA must be on LD_LIBRARY_PATH; the link's speed
# wants PyTorch. Each part writes its raw output to OUT_DIR and none stops the others.
# Every test runs in a process of its own, many at once: MLX compiles kernels at their first use,
# which takes most of the time. Test programs look for goldens/ where they were built.
set -uo pipefail
bin=$(cd "$1" && pwd)
out=$2
mkdir -p "$out"
# As offshoot sets them for its runner; see CUDA_SETTINGS in crates/server/src/backend.rs.
export MLX_ENABLE_TF32=0 MLX_CUDA_GRAPH_CACHE_SIZE=2000 MLX_MAX_MB_PER_BUFFER=20000
export MLX_MAX_OPS_PER_BUFFER=200 GLIBC_TUNABLES=glibc.malloc.tcache_count=4000
OFFSHOOT_KERNELS=$(mktemp -d)
export OFFSHOOT_KERNELS

tests() { # program, seconds
  local program=$1 limit=$2 begun=$SECONDS log="$out/$1.txt"
  : >"$log"
  "$bin/$program" --list 2>/dev/null | sed -n 's/: test$//p' |
    xargs -P "$(nproc)" -I{} bash -c '
      text=$(timeout "$1" "$2" --exact "$3" 2>&1) && state=ok || state="FAILED ($?)"
      printf "%s ... %s\n" "$3" "$state" >>"$4"
      [ "$state" = ok ] || printf "%s\n" "$text" >>"$4"
    ' _ "$limit" "$bin/$program" {} "$log"
  echo "$program: $(grep -c ' ok$' "$log") ok, $(grep -c 'FAILED (' "$log") failed," \
    "$((SECONDS - begun)) s"
  grep -E 'FAILED \(| off"?,?$' "$log" | cut -c1-180
}

part() { # name, seconds, command...
  local name=$1 limit=$2 begun=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1
  echo "$name: exit $?, $((SECONDS - begun)) s"
  tail -n "${lines:-7}" "$out/$name.txt"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
part doctor 60 "$bin/offshoot" doctor
part link 60 python3 "$(dirname "$0")/link.py"
tests kernels-it 240
lines=80 part fused 200 "$bin/fused" --bench
tests bindings 240
tests models-it 240
tests engine-it 120
part demo 60 "$bin/offshoot" run demo "What is Offshoot?" --temperature 0 --verbose
for shape in qwen3-8b:bf16:4 qwen3-30b-a3b:4bit:6 qwen3.5-35b-a3b:4bit:4; do
  IFS=: read -r name quantization layers <<<"$shape"
  lines=1 part "parity-$name" 60 "$bin/parity" "$name" "$quantization" "$layers"
done
part graph_cost 60 "$bin/graph_cost" --bench
for shape in qwen3-0.6b:bf16 qwen3-8b:bf16 qwen3-8b:4bit qwen3-30b-a3b:4bit \
  qwen3.5-35b-a3b:4bit glm-4.7-flash:4bit gpt-oss-20b:mxfp4; do
  part "bench-${shape/:/-}" 150 "$bin/offshoot" bench "shape:$shape" -p 2048 -n 128 -b 1,8 --json
done
part concurrency-qwen3-8b-bf16 120 "$bin/concurrency" qwen3-8b bf16 32768
for shape in qwen3-8b:bf16 qwen3-30b-a3b:4bit qwen3.5-35b-a3b:4bit; do
  part "cache_speed-${shape/:/-}" 240 "$bin/cache_speed" "${shape%:*}" "${shape#*:}" 32768
done
