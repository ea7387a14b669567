//! A request that has asked for a place and does not have it yet.
//!
//! In flow its place in the queue and the gate's answer to come; out flows a ticket, or why there
//! is none. Dropped before that, it leaves the queue, or gives the slot back that it was just
//! given: its request never ran.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::oneshot;

use super::ask::{Ask, Reason, Refusal};
use super::turnstile::{Gate, Place, Ticket};
use crate::balance::queue::WaiterId;
use crate::directory::Cell;
use crate::telemetry::{Counted, ModelMeter};
use crate::types::Moment;

/// What became of a request that asked for a place.
#[derive(Debug)]
pub enum Entered {
    /// It runs.
    Runs(Ticket),
    /// It waits.
    Waits(Waiting),
}

/// A request in the queue.
#[derive(Debug)]
pub struct Waiting {
    ask: Arc<Ask>,
    meter: Arc<ModelMeter>,
    began: Moment,
    answered: oneshot::Receiver<Result<(), Refusal>>,
    _queued: Counted,
    _counted: Waits,
    place: Place,
}

impl Waiting {
    pub(super) fn new(
        place: Place,
        ask: Arc<Ask>,
        meter: Arc<ModelMeter>,
        began: Moment,
        answered: oneshot::Receiver<Result<(), Refusal>>,
    ) -> Waiting {
        let (_queued, _counted) = (meter.queued(), Waits::new(&ask.cell));
        Waiting { ask, meter, began, answered, _queued, _counted, place }
    }

    /// Its place in the line, to look at while it waits.
    pub fn line(&self) -> Line {
        Line { gate: self.place.gate.clone(), id: self.place.id }
    }

    /// Waits for the place, and for the load that the request needs. Dropping the future gives it
    /// up; a load that was begun for it goes on.
    pub async fn ticket(self) -> Result<Ticket, Refusal> {
        let Waiting { ask, meter, began, answered, place, _queued, _counted } = self;
        match answered.await {
            Ok(Ok(())) => Ok(Ticket::new(place, ask, meter, began)),
            Ok(Err(refusal)) => {
                place.gone();
                Err(refusal)
            }
            // The gate answers everybody it has; it cannot go while `place` holds it.
            Err(_) => Err(Refusal { why: Reason::Wait, retry_after: Duration::ZERO }),
        }
    }
}

/// A place in the line of a gate.
#[derive(Debug)]
pub struct Line {
    gate: Arc<Gate>,
    id: WaiterId,
}

impl Line {
    /// How much longer its request will wait; `None` = it does not wait any more.
    pub fn left(&self) -> Option<Duration> {
        self.gate.left(self.id)
    }
}

/// Counts a waiting request in its cell.
#[derive(Debug)]
struct Waits(Arc<Cell>);

impl Waits {
    fn new(cell: &Arc<Cell>) -> Waits {
        cell.queued.fetch_add(1, Relaxed);
        Waits(cell.clone())
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Relaxed);
    }
}
