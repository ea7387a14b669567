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
  # With an address of its own: a bridge without one takes it from a port, and carries it away when that port moves.
  ip -n "$R" link add br0 address 02:77:00:00:00:01 type bridge
  ip -n "$R" addr add 10.77.0.1/24 dev br0
  ip -n "$R" link set br0 up promisc on                  # so that whoever listens there hears all of the LAN
  inns "$R" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
  link "$P-coord" 10.77.1.2/24 10.77.1.1 coord0
  ip -n "$R" addr add 10.77.1.1/24 dev coord0
  for n in $NODES; do
    link "$P-$n" "10.77.0.$(node_index "$n")/24" 10.77.0.1 "lan-$n"
    ip -n "$R" link set "lan-$n" master br0
  done
}

# ---- the LAN ------------------------------------------------------------------------------------
# An other network that looks the same: same prefix, same gateway address, another gateway. It has a way to the coordinator.
cafe_up() {
  ns_exists "$P-cafe" && return 0
  ip netns add "$P-cafe"
  ip -n "$P-cafe" link set lo up
  ip -n "$P-cafe" link add br0 address 02:77:00:00:00:02 type bridge
  ip -n "$P-cafe" addr add 10.77.0.1/24 dev br0
  ip -n "$P-cafe" link set br0 up promisc on
  ip -n "$P-cafe" link add up0 type veth peer name cafe0 netns "$R"
  ip -n "$P-cafe" addr add 10.77.9.2/24 dev up0
  ip -n "$P-cafe" link set up0 up
  ip -n "$P-cafe" route add default via 10.77.9.1
  ip -n "$R" addr add 10.77.9.1/24 dev cafe0
  ip -n "$R" link set cafe0 up
  inns "$P-cafe" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward'
  inns "$P-cafe" nft 'add table ip out; add chain ip out post { type nat hook postrouting priority 100; }; add rule ip out post oif up0 masquerade'
}
port_at() { local ns; for ns in "$R" "$P-cafe"; do [[ -e /run/netns/$ns ]] && ip -n "$ns" link show "lan-$1" >/dev/null 2>&1 && { echo "$ns"; return; }; done; die "no port of $1"; }
# lan_plug NODE NAMESPACE: its cable ends at that network's switch, and it starts there as a device does. As with a cable or a
# Wi-Fi the network is lost first, and the other one is there LAB_GAP seconds later; the node's address and routes stay.
lan_plug() {
  local n=$1 at; at=$(port_at "$n")
  [[ $at != "$2" ]] || return 0
  ip -n "$at" link set "lan-$n" down
  ip -n "$at" link set "lan-$n" nomaster
  ip -n "$at" link set "lan-$n" netns "$2"
  ip -n "$2" link set "lan-$n" master br0
  sleep "${LAB_GAP:-0.3}"
  ip -n "$2" link set "lan-$n" up
  lease "$n"
}
# What a DHCP client does: it says a word to the gateway, which is how the kernel comes to know who that is.
lease() { ip -n "$P-$1" route replace default via 10.77.0.1; inns "$P-$1" bash -c 'echo > /dev/udp/10.77.0.1/67' || true; }
lan_move() { # lan_move NODE LAST: another address, as after a new lease
  ip -n "$P-$1" addr flush dev eth0 scope global
  ip -n "$P-$1" addr add "10.77.0.$2/24" dev eth0
  lease "$1"
}
lan() {
  local n=$2; node_index "$n" >/dev/null
  case $1 in
    cut) ip -n "$(port_at "$n")" link set "lan-$n" down ;;
    mend) ip -n "$(port_at "$n")" link set "lan-$n" up ;;
    apart) inns "$R" bridge link set dev "lan-$n" isolated on ;;
    together) inns "$R" bridge link set dev "lan-$n" isolated off ;;
    move) lan_move "$n" "$3" ;;
    cafe) cafe_up; lan_plug "$n" "$P-cafe" ;;
    home) lan_plug "$n" "$R" ;;
    *) die "lan $1?" ;;
  esac
}
lan_heal() {
  local n=$1
  lan home "$n"; lan mend "$n"; lan together "$n"
  ip -n "$P-$n" -o -4 addr show dev eth0 | grep -q "10.77.0.$(node_index "$n")/" || lan move "$n" "$(node_index "$n")"
  relayed off "$n"
}
# The tunnel between two nodes finds no direct way: nothing of the other's tailscaled arrives at the first.
relayed() { # relayed on NODE OTHER | relayed off NODE
  case $1 in
    on) inns "$P-$2" nft 'add table inet labrelay; add chain inet labrelay in { type filter hook input priority -300; policy accept; };
          flush table inet labrelay; add rule inet labrelay in iif eth0 ip saddr '"10.77.0.$(node_index "$3")"' udp dport 41641 drop' ;;
    off) inns "$P-$2" nft delete table inet labrelay 2>/dev/null || true ;;
    *) die "relayed $1?" ;;
  esac
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
