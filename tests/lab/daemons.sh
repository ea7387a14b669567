# The real daemons: Headscale, tailscaled, Ollama, and ours. Sourced after net.sh.

part() { "$lab_src/install" --dir "$1"; }
# Where the parts lie is asked once a lab: a fault must not wait for that.
[[ -e $LAB_DIR/parts ]] || echo "tailnet_bin=$(part tailnet) ollama_dir=$(part ollama)" > "$LAB_DIR/parts"
. "$LAB_DIR/parts"
OLLAMA=$ollama_dir/bin/ollama
# LAB_OLLAMA_GPU: another Ollama for that one node
ollama_of() { if [[ $1 == gpu && -n ${LAB_OLLAMA_GPU:-} ]]; then echo "$LAB_OLLAMA_GPU"; else echo "$OLLAMA"; fi; }

# ---- coordinator --------------------------------------------------------------------------------
policy_default() {
  cat <<'JSON'
{
  "tagOwners": {"tag:ollama": ["me@"]},
  "grants": [{"src": ["*"], "dst": ["*"], "ip": ["*"]}]
}
JSON
}

coord_config() {
  local d=$LAB_DIR/coord; mkdir -p "$d"
  cat > "$d/config.yaml" <<YAML
server_url: $COORD
listen_addr: 10.77.1.2:8080
metrics_listen_addr: 127.0.0.1:9090
grpc_listen_addr: 127.0.0.1:50443
noise: {private_key_path: $d/noise.key}
prefixes: {v4: 100.64.0.0/10, v6: fd7a:115c:a1e0::/48, allocation: sequential}
derp:
  server:
    enabled: true
    region_id: 999
    region_code: lab
    region_name: Lab embedded
    verify_clients: true
    stun_listen_addr: 0.0.0.0:3478
    private_key_path: $d/derp.key
    automatically_add_embedded_derp_region: true
    ipv4: 10.77.1.2
  urls: []
  paths: []
  auto_update_enabled: false
disable_check_updates: true
node: {expiry: 0, ephemeral: {inactivity_timeout: 30m}}
database: {type: sqlite, sqlite: {path: $d/db.sqlite, write_ahead_log: true}}
log: {level: info, format: text}
policy: {mode: file, path: $d/policy.json}
dns:
  magic_dns: true
  base_domain: lab.test
  override_local_dns: false
  nameservers: {global: []}
logtail: {enabled: false}
unix_socket: $d/headscale.sock
unix_socket_permission: "0700"
YAML
  policy_default > "$d/policy.json"
}

hs() { inns "$P-coord" "$tailnet_bin/headscale" -c "$LAB_DIR/coord/config.yaml" "$@"; }

coord_up() {
  local d=$LAB_DIR/coord
  alive "$d/pid" && return 0
  [[ -e $d/config.yaml ]] || coord_config
  ip netns exec "$P-coord" "$tailnet_bin/headscale" -c "$d/config.yaml" serve >> "$d/log" 2>&1 & echo $! > "$d/pid"; disown
  wait_for 30 headscale inns "$P-coord" curl -fsS -m 2 "$COORD/health"
}
people() { local u; for u in me dev; do hs users create $u >/dev/null 2>&1; done; }
policy() { # policy FILE|default: every node hears of it within 3 s; one that is away reads it when it is started
  if [[ $1 == default ]]; then policy_default > "$LAB_DIR/coord/policy.json"; else cp "$1" "$LAB_DIR/coord/policy.json"; fi
  ! alive "$LAB_DIR/coord/pid" || kill -HUP "$(cat "$LAB_DIR/coord/pid")"
}

# ---- what cannot be taken back by a command: a node removed, expired, logged out ----------------
# Kept once when all have joined: the coordinator's book and what each tailscaled knows of itself.
book() { python3 -c 'import sqlite3, sys; a, b = map(sqlite3.connect, sys.argv[1:]); a.backup(b); b.close()' "$1" "$2"; }
remember() {
  local n
  book "$LAB_DIR/coord/db.sqlite" "$LAB_DIR/coord/db.kept"
  for n in $NODES; do cp -a "$LAB_DIR/$n/state" "$LAB_DIR/$n/state.kept"; done
}
changed() { : > "$LAB_DIR/changed"; }
restore() { # back to what `remember` kept, if something was changed since
  local n d=$LAB_DIR/coord
  [[ -e $LAB_DIR/changed ]] || return 0
  for n in $NODES; do stop_pid "$LAB_DIR/$n/tailscaled.pid"; done
  stop_pid "$d/pid"; stop_pid "$LAB_DIR/second/pid"; rm -rf "$LAB_DIR/second"
  rm -f "$d"/db.sqlite*; cp "$d/db.kept" "$d/db.sqlite"
  for n in $NODES; do rm -rf "$LAB_DIR/$n/state"; cp -a "$LAB_DIR/$n/state.kept" "$LAB_DIR/$n/state"; done
  rm "$LAB_DIR/changed"
}
# A second coordinator, another person's or a firm's: nobody is in its tailnet but who goes there.
work() { # work NODE: logs the node in there, too, and switches to it; the login of before is kept
  local d=$LAB_DIR/second n=$1 key
  changed
  if ! alive "$d/pid"; then
    mkdir -p "$d"
    sed "s#$LAB_DIR/coord#$d#; s/:8080/:8081/; s/:9090/:9091/; s/:50443/:50444/; s/:3478/:3479/; s/region_id: 999/region_id: 998/; s/lab.test/work.test/" "$LAB_DIR/coord/config.yaml" > "$d/config.yaml"
    policy_default > "$d/policy.json"
    ip netns exec "$P-coord" "$tailnet_bin/headscale" -c "$d/config.yaml" serve >> "$d/log" 2>&1 & echo $! > "$d/pid"; disown
    wait_for 30 "the second headscale" inns "$P-coord" curl -fsS -m 2 "${COORD/8080/8081}/health"
    inns "$P-coord" "$tailnet_bin/headscale" -c "$d/config.yaml" users create me >/dev/null 2>&1
  fi
  key=$(inns "$P-coord" "$tailnet_bin/headscale" -c "$d/config.yaml" preauthkeys create -u 1 -e 1h -o json | jq -r .key)
  ts "$n" login --login-server="${COORD/8080/8081}" --authkey="$key" --hostname="$n" --timeout=60s
}
node_id() { hs nodes list -o json | jq -r --arg n "$1" '.[] | select(.given_name == $n) | .id'; }
remove() { changed; hs nodes delete -i "$(node_id "$1")" --force; }
expire() { changed; hs nodes expire -i "$(node_id "$1")" --expiry "$(date -u -d "+$2 seconds" +%FT%TZ)" --force; } # expire NODE SECONDS
forget_login() { # as after a logout that the coordinator never heard of
  changed; stop_pid "$LAB_DIR/$1/tailscaled.pid"; rm -rf "$LAB_DIR/$1/state"; mkdir "$LAB_DIR/$1/state"; tailscaled_up "$1"
}

# ---- tailscaled: its socket lies at the usual path, inside the node -----------------------------
ts() { local n=$1; shift; node_exec "$n" "$tailnet_bin/tailscale" "$@"; }
api() { local n=$1 path=$2; shift 2; node_exec "$n" curl -sS -m 3 --unix-socket /var/run/tailscale/tailscaled.sock "$@" "http://local-tailscaled.sock$path"; }
tailnet_ready() { [[ $(api "$1" '/localapi/v0/status?peers=false' | jq -r '.Self.Online') == true ]]; }
node_ip() { api "$1" '/localapi/v0/status?peers=false' | jq -r '.TailscaleIPs[0]'; }

tailscaled_up() {
  local n=$1 d=$LAB_DIR/$1 tun=tailscale0
  alive "$d/tailscaled.pid" && return 0
  has "$n" "$USERSPACE" && tun=userspace-networking
  TS_DEBUG_USE_DERP_HTTP=1 TS_NO_LOGS_NO_SUPPORT=true TS_LOGS_DIR=$d/state \
  nsenter -t "$(pid_of "$n")" -m -n -- "$tailnet_bin/tailscaled" --no-logs-no-support --statedir="$d/state" \
    --state="$d/state/tailscaled.state" --port=41641 --tun=$tun >> "$d/tailscaled.log" 2>&1 & echo $! > "$d/tailscaled.pid"; disown
  wait_for 20 "tailscaled of $n" api "$n" '/localapi/v0/status?peers=false' -f
}

tailnet_join() {
  local n=$1 key uid tags=()
  uid=$(hs users list -o json | jq -r --arg u "$(owner_of "$n")" '.[] | select(.name == $u) | .id')
  has "$n" "$TAGGED" && tags=(--tags tag:ollama)
  key=$(hs preauthkeys create -u "$uid" -e 1h -o json "${tags[@]}" | jq -r .key)
  ts "$n" up --login-server="$COORD" --authkey="$key" --hostname="$n" --timeout=60s
}

# ---- Ollama -------------------------------------------------------------------------------------
# load-delay in the node's folder: seconds every load takes more (engine/llama_server.py)
ollama_up() {
  local n=$1 d=$LAB_DIR/$1
  alive "$d/ollama.pid" && return 0
  mkdir -p "$d/models"
  HOME=$d/engine-home OLLAMA_HOST=127.0.0.1:11435 OLLAMA_MODELS=$d/models OLLAMA_NO_CLOUD=1 LAB_LOAD_DELAY=$d/load-delay \
  nsenter -t "$(pid_of "$n")" -m -n -- "$(ollama_of "$n")" serve >> "$d/ollama.log" 2>&1 & echo $! > "$d/ollama.pid"; disown
  wait_for 20 "Ollama of $n" node_exec "$n" curl -fsS -m 1 http://127.0.0.1:11435/
}
# the CLI of a node, against its tailherd unless OLLAMA_HOST says otherwise
ollama_cli() { local n=$1; shift; HOME=$LAB_DIR/$n/engine-home node_exec "$n" "$(ollama_of "$n")" "$@"; }

templates() { # the last token of the rendered prompt chooses the answer: engine/make_tiny_gguf.py
  local t=$LAB_DIR/templates; mkdir -p "$t"
  printf '%s' '{{ if .System }}<|system|>{{ .System }}{{ end }}{{ if .Prompt }}<|user|>{{ .Prompt }}{{ end }}<|reply|>{{ .Response }}' > "$t/plain"
  printf '%s' '{{ if .Prompt }}<|user|>{{ .Prompt }}{{ end }}<|count|>{{ .Response }}' > "$t/count"
  printf '%s' '{{ .Prompt }}' > "$t/embed"
  # says the tool call while tools are offered and the last message is the user's; a plain answer after a tool's result
  cat > "$t/tools" <<'X'
{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|user|>{{ .Content }}{{ if $last }}{{ if $.Tools }}<|tool|>{{ else }}<|reply|>{{ end }}{{ end }}
{{- else if eq .Role "assistant" }}{{ .Content }}{{ if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }}
{{- else if eq .Role "tool" }}<|result|>{{ .Content }}{{ if $last }}<|answer|>{{ end }}
{{- end }}{{- end }}
X
  # an agent's: asks to read a file, and answers once a tool's result is there; of the prompt itself nothing counts
  cat > "$t/read" <<'X'
{{- $told := false }}
{{- range .Messages }}
{{- if eq .Role "tool" }}{{ $told = true }}
{{- else if .ToolCalls }}<tool_call>{{ range .ToolCalls }}{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}{{ end }}</tool_call>{{ end }}
{{- end }}
{{- if $told }}<|answer|>{{ else if .Tools }}<|read|>{{ else }}<|reply|>{{ end }}
X
  # the whole prompt counts, a token for each byte
  printf '%s' '{{ range .Messages }}{{ .Content }}{{ end }}<|reply|>' > "$t/whole"
  cat > "$t/think" <<'X'
{{- range $i, $m := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|user|>{{ .Content }}{{ if $last }}<|think|>{{ end }}
{{- else if eq .Role "assistant" }}{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}
{{- end }}{{- end }}
X
}

model() { # model NODE NAME GGUF TEMPLATE [PARAMETER VALUE]
  local f=$LAB_DIR/$1/Modelfile.$2
  { echo "FROM $ollama_dir/gguf/$3.gguf"; printf 'TEMPLATE """%s"""\n' "$(cat "$LAB_DIR/templates/$4")"; [[ -z ${5:-} ]] || echo "PARAMETER $5 $6"; } > "$f"
  OLLAMA_HOST=127.0.0.1:11435 ollama_cli "$1" create "$2" -f "$f" > "$f.log" 2>&1 || { cat "$f.log" >&2; die "model $2 on $1"; }
}

# model, GGUF, template
models_of() {
  case $1 in
    laptop) echo "mine mine plain" ;;
    desk) printf '%s\n' "second second plain" "shared shared count" ;;
    gpu) [[ $LAB_SET == ladder ]] && printf '%s\n' "tiny tiny plain" "count tiny count" "shared shared count" || printf '%s\n' "tiny tiny plain" "count tiny count" "tools tiny tools" "think tiny think" "embed embed embed" "shared shared count" "slow slow count" ;;
    nas) printf '%s\n' "second second plain" "third third count" "shared shared count" ;;
    colleague) echo "theirs theirs plain" ;;
    attic) echo "third third plain" ;;
  esac
}
models() { local m; while read -r -a m; do model "$1" "${m[@]}" < /dev/null; done < <(models_of "$1"); }
has_models() { cmp -s <(models_of "$1" | cut -d' ' -f1 | sort) <(node_exec "$1" curl -fsS -m 2 http://127.0.0.1:11435/api/tags | jq -r '.models[].name | rtrimstr(":latest")' | sort); }

# ---- tailherd: no configuration file, own HOME, no privilege; NODE/env holds what else its environment says -----
tailherd_up() {
  local n=$1 d=$LAB_DIR/$1
  alive "$d/tailherd.pid" && return 0
  nsenter -t "$(pid_of "$n")" -m -n -- setpriv --reuid $LAB_USER --regid $LAB_USER --clear-groups \
    env -i HOME="$d/home" PATH=/usr/bin:/bin TAILHERD_LOG="${LAB_LOG:-info}" RUST_BACKTRACE=1 $(cat "$d/env" 2>/dev/null) "$LAB_DIR/bin/tailherd" \
    >> "$d/tailherd.log" 2>&1 & echo $! > "$d/tailherd.pid"; disown
  wait_for 15 "tailherd of $n" app_exec "$n" curl -fsS -m 1 http://127.0.0.1:11434/
}
configure() { # configure NODE FILE|none: a configuration of its own, or none again; its tailherd starts anew with it
  local n=$1 d=$LAB_DIR/$1/home/.config/tailherd
  stop_pid "$LAB_DIR/$n/tailherd.pid"
  rm -rf "$d"
  if [[ $2 != none ]]; then mkdir -p "$d"; cp "$2" "$d/config.json5"; chown -R $LAB_USER:$LAB_USER "$LAB_DIR/$n/home/.config"; fi
  tailherd_up "$n"
}
tailherd_cli() { # the command as the node's own user
  local n=$1 d=$LAB_DIR/$1; shift
  node_exec "$n" setpriv --reuid $LAB_USER --regid $LAB_USER --clear-groups env -i HOME="$d/home" PATH=/usr/bin:/bin "$LAB_DIR/bin/tailherd" "$@"
}

# lists NODE MODEL…: does its tailherd list them all?
lists() {
  local n=$1 m have; shift
  have=$(app_exec "$n" curl -fsS -m 2 http://127.0.0.1:11434/api/tags | jq -r '.models[].name') || return 1
  for m; do grep -qx "$m:latest" <<< "$have" || return 1; done
}

daemon_up() { # daemon_up WHAT NODE
  case $1 in headscale) coord_up ;; tailscaled) tailscaled_up "$2" ;; ollama) ollama_up "$2" ;; tailherd) tailherd_up "$2" ;; *) die "no daemon $1" ;; esac
}
