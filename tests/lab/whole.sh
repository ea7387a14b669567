# The whole lab: up, down, and back to health between two cases. Sourced after daemons.sh.

up() {
  local n
  net_up
  for n in $NODES; do holder_up "$n"; done
  templates
  coord_up
  people
  counters
  for n in $NODES; do tailscaled_up "$n"; done
  for n in $NODES; do tailnet_join "$n"; done      # one after the other, so that addresses are 100.64.0.1 … .4
  for n in $NODES; do wait_for 60 "address of $n" tailnet_ready "$n"; done
  [[ $LAB_SET == mesh ]] || remember
  for n in $NODES; do ollama_up "$n"; models "$n"; done
}
# What must never be sent is counted from before the first packet.
counters() {
  local n
  count_up laptop to_colleague 'ip daddr 100.64.0.4'; count_up colleague to_laptop 'ip daddr 100.64.0.1'
  [[ $LAB_SET == ladder ]] || return 0
  for n in $NODES; do
    count_up "$n" leak 'oifname "eth0" ip daddr 100.64.0.0/10'
    count_up "$n" ours "oifname \"eth0\" meta skuid $LAB_USER"
  done
}

herd_up() { local n; for n in $NODES; do tailherd_up "$n"; done; whole; }

# The mesh is whole when every node lists what it may.
whole() {
  [[ $LAB_SET == mesh ]] || { ladder_whole; return; }
  wait_for 30 "laptop lists gpu and nas" lists laptop mine tiny slow second
  wait_for 30 "colleague lists gpu and nas" lists colleague theirs tiny second
  wait_for 30 "nas lists gpu" lists nas second tiny
  wait_for 30 "gpu lists nas" lists gpu tiny second
}

# A tailscaled that lost its coordinator tries again ever more rarely; a case waits for that where it is the question.
soon_online() {
  local n=$1 end=$((SECONDS + 5))
  until tailnet_ready "$n" 2>/dev/null; do
    (( SECONDS < end )) || { stop_pid "$LAB_DIR/$n/tailscaled.pid"; tailscaled_up "$n"; return; }
    sleep 0.2
  done
}

ladder_whole() {
  local n
  for n in laptop desk attic; do wait_for 60 "$n lists the others" lists "$n" mine second third tiny; done
  wait_for 30 "colleague lists gpu" lists colleague theirs tiny
}

heal() {
  local n d
  blackhole off coord
  restore
  coord_up
  for n in $NODES; do
    for d in tailscaled ollama tailherd; do alive "$LAB_DIR/$n/$d.pid" && kill -CONT "$(cat "$LAB_DIR/$n/$d.pid")"; done
    blackhole off "$n"
    [[ $LAB_SET == mesh ]] || lan_heal "$n"
    rm -f "$LAB_DIR/$n/load-delay"
  done
  cmp -s <(policy_default) "$LAB_DIR/coord/policy.json" || policy default
  for n in $NODES; do
    tailscaled_up "$n"; ollama_up "$n"
    has_models "$n" || models "$n"
    [[ -n ${LAB_NO_HERD:-} ]] || { [[ ! -e $LAB_DIR/$n/home/.config/tailherd ]] || configure "$n" none; tailherd_up "$n"; }
  done
  for n in $NODES; do soon_online "$n"; done
  for n in $NODES; do wait_for 90 "address of $n" tailnet_ready "$n"; done
  [[ -n ${LAB_NO_HERD:-} ]] || whole
}

down() {
  local n
  for n in $NODES; do
    stop_pid "$LAB_DIR/$n/tailherd.pid"; stop_pid "$LAB_DIR/$n/ollama.pid"; stop_pid "$LAB_DIR/$n/tailscaled.pid" KILL
  done
  stop_pid "$LAB_DIR/coord/pid" KILL; stop_pid "$LAB_DIR/second/pid" KILL
  for n in $NODES; do stop_pid "$LAB_DIR/$n/holder.pid" KILL; done
  net_down
}
