# Words every part of the lab uses. Sourced; needs bash, set -euo pipefail and, once the lab is up, LAB_DIR.
#
# Two meshes, one at a time: LAB_SET names it, the file `set` in LAB_DIR keeps it.
#
#                       router namespace (bridge 10.77.0.1, forwards, no way out)
#          LAN 10.77.0.0/24 |                                | 10.77.1.0/24
#   the nodes, from .11 on in their order           coordinator .2 (Headscale with its embedded relay)
#
# mesh     laptop     belongs to "me"; its own Ollama has the model `mine`
#          gpu        tag:ollama; tiny count tools think embed shared slow
#          nas        tag:ollama, tailscaled in userspace mode; second third shared
#          colleague  belongs to "dev", another person; `theirs`
# ladder   laptop     belongs to "me"; `mine`
#          desk       belongs to "me", too; `second` `shared`
#          gpu        tag:ollama; tiny count shared
#          colleague  belongs to "dev"; `theirs`
#          attic      belongs to "me"; `third`
#
# Every node has its own network and mount namespace (private /etc and /run, so that the daemon's DNS changes never touch
# the machine and LocalAPI's socket lies at its usual path), its own tailscaled, Ollama on 127.0.0.1:11435 and tailherd
# without a configuration file. Nothing reaches the machine's own network: the router has no uplink.
lab_src=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$lab_src/../.." && pwd)
. "$lab_src/versions.sh"

[[ ! -e ${LAB_DIR:-}/set ]] || LAB_SET=$(cat "$LAB_DIR/set")
case ${LAB_SET:=mesh} in
  mesh) NODES="laptop gpu nas colleague" TAGGED="gpu nas" USERSPACE="nas" ;;
  ladder) NODES="laptop desk gpu colleague attic" TAGGED="gpu" USERSPACE="" ;;
  *) echo "lab: no mesh $LAB_SET" >&2; exit 1 ;;
esac
LAB_USER=20001                     # tailherd runs as nobody in particular, as a service would
APP_USER=20002                     # and so do the programs that use it: in userspace mode it tells them from tailscaled by that
COORD=http://10.77.1.2:8080

say() { printf '%s\n' "$*" >&2; }
die() { say "lab: $*"; exit 1; }
has() { case " $2 " in *" $1 "*) true ;; *) false ;; esac; }
# A process that ended and was not yet collected by its parent is not alive.
runs() { [[ -n $1 && $(sed -n 's/^State:\s*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) =~ ^[^ZX]$ ]]; }
alive() { runs "$(cat "$1" 2>/dev/null)"; }
owner_of() { [[ $1 == colleague ]] && echo dev || echo me; }
node_index() { local i=11 n; for n in $NODES; do [[ $n == "$1" ]] && { echo $i; return; }; i=$((i + 1)); done; die "no node $1"; }

wait_for() { # wait_for SECONDS WHAT CMD...
  local t=$1 what=$2 end; shift 2
  end=$((SECONDS + t))
  until "$@" >/dev/null 2>&1; do
    (( SECONDS < end )) || die "$what: not within $t s"
    sleep 0.1
  done
}

# Daemons are started with plain `ip netns exec` or `nsenter`, which exec, so that $! is the daemon itself.
# stop_pid FILE [SIGNAL]: end one process that the lab started, wait for it, kill it at last.
stop_pid() {
  local f=$1 sig=${2:-TERM} p end=$((SECONDS + 6))
  alive "$f" || { rm -f "$f"; return 0; }
  p=$(cat "$f"); kill -CONT "$p" 2>/dev/null || true; kill -"$sig" "$p" 2>/dev/null || true
  while runs "$p"; do
    (( SECONDS < end )) || { kill -KILL "$p" 2>/dev/null || true; break; }
    sleep 0.05
  done
  rm -f "$f"
}
