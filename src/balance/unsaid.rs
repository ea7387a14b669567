//! The line of loads at an engine that says nothing of it.
//!
//! In: what is known of the other models of an Ollama without a sidecar: what is in memory, and
//! what everybody has open there. Out: how long a model that is not in memory waits before its
//! load begins. Ollama loads one model at a time, whoever asked first; for that it lets go what is
//! idle, and if nothing is, it waits until something is.

use super::queue::GOES_ON;

/// Another model of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Mate {
    /// Requests there, everybody's.
    pub open: u32,
    /// Seconds for which those keep it busy, added up.
    pub left: f64,
    /// How many run side by side.
    pub slots: u32,
    /// Whether it is in memory.
    pub loaded: bool,
    /// Seconds that its load takes.
    pub load: f64,
}

/// Seconds until the load of a model begins that is asked for now: the loads that come first, and
/// the first of those in memory to fall idle, if all are busy. Whether it would fit beside them is
/// not known: then it waits less than is said here.
pub fn line(mates: impl Iterator<Item = Mate>) -> f64 {
    let (mut loads, mut drained, mut is_idle) = (0.0, f64::INFINITY, false);
    for mate in mates {
        match (mate.loaded, mate.open) {
            (true, 0) => is_idle = true,
            (true, open) => {
                let side_by_side = f64::from(open.min(mate.slots.max(1)));
                drained = drained.min(mate.left.max(0.0) / side_by_side);
            }
            (false, 0) => {}
            (false, _) => loads += mate.load.max(0.0),
        }
    }
    let frees = if is_idle || drained.is_infinite() { 0.0 } else { drained * GOES_ON };
    loads + frees
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Mate = Mate { open: 2, left: 12.0, slots: 1, loaded: true, load: 5.0 };
    const IDLE: Mate = Mate { open: 0, left: 0.0, ..BUSY };
    const COMES: Mate = Mate { loaded: false, ..BUSY };
    const COLD: Mate = Mate { loaded: false, ..IDLE };

    #[test]
    fn a_load_waits_for_those_before_it_and_for_a_model_to_fall_idle() {
        #[track_caller]
        fn check(mates: &[Mate], expect: f64) {
            assert_eq!(line(mates.iter().copied()), expect);
        }
        check(&[], 0.0);
        check(&[COLD, IDLE], 0.0);
        check(&[COLD, COMES, COMES], 10.0);
        check(&[BUSY], 12.0 * GOES_ON);
        check(&[BUSY, Mate { left: 3.0, ..BUSY }, COMES], 3.0 * GOES_ON + 5.0);
        check(&[Mate { slots: 4, ..BUSY }], 6.0 * GOES_ON);
        check(&[BUSY, IDLE], 0.0);
        check(&[Mate { left: f64::NAN, slots: 0, ..BUSY }], 0.0);
    }
}
