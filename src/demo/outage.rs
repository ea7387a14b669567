//! The tour's last act: what goes away one after the other, and who still answers.

use std::io::Write;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::Error;
use super::client::{counted, get};
use super::tour::{Mesh, OUTAGE, done, ensure, problem, served_by, title, until};

/// Addresses on the demo's local network, in the order of the devices.
pub(super) const fn address(device: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, 11 + device)
}

impl Mesh {
    /// Takes away the coordinator, the laptop's tailscaled and its cable, and brings all back.
    pub(super) async fn outage(&self, out: &mut dyn Write) -> Result<(), Error> {
        self.coordinator(out).await?;
        self.tailnet(out).await?;
        self.cable(out).await?;
        self.back_again(out).await
    }

    async fn coordinator(&self, out: &mut dyn Write) -> Result<(), Error> {
        const STEP: &str = "the coordinator";
        title(out, "8. Headscale dies on a Sunday", "the tailnet's coordinator goes away")?;
        // What comes later needs each to have met the other while there was a tailnet.
        let met = async || {
            self.lan_path("gpu").await == "standby" && self.lan_path("nas").await == "standby"
        };
        ensure(until(met).await, STEP, || "nobody was met on the local network".to_owned())?;
        self.net.coordinator(false);
        self.on_rung("coordinator_lost", STEP).await?;
        let answer = self.generate("count", 3).await?;
        ensure(answer.said() == counted(3), STEP, || problem(&answer))?;
        done(out, "`status` says so (rung coordinator_lost); everything else goes on.")
    }

    async fn tailnet(&self, out: &mut dyn Write) -> Result<(), Error> {
        const STEP: &str = "the tailnet";
        title(out, "9. And tailscaled with it", "on the laptop it is killed, too")?;
        self.laptop.daemon.kill();
        let from = tokio::time::Instant::now();
        let answer = self.generate("gpt-oss:20b", 100).await?;
        let took = from.elapsed().as_millis();
        ensure(answer.status == 200 && answer.said().trim() == OUTAGE, STEP, || problem(&answer))?;
        writeln!(out, "   {} answered over the local network after {took} ms", served_by(&answer))?;
        self.on_rung("tailnet_lost", STEP).await?;
        let by = async || self.lan_path("gpu").await == "up";
        ensure(until(by).await, STEP, || {
            "`status` shows no way over the local network".to_owned()
        })?;
        let answer = self.generate("count", 500).await?;
        ensure(answer.said() == counted(500) && answer.whole, STEP, || problem(&answer))?;
        done(out, "Each proves the key that the other pinned; a stranger there gets not a byte.")
    }

    async fn cable(&self, out: &mut dyn Write) -> Result<(), Error> {
        const STEP: &str = "alone";
        title(out, "10. And the cable", "the laptop's local network goes away as well")?;
        self.laptop.lan()?.cut(true);
        self.on_rung("alone", STEP).await?;
        let own = self.generate("qwen3:8b", 100).await?;
        ensure(own.status == 200 && served_by(&own) == "laptop", STEP, || problem(&own))?;
        let other = self.generate("gpt-oss:20b", 100).await?;
        let why = other.json()["error"].as_str().unwrap_or_default().to_owned();
        ensure(other.status >= 400 && why.contains("tailscaled does not answer"), STEP, || {
            problem(&other)
        })?;
        writeln!(out, "   gpt-oss:20b: {} {why}", other.status)?;
        done(out, "Its own model answers; the others say why they do not.")
    }

    async fn back_again(&self, out: &mut dyn Write) -> Result<(), Error> {
        const STEP: &str = "back";
        title(out, "11. Monday", "cable, tailscaled and coordinator come back")?;
        self.laptop.lan()?.cut(false);
        self.laptop.daemon.start()?;
        self.net.coordinator(true);
        let from = tokio::time::Instant::now();
        self.on_rung("full", STEP).await?;
        self.back("gpu", "count:latest").await?;
        self.back("nas", "gpt-oss:20b").await?;
        let tailnet = async || self.peer("gpu").await["path"] == "tailnet";
        ensure(until(tailnet).await, STEP, || "it stays on the local network".to_owned())?;
        let peers = self.status().await["peers"].as_array().map_or(0, Vec::len);
        ensure(peers == 2, STEP, || format!("{peers} peers, 2 expected"))?;
        done(
            out,
            &format!(
                "All as before after {} ms. Nothing was restarted.",
                from.elapsed().as_millis()
            ),
        )
    }

    async fn status(&self) -> Value {
        let answer = get(self.laptop.admin(), "/status").answer().await;
        answer.map(|a| a.json()).unwrap_or_default()
    }

    async fn on_rung(&self, rung: &str, step: &'static str) -> Result<(), Error> {
        let so = until(async || self.status().await["rung"] == rung).await;
        let now = self.status().await;
        ensure(so, step, || format!("`status` says {} and not {rung}", now["rung"]))
    }

    async fn peer(&self, name: &str) -> Value {
        let status = self.status().await;
        let peers = status["peers"].as_array();
        peers.into_iter().flatten().find(|p| p["name"] == name).cloned().unwrap_or(json!({}))
    }

    /// How the laptop's way to a peer on the local network stands.
    async fn lan_path(&self, name: &str) -> String {
        let peer = self.peer(name).await;
        let paths = peer["paths"].as_array();
        let lan = paths.into_iter().flatten().find(|p| p["kind"] == "lan");
        lan.and_then(|p| p["state"].as_str()).unwrap_or_default().to_owned()
    }
}
