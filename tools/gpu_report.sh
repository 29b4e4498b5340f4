#!/usr/bin/env bash
# Test and time everything on a GPU; see `tools/gpu_report.sh --help`.
set -uo pipefail

usage() {
  cat <<'EOF'
Usage: bash tools/gpu_report.sh FOLDER [PART...]

Run the tests that need an NVIDIA GPU, and time all families, part by part. FOLDER
gets a log and a file of figures per part, and report.md, to which each run adds.

  bash tools/gpu_report.sh report                     all parts, up to 81 minutes
  bash tools/gpu_report.sh report part1 latency224    two of them
  bash tools/gpu_report.sh report part1+part3+part4+part5
                                                      four at the same time

In about half an hour, on a machine with 16 cores: the last command, then
"part2 latency224 latency800", then "compiled224 compiled800", which need the GPU for
themselves.

Parts, each at most nine minutes:
  part1 ... part5   pytest -m "cuda and part1", ...; see docs/gpu.md
  latency224        batch 64 at 224: eager, with autocast and converted, and as a
                    CUDA graph, in fp16 and bf16
  latency800        the same for backbones, batch 1 at 800x1344
  compiled224       batch 64 at 224: torch.compile, in fp16, then in bf16
  compiled800       the same for backbones, batch 1 at 800x1344

latency... also times SwiftFormer and LowFormer in the same rounds as timm's, since the
speed of the CPU, which eager times depend on, may change between two models.

The last four add to .jsonl files after each model, and write .md tables of them. A
part that is stopped keeps the models that were done. compiled... compiles all models at
the same time, then times them one by one.

It needs Python 3.10 or later, PyTorch, torchvision and pytest, and OpenMMLab's
packages (docs/installation.md), on PYTHONPATH or installed. It works in a checkout.

Environment variables:
  PYTHON    interpreter (default: python3)

Exit status: 0 if all parts passed, 1 if one failed or there is no GPU, 2 for a wrong
command line.
EOF
}

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  '' | -*) usage >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-python3}
folder=$1
shift
[ $# -gt 0 ] || set -- part1 part2 part3 part4 part5 latency224 latency800 compiled224 compiled800
groups="$*"
for part in ${groups//+/ }; do
  case "$part" in
    part[1-5] | latency224 | latency800 | compiled224 | compiled800) ;;
    *) echo "gpu_report.sh: error: unknown part '$part'; see --help" >&2; exit 2 ;;
  esac
done
# Else tests would be skipped, which looks like success
"$python" -c 'import sys, torch
sys.exit(0 if torch.cuda.is_available() else
         f"PyTorch {torch.__version__} finds no NVIDIA GPU here")' || {
  echo "gpu_report.sh: error: no GPU, or no PyTorch, see above. PYTHON names another interpreter." >&2
  exit 1
}
mkdir -p "$folder" || exit 2
out=$(cd "$folder" && pwd -P)

seconds=540
# MMPretrain's Swin takes images of any size, timm's does not
models='timm/resnet50 swin-tiny_16xb64_in1k timm/swiftformer_xs timm/lowformer_b0
  timm/pvt_v2_b0 soft_tiny soft_tiny_norm ecoformer_pvt_b0 ecoformer_twins_s
  swiftformer_xs lowformer_b0 reduceformer_b1'
ports='timm/resnet50 timm/swiftformer_xs swiftformer_xs timm/lowformer_b0 lowformer_b0'
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export MM_EFFICIENT_FIGURES=$out TORCHINDUCTOR_COMPILE_THREADS=2
cd "$root" || exit 2

# within COMMAND...: until the end of the part; SIGINT lets it report what it has done
within() {
  local left=$((end - SECONDS))
  [ "$left" -gt 0 ] || return 124
  timeout --signal=INT --kill-after=20 "$left" "$python" "$@"
}

# benchmark OPTION...: models of the variable $variants, one after the other
benchmark() {
  # shellcheck disable=SC2086  # models and sizes are words
  within tools/analysis_tools/benchmark.py $variants --device cuda $size "$@"
}

time_models() {
  benchmark --baseline timm/resnet50 --threads 8 --iterations 20 --rounds 4 --warmup 5 \
    --max-seconds 1 "$@"
}

# compile_models OPTION...: all at the same time, into Inductor's cache
compile_models() {
  local all=$variants variants
  for variants in $all; do
    while [ "$(jobs -rp | wc -l)" -ge "$workers" ]; do wait -n; done
    benchmark --iterations 1 --rounds 1 --warmup 1 --threads 1 "$@" &
  done
  wait
}

# run_tests PART: in several processes, but for part2, which measures times
run_tests() {
  local parallel=
  if [ "$1" != part2 ] && "$python" -c 'import xdist' 2>/dev/null; then
    parallel="-n $workers"
    export OMP_NUM_THREADS=$threads
  fi
  # Without pyproject's options for pytest-xdist, which may not be there
  # shellcheck disable=SC2086  # an option and its value
  within -m pytest -o addopts=-ra --tb=short --show-capture=no --durations=10 $parallel \
    -m "cuda and $1" tests/cuda
}

run_part() {
  local part=$1 end=$((SECONDS + seconds)) status=0 dtype ways
  local size='--batch-size 64' variants=$models
  if [ "${part%800}" != "$part" ]; then
    size='--shape 800x1344 --backbone'
    # As in detectors, which bound the number of landmarks, and the padding
    variants=$(sed -E 's/(soft_tiny(_norm)?|reduceformer_b1)\b/\1_retinanet_1x/g' <<<"$models")
  fi
  case "$part" in
    latency*)
      ways='--dtype fp16 bf16 --backend eager converted cudagraph'
      # shellcheck disable=SC2086  # options
      variants=$ports time_models $ways --out "$out/${part}"_ports.{jsonl,md} || status=$?
      # shellcheck disable=SC2086
      time_models --apart $ways --out "$out/$part".{jsonl,md} || status=$?
      return "$status" ;;
    compiled*)
      for dtype in fp16 bf16; do
        compile_models --dtype "$dtype" --backend compile
        time_models --apart --dtype "$dtype" --backend compile \
          --out "$out/$part.jsonl" "$out/${part}_$dtype.md" || status=$?
      done
      return "$status" ;;
    *) run_tests "$part" ;;
  esac
}

failed=0
{
  echo "# GPU report"
  echo
  echo "- $(nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader \
    2>/dev/null || echo 'no nvidia-smi')"
  "$python" -c 'import sys, torch
print(f"- Python {sys.version.split()[0]}, PyTorch {torch.__version__}")'
  echo "- commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(date -u +%F)"
  echo
} >>"$out/report.md"

# report_part PART STATUS SECONDS
report_part() {
  local part=$1 table result="$1: exit status $2, $3 s"
  {
    echo "## $result"
    echo
    echo '```text'
    case "$part" in
      part*) grep -E '^(FAILED|ERROR|SKIPPED|XFAIL|XPASS|E  )|^=+ .* in [0-9.]+' \
        "$out/$part.log" ;;
      *) cat "$out/$part.log" ;;
    esac
    echo '```'
    for table in "$out/$part".md "$out/${part}"_*.md; do
      [ ! -f "$table" ] || { echo && cat "$table"; }
    done
    echo
  } >>"$out/report.md"
  echo "$result"
}

for group; do
  begin=$SECONDS pids=()
  IFS=+ read -ra parts <<<"$group"
  workers=$(($(nproc) / ${#parts[@]}))  # processes of each part
  workers=$((workers < 1 ? 1 : workers > 8 ? 8 : workers))
  threads=$((($(nproc) + workers * ${#parts[@]} - 1) / (workers * ${#parts[@]})))  # of each
  for part in "${parts[@]}"; do
    run_part "$part" >"$out/$part.log" 2>&1 &
    pids+=($!)
  done
  for i in "${!parts[@]}"; do
    status=0
    wait "${pids[i]}" || status=$? failed=1
    report_part "${parts[i]}" "$status" $((SECONDS - begin))
  done
done
echo "written: $out/report.md"
exit "$failed"
