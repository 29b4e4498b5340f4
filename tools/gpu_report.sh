#!/usr/bin/env bash
# Test and time everything on a GPU; see `tools/gpu_report.sh --help`.
set -uo pipefail

usage() {
  cat <<'EOF'
Usage: bash tools/gpu_report.sh FOLDER [PART...]

Run the tests that need an NVIDIA GPU, and time all families, part by part. FOLDER
gets a log and a file of figures per part, and report.md.

  bash tools/gpu_report.sh report                     all parts, about an hour
  bash tools/gpu_report.sh report part1 latency224    two of them

Parts, each at most nine minutes:
  part1 ... part5   pytest -m "cuda and part1", ...; see docs/gpu.md
  latency224        batch 64 at 224: eager, with autocast and converted, and as a
                    CUDA graph, in fp16 and bf16
  latency800        the same for backbones, batch 1 at 800x1344
  compiled224       batch 64 at 224: torch.compile, in fp16, then in bf16
  compiled800       the same for backbones, batch 1 at 800x1344

The last four add to .jsonl files after each model, and write .md tables of them. A
part that is stopped keeps the models that were done.

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
[ $# -gt 0 ] || set -- part1 part2 part3 part4 part5 latency224 latency800 compiled224 compiled800
for part; do
  case "$part" in
    part[1-5] | latency224 | latency800 | compiled224 | compiled800) ;;
    *) echo "gpu_report.sh: error: unknown part '$part'" >&2; exit 2 ;;
  esac
done

seconds=540
# MMPretrain's Swin takes images of any size, timm's does not
models='timm/resnet50 swin-tiny_16xb64_in1k timm/swiftformer_xs timm/lowformer_b0
  timm/pvt_v2_b0 soft_tiny soft_tiny_norm ecoformer_pvt_b0 ecoformer_twins_s
  swiftformer_xs lowformer_b0 reduceformer_b1'
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} MM_EFFICIENT_FIGURES=$out
cd "$root" || exit 2

# within COMMAND...: until the end of the part; SIGINT lets it report what it has done
within() {
  local left=$((end - SECONDS))
  [ "$left" -gt 0 ] || return 124
  timeout --signal=INT --kill-after=20 "$left" "$python" "$@"
}

# benchmark PART OPTION...: all models, one after the other, beside ResNet-50
benchmark() {
  local part=$1 size='--batch-size 64' variants=$models
  shift
  if [ "${part%800}" != "$part" ]; then
    size='--shape 800x1344 --backbone'
    # As in detectors, which bound the number of landmarks, and the padding
    variants=$(sed -E 's/(soft_tiny(_norm)?|reduceformer_b1)\b/\1_retinanet_1x/g' <<<"$models")
  fi
  # shellcheck disable=SC2086  # models and sizes are words
  within tools/analysis_tools/benchmark.py $variants --baseline timm/resnet50 --apart \
    --device cuda --threads "$OMP_NUM_THREADS" --iterations 20 --rounds 4 --warmup 5 \
    --max-seconds 1 $size "$@"
}

# processes PART: what is timed, part2, runs by itself
processes() {
  [ "$1" = part2 ] || ! "$python" -c 'import xdist' 2>/dev/null || echo '-n 8'
}

run_part() {
  local part=$1 end=$((SECONDS + seconds)) status=0 dtype
  case "$part" in
    latency*)
      benchmark "$part" --dtype fp16 bf16 --backend eager converted cudagraph \
        --out "$out/$part.jsonl" "$out/$part.md" ;;
    compiled*)
      for dtype in fp16 bf16; do
        benchmark "$part" --dtype "$dtype" --backend compile \
          --out "$out/$part.jsonl" "$out/${part}_$dtype.md" || status=$?
      done
      return "$status" ;;
    # Without pyproject's options for pytest-xdist, which may not be there
    *) within -m pytest -o addopts=-ra --tb=short --show-capture=no --durations=10 \
      $(processes "$part") -m "cuda and $part" tests/cuda ;;
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
    for table in "$out/$part".md "$out/${part}"_*.md; do
      [ ! -f "$table" ] || { echo && cat "$table"; }
    done
    echo
  } >>"$out/report.md"
  sed -n "/^## $part:/p" "$out/report.md"
done
echo "written: $out/report.md"
exit "$failed"
