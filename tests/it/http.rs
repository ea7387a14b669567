//! The demo's HTTP client, for tests: what cannot be sent or read fails the test.

pub(crate) use tailherd::demo::client::{Answer, Call, counted, get, items, post};

/// Sends a call and reads the whole answer, or fails the test.
pub(crate) trait Sends {
    /// The answer.
    async fn send(self) -> Answer;
}

impl Sends for Call {
    async fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.target);
        self.answer().await.unwrap_or_else(|e| panic!("{what}: {e}"))
    }
}
