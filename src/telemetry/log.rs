//! Log lines on stderr, as text or one JSON object a line.
//!
//! Lines hold ids, sizes, times and enum words, at every level. Three things keep it so beyond
//! the care of those who write them: libraries are never heard below `info` (their `trace` may
//! hold bytes they move), a panic's message is not printed (it may quote the text it choked
//! on), and what would move a terminal's cursor is spelled out.

use std::io::{self, Write};

use tracing::Level;
use tracing_subscriber::filter::{EnvFilter, FilterExt, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::plain::is_odd;
use crate::config;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.level` is neither a level nor a filter.
    #[error(
        "log.level: `{level}` is neither a level (error, warn, info, debug, trace, off) nor a \
         filter such as `info,tailherd::proxy=debug`"
    )]
    Level {
        /// What was written.
        level: String,
    },
    /// Logging was set up before.
    #[error("logging was set up twice in this process")]
    Twice,
}

/// Sets up logging for the whole process, and silences what panics would print.
pub fn init(log: &config::Log) -> Result<(), LogError> {
    let layer = layer(log, || Inert(io::stderr()))?;
    tracing_subscriber::registry().with(layer).try_init().map_err(|_| LogError::Twice)?;
    std::panic::set_hook(Box::new(|info| {
        let at = info.location().map_or_else(String::new, ToString::to_string);
        tracing::error!(at, "a task panicked; its message is not shown, it may quote a request");
    }));
    Ok(())
}

/// Checks `log.level` without setting anything up.
pub fn check(log: &config::Log) -> Result<(), LogError> {
    filter(&log.level).map(|_| ())
}

fn layer<S, W, M>(log: &config::Log, out: M) -> Result<impl Layer<S>, LogError>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: Write,
    M: Fn() -> W + for<'a> MakeWriter<'a, Writer = W> + Send + Sync + 'static,
{
    let ours = filter_fn(|m| m.target().starts_with("tailherd") || *m.level() <= Level::INFO);
    let lines = tracing_subscriber::fmt::layer().with_writer(out).with_ansi(false);
    let lines = if log.json {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        lines.boxed()
    };
    Ok(lines.with_filter(filter(&log.level)?.and(ours)))
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let wrong = || LogError::Level { level: level.to_owned() };
    // A lone word is a level. EnvFilter would take a misspelled one as the name of a target.
    let text = match level.trim().to_ascii_lowercase().as_str() {
        word @ ("off" | "error") => word.to_owned(),
        word @ ("warn" | "info" | "debug" | "trace") => format!("warn,tailherd={word}"),
        text if text.contains(['=', ',']) => level.trim().to_owned(),
        _ => return Err(wrong()),
    };
    EnvFilter::try_new(text).map_err(|_| wrong())
}

/// A writer that lets no control or direction character through, but for the newline that ends
/// a line. `tracing-subscriber` gives it whole lines.
struct Inert<W>(W);

impl<W: Write> Write for Inert<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let body = text.strip_suffix('\n').unwrap_or(&text);
        if body.contains(is_odd) {
            let mut safe = String::with_capacity(line.len() + 32);
            for c in body.chars() {
                if is_odd(c) { safe.extend(c.escape_unicode()) } else { safe.push(c) }
            }
            safe.push('\n');
            self.0.write_all(safe.as_bytes())?;
        } else {
            self.0.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, json: bool, say: impl FnOnce()) -> String {
        let out = Shared::default();
        let log = config::Log { level: level.to_owned(), json };
        let layer = {
            let out = out.clone();
            layer(&log, move || Inert(out.clone())).unwrap()
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), say);
        let bytes = out.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_carries_the_request_id() {
        let say = || {
            let _span = tracing::info_span!("request", id = "7f3a").entered();
            tracing::info!(status = 200, "answered");
        };
        let text = logged("info", false, say);
        assert!(text.contains("request{id=\"7f3a\"}") && text.contains("status=200"), "{text}");
        let json = logged("info", true, say);
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(line["span"]["id"], "7f3a");
        assert_eq!(line["message"], "answered");
        assert_eq!(line["status"], 200);
    }

    #[test]
    fn libraries_are_never_heard_below_info() {
        for level in ["trace", "trace,hyper=trace"] {
            let text = logged(level, false, || {
                tracing::trace!(target: "hyper::proto", "bytes: the prompt");
                tracing::debug!(target: "rustls", "the key");
                tracing::trace!("ours");
                tracing::warn!(target: "hickory", "warned");
            });
            assert!(text.contains("ours") && text.contains("warned"), "{text}");
            assert!(!text.contains("the prompt") && !text.contains("the key"), "{text}");
        }
    }

    #[test]
    fn a_hostile_name_moves_no_cursor_and_makes_no_line() {
        let name = "a\u{1b}]52;c;x\u{7}\r\nFAKE line\u{202e}";
        let text = logged("info", false, || tracing::info!(model = %name, "{name}"));
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(text.ends_with('\n') && !text.trim_end_matches('\n').contains(is_odd), "{text:?}");
        let json = logged("info", true, || tracing::info!(model = %name, "x"));
        assert_eq!(json.matches('\n').count(), 1, "{json:?}");
        assert!(!json.trim_end_matches('\n').contains(is_odd), "{json:?}");
    }

    #[test]
    fn levels_and_filters_are_checked() {
        for (level, good) in [
            ("info", true),
            ("TRACE", true),
            ("off", true),
            ("info,tailherd::gate=debug", true),
            ("inof", false),
            ("", false),
            ("tailherd=verbose", false),
        ] {
            let log = config::Log { level: level.to_owned(), json: false };
            assert_eq!(check(&log).is_ok(), good, "{level}");
        }
    }
}
