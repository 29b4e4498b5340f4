#!/usr/bin/env bash
# Test and time everything on a GPU; see `tools/gpu_report.sh --help`.
set -uo pipefail

usage() {
  cat <<'EOF'
Usage: bash tools/gpu_report.sh FOLDER [PART...]

Run the tests that need an NVIDIA GPU, and time all families, part by part. FOLDER
gets a log and a file of figures per part, and report.md.

  bash tools/gpu_report.sh report                  all parts, about half an hour
  bash tools/gpu_report.sh report part1 latency    two of them

Parts, each at most nine minutes:
  part1 ... part5   pytest -m "cuda and part1", ...; see docs/gpu.md
  latency           fp16 and bf16, batch 64 at 224 and batch 1 at 800x1344, eager
  compiled224       fp16, batch 64 at 224, eager and with torch.compile
  compiled800       fp16, batch 1 at 800x1344, eager and with torch.compile

It needs Python 3.10 or later, PyTorch, torchvision and pytest, and OpenMMLab's
packages (docs/installation.md), on PYTHONPATH or installed. It works in a checkout.

Environment variables:
  PYTHON    interpreter (default: python3)
EOF
}

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  '' | -*) usage >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=${PYTHON:-python3}
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd -P)
shift
[ $# -gt 0 ] || set -- part1 part2 part3 part4 part5 latency compiled224 compiled800
for part; do
  case "$part" in
    part[1-5] | latency | compiled224 | compiled800) ;;
    *) echo "gpu_report.sh: error: unknown part '$part'" >&2; exit 2 ;;
  esac
done

seconds=540
families='soft_tiny soft_tiny_norm ecoformer_pvt_b0 ecoformer_twins_s swiftformer_xs
  lowformer_b0 reduceformer_b1'
others='timm/swiftformer_xs timm/lowformer_b0 timm/swin_tiny_patch4_window7_224
  timm/pvt_v2_b0'
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} MM_EFFICIENT_FIGURES=$out
cd "$root" || exit 2

tests() {
  # Without pyproject's options for pytest-xdist, which may not be there
  timeout "$seconds" "$python" -m pytest -o addopts=-ra --durations=10 -m "cuda and $1"
}

# benchmark SECONDS FILE MODELS OPTION...: in one run, beside ResNet-50
benchmark() {
  local limit=$1 file=$2 models=$3
  shift 3
  # shellcheck disable=SC2086  # models are words
  timeout "$limit" "$python" tools/analysis_tools/benchmark.py timm/resnet50 $models \
    --device cuda --iterations 30 --max-seconds 2 --rounds 3 --out "$out/$file" "$@"
}

run_part() {
  local batch='--batch-size 64' large='--shape 800x1344 --backbone'
  # shellcheck disable=SC2086  # options are words
  case "$1" in
    latency)
      benchmark $((seconds / 2)) eager_64x224.json "$families $others" $batch --dtype fp16 bf16 &&
        benchmark $((seconds / 2)) eager_1x800x1344.json "$families $others" $large \
          --dtype fp16 bf16 ;;
    compiled224)
      benchmark "$seconds" compiled_64x224.json "$families" $batch --dtype fp16 \
        --backend eager compile ;;
    compiled800)
      benchmark "$seconds" compiled_1x800x1344.json "$families" $large --dtype fp16 \
        --backend eager compile ;;
    *) tests "$1" ;;
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
} >"$out/report.md"
for part; do
  begin=$SECONDS
  run_part "$part" >"$out/$part.log" 2>&1
  status=$?
  [ "$status" = 0 ] || failed=1
  {
    echo "## $part: exit status $status, $((SECONDS - begin)) s"
    echo
    echo '```text'
    case "$part" in
      part*) grep -E '^(FAILED|ERROR|SKIPPED|XFAIL|XPASS|E  )|^=+ .* in [0-9.]+' \
        "$out/$part.log" ;;
      *) cat "$out/$part.log" ;;
    esac
    echo '```'
    echo
  } >>"$out/report.md"
  sed -n "/^## $part:/p" "$out/report.md"
done
echo "written: $out/report.md"
exit "$failed"
