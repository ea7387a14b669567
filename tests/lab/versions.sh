# What the lab runs, pinned. A change here makes a new folder in the cache. Sourced by install and lib.sh.
# shellcheck disable=SC2034
TAILSCALE_VERSION=1.102.5        # the newest that Go 1.26 builds
HEADSCALE_VERSION=0.29.2
OLLAMA_VERSION=0.32.15
OLLAMA_OLD_VERSION=0.24.0        # the last one with the engine inside
MALGO_VERSION=0.11.24            # brings miniaudio.h, which Go module zips leave out of old Ollamas
XLLAMACPP_VERSION=2026.10.11549  # llama.cpp's server as a prebuilt wheel: the engine of the new Ollama
GGUF_VERSION=0.19.0
NUMPY_VERSION=2.4.6
PY_OLLAMA=0.6.3  PY_OPENAI=3.52.0  PY_ANTHROPIC=2.11.0
NPM_OLLAMA=0.6.4 NPM_OPENAI=6.49.0
OPENCLAW_VERSION=2026.9.6 OPENCLAW_NODE_VERSION=24.21.0  # needs Node >= 24.16
LITELLM_VERSION=1.106.2
