//! The tour: a laptop, a GPU box and a NAS, and what happens to them.
//!
//! Each step does one thing to the mesh, says in plain words what it did and what came of it,
//! and checks that this is what was promised. It talks to the laptop as any client would.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Error;
use super::client::{Answer, Call, Kept, counted, get, post, said};
use super::engine::{Engine, EngineSpec, ModelSpec};
use super::lan::Switch;
use super::node::{Node, NodeSpec};
use super::outage::address;
use super::tailscaled::{Owner, Tailnet};
use crate::types::Timing;

/// The demo's devices.
pub struct Mesh {
    pub(super) net: Tailnet,
    pub(super) laptop: Node,
    gpu: Node,
    nas: Node,
}

/// How long a step may wait for something to become true.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) const OUTAGE: &str =
    "It is fine. The model answers from another machine, and nobody noticed.";

impl Mesh {
    /// Switches three devices on.
    pub async fn start() -> Result<Mesh, Error> {
        let net = Tailnet::default();
        let me = || Owner::user("you@example.com");
        let server = || Owner::tag("tag:ollama");
        let speed = |spec: EngineSpec, token: u64| EngineSpec {
            token: Duration::from_millis(token),
            load: Duration::from_millis(150),
            ..spec
        };
        let qwen = || {
            ModelSpec::words("qwen3:8b", "Hello from a small model.").sized(5_200_000_000, "8.2B")
        };
        let oss = || {
            ModelSpec::words("gpt-oss:20b", OUTAGE).sized(13_800_000_000, "20.9B").window(131_072)
        };
        let count = ModelSpec::count("count").sized(1_100_000, "536K");
        let embed = ModelSpec::embed("nomic-embed-text").sized(274_000_000, "137M");
        let laptop = speed(EngineSpec::new("laptop", vec![qwen()]), 12);
        let gpu = speed(EngineSpec::new("gpu", vec![oss(), qwen(), count]), 3);
        let nas = speed(EngineSpec::new("nas", vec![oss(), embed]), 30);
        let timing = Timing::shrunk();
        let switch = Switch::default();
        let join = async |device: u8, name: &str, owner: Owner, engine| {
            let spec = NodeSpec::new(name, owner, Some(engine)).on(&switch, address(device));
            Node::join(&net, spec, timing.clone()).await
        };
        let laptop = join(0, "laptop", me(), laptop).await?;
        let gpu = join(1, "gpu", server(), gpu).await?;
        let nas = join(2, "nas", server(), nas).await?;
        for node in [&laptop, &gpu, &nas] {
            node.run().await?;
        }
        Ok(Mesh { net, laptop, gpu, nas })
    }

    /// Walks through all steps; the first one that does not keep its promise ends the tour.
    pub async fn tour(&self, out: &mut dyn Write) -> Result<(), Error> {
        self.list(out).await?;
        self.route(out).await?;
        self.count(out).await?;
        self.leave(out).await?;
        self.die_before(out).await?;
        self.die_within(out).await?;
        self.sleep(out).await?;
        self.outage(out).await
    }

    /// Says where the mesh can be tried.
    pub fn urls(&self, out: &mut dyn Write) -> Result<(), Error> {
        let (apps, admin) = (self.laptop.apps(), self.laptop.admin());
        writeln!(out, "The mesh stays up. Try it from another terminal:\n")?;
        writeln!(out, "  OLLAMA_HOST={apps} ollama list")?;
        writeln!(out, "  OLLAMA_HOST={apps} ollama run gpt-oss:20b hello")?;
        writeln!(out, "  curl http://{apps}/api/tags")?;
        writeln!(
            out,
            "  curl http://{apps}/api/generate -d '{{\"model\":\"count\",\"prompt\":\"go\",\"options\":{{\"num_predict\":50}}}}'"
        )?;
        writeln!(
            out,
            "  curl http://{apps}/v1/chat/completions -d '{{\"model\":\"gpt-oss:20b\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}'"
        )?;
        writeln!(out, "  curl http://{admin}/status")?;
        writeln!(out, "  curl http://{admin}/metrics")?;
        for node in [&self.gpu, &self.nas] {
            writeln!(
                out,
                "  {:8} apps http://{}   admin http://{}",
                node.name,
                node.apps(),
                node.admin()
            )?;
        }
        writeln!(out, "\nCtrl-C ends it; nothing is left behind.")?;
        Ok(())
    }

    async fn list(&self, out: &mut dyn Write) -> Result<(), Error> {
        title(out, "1. One list", "`ollama list` on the laptop, which has one model of its own")?;
        let everywhere = [
            ("count:latest", "gpu"),
            ("gpt-oss:20b", "gpu"),
            ("gpt-oss:20b", "nas"),
            ("nomic-embed-text:latest", "nas"),
            ("qwen3:8b", "laptop"),
            ("qwen3:8b", "gpu"),
        ];
        let whole = async || {
            let list = self.rows().await;
            everywhere.iter().all(|(model, on)| list.iter().any(|r| has(r, model, on)))
        };
        let all = until(whole).await;
        let rows = self.rows().await;
        ensure(all, "one list", || {
            let seen: Vec<String> =
                rows.iter().map(|r| format!("{} on {}", r["name"], nodes(r).join(", "))).collect();
            format!("not all models came: {}", seen.join("; "))
        })?;
        writeln!(out, "   {:26}{:16}{:10}ON", "NAME", "ID", "SIZE")?;
        for row in &rows {
            let text = |k: &str| row[k].as_str().unwrap_or_default();
            let size = row["size"].as_f64().unwrap_or_default() / 1e9;
            let id = text("digest").get(..12).unwrap_or_default();
            writeln!(
                out,
                "   {:26}{id:16}{:10}{}",
                text("name"),
                format!("{size:.1} GB"),
                nodes(row).join(", ")
            )?;
        }
        ensure(rows.len() == 4, "one list", || format!("{} rows, 4 expected", rows.len()))?;
        done(out, "Four models; the laptop downloaded one of them.")
    }

    async fn route(&self, out: &mut dyn Write) -> Result<(), Error> {
        title(
            out,
            "2. A model from elsewhere",
            "asking the laptop for gpt-oss:20b, which it does not have",
        )?;
        let answer = self.generate("gpt-oss:20b", 100).await?;
        let by = served_by(&answer).to_owned();
        ensure(answer.status == 200 && by != "laptop", "a model from elsewhere", || {
            problem(&answer)
        })?;
        writeln!(out, "   answered by {by}: {}", answer.said().trim())?;
        ensure(answer.said().trim() == OUTAGE, "a model from elsewhere", || problem(&answer))?;
        done(out, "Header x-tailherd-served-by says who it was.")
    }

    async fn count(&self, out: &mut dyn Write) -> Result<(), Error> {
        title(
            out,
            "3. Byte for byte",
            "a model that counts to 500, streamed from gpu through the laptop",
        )?;
        let answer = self.generate("count", 500).await?;
        let numbers = answer.said();
        ensure(numbers == counted(500) && answer.whole, "byte for byte", || problem(&answer))?;
        let sent = self.engine(&self.gpu)?.sent();
        ensure(sent.last().is_some_and(|s| *s == answer.body), "byte for byte", || {
            "what arrived is not what the engine sent".to_owned()
        })?;
        done(out, &format!("{} bytes: none lost, none doubled, none changed.", answer.body.len()))
    }

    async fn leave(&self, out: &mut dyn Write) -> Result<(), Error> {
        title(out, "4. Leaving", "the client hangs up at 20; would the GPU go on to a million?")?;
        let engine = self.engine(&self.gpu)?;
        let mut stream = self.call("count", 1_000_000).open().await?;
        let seen = stream.lines(20).await;
        drop(stream);
        let from = Instant::now();
        let stopped = engine.until(PATIENCE, |c| c.running == 0).await;
        ensure(stopped, "leaving", || "the engine went on".to_owned())?;
        let text = String::from_utf8_lossy(&seen).into_owned();
        ensure(said(&text).starts_with(&counted(20)), "leaving", || text)?;
        done(out, &format!("It stopped {} ms later.", from.elapsed().as_millis()))
    }

    async fn die_before(&self, out: &mut dyn Write) -> Result<(), Error> {
        title(
            out,
            "5. A machine dies",
            "the engine on gpu is killed; then gpt-oss:20b is asked for",
        )?;
        let engine = self.engine(&self.gpu)?;
        self.prefer_gpu().await?;
        engine.die();
        let from = Instant::now();
        let answer = self.generate("gpt-oss:20b", 100).await?;
        let took = from.elapsed().as_millis();
        ensure(answer.status == 200 && served_by(&answer) == "nas", "a machine dies", || {
            problem(&answer)
        })?;
        writeln!(out, "   answered by nas after {took} ms: {}", answer.said().trim())?;
        engine.revive().await?;
        self.back("gpu", "count:latest").await?;
        done(out, "No error reached the client.")
    }

    async fn die_within(&self, out: &mut dyn Write) -> Result<(), Error> {
        title(out, "6. A machine dies in mid-sentence", "gpu is killed while it counts")?;
        let engine = self.engine(&self.gpu)?;
        let mut stream = self.call("count", 1_000_000).open().await?;
        let mut body = stream.lines(7).await;
        engine.die();
        let rest = stream.rest().await;
        body.extend_from_slice(&rest.body);
        let text = String::from_utf8_lossy(&body).into_owned();
        let last = text.trim_end().lines().last().unwrap_or_default();
        writeln!(out, "   last line: {last}")?;
        let told = serde_json::from_str::<Value>(last).is_ok_and(|v| v["error"].is_string());
        ensure(told && rest.whole, "in mid-sentence", || text.clone())?;
        ensure(!text.contains("\"done\":true"), "in mid-sentence", || text.clone())?;
        engine.revive().await?;
        self.back("gpu", "count:latest").await?;
        done(out, "Half an answer never looks like a whole one: every client raises an error.")
    }

    async fn sleep(&self, out: &mut dyn Write) -> Result<(), Error> {
        title(
            out,
            "7. A machine falls asleep",
            "gpu stops answering in mid-request; its connections stay open",
        )?;
        let engine = self.engine(&self.gpu)?;
        self.prefer_gpu().await?;
        engine.slow(10_000.0);
        // Predictions that are near each other are drawn between: it may take more than one.
        let mut waiting = tokio::spawn(self.call("gpt-oss:20b", 100).answer());
        let mut there = false;
        for _ in 0..10 {
            there = engine.until(Duration::from_millis(300), |c| c.running > 0).await;
            if there {
                break;
            }
            waiting = tokio::spawn(self.call("gpt-oss:20b", 100).answer());
        }
        ensure(there, "asleep", || "no request went to gpu".to_owned())?;
        self.gpu.asleep(true);
        let from = Instant::now();
        let list_ms = self.list_ms().await?;
        ensure(list_ms < 100, "asleep", || format!("the list took {list_ms} ms"))?;
        let answer = waiting.await.map_err(|e| Error::step("asleep", e.to_string()))??;
        let moved = from.elapsed().as_millis();
        ensure(answer.status == 200 && served_by(&answer) == "nas", "asleep", || problem(&answer))?;
        writeln!(out, "   `ollama list` still took {list_ms} ms")?;
        writeln!(out, "   the request that waited there moved to nas after {moved} ms")?;
        self.gpu.asleep(false);
        engine.slow(1.0);
        self.back("gpu", "count:latest").await?;
        done(out, "Nobody waits for a machine that does not answer.")
    }

    /// How long a list takes, in milliseconds, on a connection that is open as `ollama list`
    /// has it after its first word: the best of three, for a machine busy with other things.
    async fn list_ms(&self) -> Result<u128, Error> {
        let mut kept = Kept::open(self.laptop.apps()).await?;
        kept.get("/").await?;
        let mut best = u128::MAX;
        for _ in 0..3 {
            let from = Instant::now();
            let status = kept.get("/api/tags").await?;
            ensure(status == 200, "asleep", || status.to_string())?;
            best = best.min(from.elapsed().as_millis());
        }
        Ok(best)
    }

    fn engine<'a>(&self, node: &'a Node) -> Result<&'a Engine, Error> {
        node.engine().ok_or_else(|| Error::step("start", format!("{} has no engine", node.name)))
    }

    fn call(&self, model: &str, n: u64) -> Call {
        let body = json!({"model": model, "prompt": "hello", "options": {"num_predict": n}});
        post(self.laptop.apps(), "/api/generate", body.to_string())
    }

    pub(super) async fn generate(&self, model: &str, n: u64) -> Result<Answer, Error> {
        Ok(self.call(model, n).answer().await?)
    }

    async fn rows(&self) -> Vec<Value> {
        let answer = get(self.laptop.apps(), "/api/tags").answer().await;
        let list = answer.map(|a| a.json()["models"].clone()).unwrap_or_default();
        list.as_array().cloned().unwrap_or_default()
    }

    /// Lets gpu, which is faster, be known for it: then it is chosen for gpt-oss:20b.
    async fn prefer_gpu(&self) -> Result<(), Error> {
        let chosen = async || {
            let pinned = self.generate("gpt-oss:20b@gpu", 100).await;
            let free = self.generate("gpt-oss:20b", 100).await;
            pinned.is_ok() && free.is_ok_and(|a| served_by(&a) == "gpu")
        };
        ensure(until(chosen).await, "choice", || "gpu is faster and never chosen".to_owned())
    }

    /// Waits until the laptop sees a model there again, and asks it there.
    pub(super) async fn back(&self, node: &str, model: &str) -> Result<(), Error> {
        let there = async || {
            let listed = self.rows().await.iter().any(|r| has(r, model, node));
            let pinned = format!("{model}@{node}");
            listed && self.generate(&pinned, 1).await.is_ok_and(|a| a.status == 200)
        };
        ensure(until(there).await, "recovery", || format!("{model} never came back on {node}"))
    }
}

pub(super) fn title(out: &mut dyn Write, name: &str, what: &str) -> Result<(), Error> {
    Ok(writeln!(out, "{name}: {what}")?)
}

pub(super) fn done(out: &mut dyn Write, what: &str) -> Result<(), Error> {
    writeln!(out, "   ok: {what}\n")?;
    Ok(out.flush()?)
}

pub(super) fn ensure(
    so: bool,
    step: &'static str,
    else_what: impl FnOnce() -> String,
) -> Result<(), Error> {
    if so { Ok(()) } else { Err(Error::step(step, else_what())) }
}

pub(super) fn problem(answer: &Answer) -> String {
    let text: String = answer.text().chars().take(300).collect();
    format!("{} by `{}`: {text}", answer.status, served_by(answer))
}

pub(super) fn served_by(answer: &Answer) -> &str {
    answer.header("x-tailherd-served-by").split('/').next().unwrap_or_default()
}

fn nodes(row: &Value) -> Vec<&str> {
    let list = row["mesh"]["nodes"].as_array();
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

fn has(row: &Value, model: &str, on: &str) -> bool {
    row["name"] == model && nodes(row).contains(&on)
}

pub(super) async fn until(mut so: impl AsyncFnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if so().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}
