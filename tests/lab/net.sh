# Namespaces and links of the lab. Names carry LAB_PREFIX, so several labs may run at once. Sourced after lib.sh.

P=${LAB_PREFIX:?}
R=$P-router
ns_exists() { [[ -e /run/netns/$1 ]]; }
inns() { local ns=$1; shift; ip netns exec "$ns" "$@"; }

link() { # link NAMESPACE ADDRESS/LEN GATEWAY ROUTER_PORT
  local ns=$1 addr=$2 gw=$3 port=$4
  ip netns add "$ns"
  ip -n "$ns" link set lo up
  ip -n "$R" link add "$port" type veth peer name eth0 netns "$ns"
  ip -n "$ns" link set eth0 up
  ip -n "$R" link set "$port" up
  ip -n "$ns" addr add "$addr" dev eth0
  ip -n "$ns" route add default via "$gw"
}

net_up() {
  local n
  ip netns add "$R"
  ip -n "$R" link set lo up
  ip -n "$R" link add br0 type bridge
  ip -n "$R" addr add 10.77.0.1/24 dev br0
  ip -n "$R" link set br0 up
  inns "$R" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
  link "$P-coord" 10.77.1.2/24 10.77.1.1 coord0
  ip -n "$R" addr add 10.77.1.1/24 dev coord0
  for n in $NODES; do
    link "$P-$n" "10.77.0.$(node_index "$n")/24" 10.77.0.1 "lan-$n"
    ip -n "$R" link set "lan-$n" master br0
  done
}

net_down() { # everything still inside the namespaces was started by the lab
  local ns p
  for ns in /run/netns/"$P"-*; do
    [[ -e $ns ]] || continue
    ns=$(basename "$ns")
    for p in $(ip netns pids "$ns" 2>/dev/null); do kill -KILL "$p" 2>/dev/null || true; done
    ip netns del "$ns" || true
  done
}

# A sleeping process per node keeps its mount namespace alive.
holder_up() {
  local n=$1 d=$LAB_DIR/$1
  mkdir -p "$d/etc" "$d/home" "$d/state" "$d/engine-home"
  chown $LAB_USER:$LAB_USER "$d/home"; chmod 700 "$d/home"
  ip netns exec "$P-$n" bash -c '
    mount --make-rprivate /
    mount -t tmpfs -o mode=755 tmpfs "$1/etc"
    cp -a /etc/. "$1/etc/"
    mount --bind "$1/etc" /etc
    umount /etc/resolv.conf 2>/dev/null; rm -f /etc/resolv.conf; : > /etc/resolv.conf
    printf "127.0.0.1 localhost %s\n" "$2" > /etc/hosts
    mount -t tmpfs -o mode=755 tmpfs /run
    [ -L /var/run ] || mount --bind /run /var/run
    : > /run/ready
    exec sleep infinity' holder "$d" "$n" > "$d/holder.log" 2>&1 & echo $! > "$d/holder.pid"; disown
  wait_for 10 "namespace of $n" nsenter -t "$(cat "$d/holder.pid")" -m -- test -e /run/ready
}
pid_of() { cat "$LAB_DIR/$1/holder.pid" 2>/dev/null || die "node $1 is not up"; }
node_exec() { local n=$1; shift; nsenter -t "$(pid_of "$n")" -m -n -- "$@"; }
app_exec() { local n=$1; shift; node_exec "$n" setpriv --reuid $APP_USER --regid $APP_USER --clear-groups "$@"; }

# A node falls silent: nothing in, nothing out on its cable; nobody is told.
blackhole() { # blackhole on|off NODE
  case $1 in
    on) inns "$P-$2" nft 'add table inet labhole; add chain inet labhole in { type filter hook input priority -300; policy accept; };
          add chain inet labhole out { type filter hook output priority -300; policy accept; };
          flush table inet labhole; add rule inet labhole in iif eth0 drop; add rule inet labhole out oif eth0 drop' ;;
    off) inns "$P-$2" nft delete table inet labhole 2>/dev/null || true ;;
    *) die "blackhole $1?" ;;
  esac
}

# count_up NODE NAME RULE: a named counter on what NODE sends, e.g. `count_up laptop leak 'oif eth0 ip daddr 100.64.0.0/10'`.
count_up() {
  inns "$P-$1" nft "add table inet labcount; add counter inet labcount $2;
    add chain inet labcount out { type filter hook output priority -200; policy accept; }; add rule inet labcount out $3 counter name $2"
}
count_of() { inns "$P-$1" nft -j list counter inet labcount "$2" | jq -r '.nftables[] | .counter? // empty | "\(.packets) \(.bytes)"'; }
