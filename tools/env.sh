#!/usr/bin/env bash
# Run a command in the project's pinned environment; see `tools/env.sh --help`.
set -euo pipefail

usage() {
  cat <<'EOF'
Usage: bash tools/env.sh CMD [ARGS...]

Run CMD in the virtual environment of this checkout. The first call creates the
environment from the pinned requirements; later calls start CMD at once, unless
the pins or setup.py have changed.

  bash tools/env.sh python tools/train.py configs/det/soft_small_maskrcnn_1x.py --mini
  bash tools/env.sh pytest

CMD runs in the folder it is called from. A bare `pytest` called from outside
the checkout runs the checkout's tests.

Environment variables:
  MM_STACK   mmlab (default): OpenMMLab's packages, in .venv
             onedl: the OneDL continuation of them, in .venv-onedl
  PYTHON     interpreter to create the environment with, Python 3.10 to 3.13
             (default: the first one found)

uv installs the packages, from PATH or else fetched into the environment by pip;
where that fails pip does it all. Files whose hash is not among the pins are
refused. This machine's own settings for package indexes and certificates are
followed.
EOF
}

say() { echo "env.sh: $*" >&2; }
die() { say "error: $*"; exit 2; }

case "${1-}" in
  -h | --help) usage; exit 0 ;;
  '') usage >&2; exit 2 ;;
esac

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
case "${MM_STACK:-mmlab}" in
  mmlab) venv=$root/.venv ;;
  onedl) venv=$root/.venv-onedl ;;
  *) die "MM_STACK must be 'mmlab' or 'onedl', got '$MM_STACK'" ;;
esac
pins=$root/requirements/${MM_STACK:-mmlab}.txt
[ -f "$pins" ] || die "$pins is missing; run env.sh from a complete checkout"
python=$venv/bin/python
stamp=$venv/.mm-efficient-stamp

# The stamp holds what the environment was made from. It is written last, so
# that an interrupted set-up has none.
wanted() { printf '%s\n' "$root"; cat "$pins" "$root/setup.py"; }
is_fresh() { [ -x "$python" ] && wanted | cmp -s - "$stamp"; }

# The caller's own virtual environment, PYTHONPATH or install options must not
# steer an installation; settings that say where packages come from stay.
isolated() {
  env -u VIRTUAL_ENV -u CONDA_PREFIX -u PYTHONHOME -u PYTHONPATH \
    -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_USER \
    -u PIP_REQUIRE_VIRTUALENV -u PIP_PYTHON -u UV_PYTHON -u UV_SYSTEM_PYTHON \
    -u UV_TARGET -u UV_PREFIX "$@" >&2
}

is_suitable() {
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
    >/dev/null 2>&1
}

find_python() {
  local candidate
  if [ -n "${PYTHON-}" ]; then
    is_suitable "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.10 to 3.13"
    command -v "$PYTHON"
    return
  fi
  for candidate in python3 python3.12 python3.11 python3.13 python3.10 python; do
    if is_suitable "$candidate"; then command -v "$candidate"; return; fi
  done
}

create_venv() {
  local base clear=
  base=$(find_python)
  [ ! -e "$venv" ] || is_suitable "$python" || clear=--clear
  if command -v uv >/dev/null; then
    say "creating $venv with uv"
    isolated uv venv --quiet ${clear:---allow-existing} \
      --python "${base:-3.12}" "$venv"  # uv downloads 3.12 when there is none
  elif [ -n "$base" ]; then
    say "creating $venv with $base"
    isolated "$base" -m venv $clear "$venv" ||
      die "'$base -m venv' failed; install your system's python3-venv, or uv"
  else
    die 'no Python 3.10 to 3.13 found; install one, set PYTHON, or install uv'
  fi
}

pip_setting() {
  "$python" -m pip config list 2>/dev/null |
    sed -n "s/^[^.]*\.$1='\(.*\)'\$/\1/p" | head -n 1
}

# Without uv on the machine, pip first fetches the pinned uv, which is several
# times faster at the rest. It is told where pip would look for packages; where
# that does not work out, pip installs everything.
install_with_fetched_uv() {
  local index extra links cert
  say 'fetching uv with pip'
  sed -n '/^uv==/,/^ *#/p' "$pins" >"$venv/uv.txt"
  isolated "$python" -m pip install --quiet --disable-pip-version-check \
    --require-hashes -r "$venv/uv.txt" || return 1
  index=$(pip_setting index-url)
  extra=$(pip_setting extra-index-url)
  links=$(pip_setting find-links)
  cert=$(pip_setting cert)
  (
    [ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX-$index}"
    [ -z "$extra" ] || export UV_INDEX="${UV_INDEX-$extra}"
    [ -z "$links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS-${links// /,}}"
    [ -z "$cert" ] || export SSL_CERT_FILE="${SSL_CERT_FILE-$cert}"
    [ "$(pip_setting no-index)" != true ] || export UV_NO_INDEX=1
    export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY-unsafe-best-match}"  # as pip
    install_with "$venv/bin/uv" "$@"
  )
}

install_with() {
  local uv=$1 reinstall=$2
  say "installing $pins with uv"
  # Compiled as pip does it: else every process compiles what it imports, 10 s
  # each, where PYTHONDONTWRITEBYTECODE is set.
  isolated "$uv" pip install --python "$python" ${reinstall:+--reinstall} \
    --compile-bytecode --require-hashes -r "$pins" &&
    isolated "$uv" pip install --quiet --python "$python" --no-deps \
      --no-build-isolation -e "$root"
}

install_with_pip() {
  local reinstall=$1
  say "installing $pins with pip; this takes some minutes"
  isolated "$python" -m pip install ${reinstall:+--force-reinstall} \
    --disable-pip-version-check --progress-bar off --require-hashes -r "$pins"
  isolated "$python" -m pip install --quiet --disable-pip-version-check \
    --no-deps --no-build-isolation -e "$root"
}

install_packages() {
  if command -v uv >/dev/null; then
    install_with uv "$1"
  else
    install_with_fetched_uv "$1" || install_with_pip "$1"
  fi
}

set_up() {
  local reinstall=
  if is_suitable "$python"; then
    # Without a stamp an earlier set-up was cut short, and a half-written
    # package can look complete.
    [ -f "$stamp" ] || reinstall=yes
    say "refreshing $venv"
  fi
  rm -f "$stamp"
  if [ -n "$reinstall" ] || ! is_suitable "$python"; then create_venv; fi
  install_packages "$reinstall"
  wanted >"$stamp.tmp"
  mv "$stamp.tmp" "$stamp"
  say 'environment is ready'
}

# One set-up at a time: a second call waits and then finds the work done.
with_lock() {
  local lock=$venv.lock
  if command -v flock >/dev/null; then
    (
      flock --nonblock 9 || { say 'waiting for another set-up'; flock 9; }
      "$@"
    ) 9>"$lock"
    return
  fi
  until mkdir "$lock.d" 2>/dev/null; do
    sleep 2
    is_running "$(cat "$lock.d/pid" 2>/dev/null)" || rm -rf "$lock.d"
  done
  (
    trap 'rm -rf "$lock.d"' EXIT
    echo $$ >"$lock.d/pid"
    "$@"
  )
}

is_running() { [ -n "$1" ] && kill -0 "$1" 2>/dev/null; }

set_up_if_stale() { is_fresh || set_up; }

is_fresh || with_lock set_up_if_stale

inside_checkout() { case "$(pwd -P)/" in "$root"/*) ;; *) false ;; esac; }

names_a_path() {
  local argument
  for argument; do [ ! -e "${argument%%::*}" ] || return 0; done
  return 1
}

if [ "$1" = pytest ] && ! inside_checkout && ! names_a_path "${@:2}"; then
  cd "$root"
fi

unset PYTHONHOME
export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
exec "$@"
