# The whole lab: up, down, and back to health between two cases. Sourced after daemons.sh.

up() {
  local n
  net_up
  for n in $NODES; do holder_up "$n"; done
  templates
  coord_up
  # What must never be sent is counted from before the first packet.
  count_up laptop to_colleague 'ip daddr 100.64.0.4'; count_up colleague to_laptop 'ip daddr 100.64.0.1'
  for n in $NODES; do tailscaled_up "$n"; done
  for n in $NODES; do tailnet_join "$n"; done      # one after the other, so that addresses are 100.64.0.1 … .4
  for n in $NODES; do wait_for 60 "address of $n" tailnet_ready "$n"; done
  for n in $NODES; do ollama_up "$n"; models "$n"; done
}

herd_up() { local n; for n in $NODES; do tailherd_up "$n"; done; whole; }

# The mesh is whole when laptop, colleague and nas list what they may.
whole() {
  wait_for 30 "laptop lists gpu and nas" lists laptop mine tiny slow second
  wait_for 30 "colleague lists gpu and nas" lists colleague theirs tiny second
  wait_for 30 "nas lists gpu" lists nas second tiny
  wait_for 30 "gpu lists nas" lists gpu tiny second
}

heal() {
  local n d
  for n in $NODES; do
    for d in tailscaled ollama tailherd; do alive "$LAB_DIR/$n/$d.pid" && kill -CONT "$(cat "$LAB_DIR/$n/$d.pid")"; done
    blackhole off "$n"
    rm -f "$LAB_DIR/$n/load-delay"
  done
  cmp -s <(policy_default) "$LAB_DIR/coord/policy.json" || policy default
  for n in $NODES; do
    tailscaled_up "$n"; ollama_up "$n"
    has_models "$n" || models "$n"
    [[ -n ${LAB_NO_HERD:-} ]] || tailherd_up "$n"
  done
  for n in $NODES; do wait_for 90 "address of $n" tailnet_ready "$n"; done
  [[ -n ${LAB_NO_HERD:-} ]] || whole
}

down() {
  local n
  for n in $NODES; do
    stop_pid "$LAB_DIR/$n/tailherd.pid"; stop_pid "$LAB_DIR/$n/ollama.pid"; stop_pid "$LAB_DIR/$n/tailscaled.pid" KILL
  done
  stop_pid "$LAB_DIR/coord/pid" KILL
  for n in $NODES; do stop_pid "$LAB_DIR/$n/holder.pid" KILL; done
  net_down
}
