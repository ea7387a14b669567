//! A spawned task that ends with its owner.

use std::future::Future;

use tokio::task::JoinHandle;

/// A task that is aborted when this value is dropped, and with it everything it holds: the
/// socket of an HTTP connection closes as soon as nobody owns the connection any more.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);

impl Task {
    /// Runs `future` until it ends or this value is dropped.
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Task {
        Task(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
