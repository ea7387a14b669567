//! The daemon's notification bus, used as a bell: it says that something changed, never what.
//!
//! What changed is read from a status afterwards. The bus is optional: a daemon without it is
//! polled. It says nothing of a lost coordinator for minutes, so nothing may wait for it.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use memchr::memchr;
use rand::Rng as _;
use serde::de::IgnoredAny;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::LocalApi;

/// Initial state, health, peer changes: 2 + 128 + 4096.
const MASK: u32 = 4226;

/// Longer messages ring without being looked at.
const LONGEST: usize = 64 * 1024;

/// First and longest wait before the bus is opened again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

impl LocalApi {
    /// Rings whenever the daemon says that something changed, and when the bus itself is lost
    /// or found again. Rings that nobody has heard yet count as one. Ends when the receiver is
    /// dropped.
    pub fn bell(&self) -> mpsc::Receiver<()> {
        let (ring, rings) = mpsc::channel(1);
        let api = self.clone();
        tokio::spawn(async move {
            let mut wait = AGAIN.0;
            loop {
                let listened = tokio::select! {
                    heard = api.listen(&ring) => heard,
                    () = ring.closed() => return,
                };
                if listened {
                    wait = AGAIN.0;
                    let _ = ring.try_send(());
                }
                // Jitter: a restarted daemon should not be met by everybody at once.
                let part = rand::rng().random_range(0.5..1.5);
                tokio::select! {
                    () = sleep(wait.mul_f64(part)) => {}
                    () = ring.closed() => return,
                }
                wait = (wait * 2).min(AGAIN.1);
            }
        });
        rings
    }

    /// Listens until the bus ends. Whether anything was heard.
    async fn listen(&self, ring: &mpsc::Sender<()>) -> bool {
        let path = format!("/localapi/v0/watch-ipn-bus?mask={MASK}");
        let limit = self.transport.read_limit;
        let Ok((response, _task)) = self.transport.open(Method::GET, &path, &[], limit).await
        else {
            return false;
        };
        if !response.status().is_success() {
            return false;
        }
        let mut body = response.into_body();
        let mut line: Vec<u8> = Vec::new();
        let mut heard = false;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(mut data) = frame.data_ref().map(|d| &d[..]) else { continue };
            while let Some(end) = memchr(b'\n', data) {
                line.extend_from_slice(&data[..end]);
                data = &data[end + 1..];
                if says_something(&line) {
                    heard = true;
                    // Full = it rings already.
                    let _ = ring.try_send(());
                }
                line.clear();
            }
            // Of an overlong line only so much is kept that it is known to be one.
            let room = LONGEST.saturating_sub(line.len());
            line.extend_from_slice(&data[..data.len().min(room)]);
        }
        heard
    }
}

/// Whether a message holds more than its frame: messages with nothing in them are common.
fn says_something(line: &[u8]) -> bool {
    if line.len() >= LONGEST {
        return true;
    }
    match serde_json::from_slice::<BTreeMap<String, Option<IgnoredAny>>>(line) {
        Ok(fields) => fields
            .iter()
            .any(|(name, value)| value.is_some() && name != "Version" && name != "SessionID"),
        Err(_) => !line.iter().all(u8::is_ascii_whitespace),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_that_hold_something_ring() {
        for (line, want) in [
            ("", false),
            (r#"{"Version":"1","ErrMessage":null,"State":null}"#, false),
            (r#"{"Version":"1","SessionID":"x"}"#, false),
            (r#"{"Version":"1","State":6}"#, true),
            (r#"{"PeersRemoved":[3]}"#, true),
            ("nonsense", true),
        ] {
            assert_eq!(says_something(line.as_bytes()), want, "{line}");
        }
    }
}
