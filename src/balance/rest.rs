//! How long a (node, model) that failed is left alone.

use std::time::Duration;

/// The rest after `failures` failures in a row: step by step, then the last step for good.
/// No failure, or no steps, means no rest.
pub fn rest(failures: u32, steps: &[Duration]) -> Duration {
    let Some(step) = failures.checked_sub(1) else { return Duration::ZERO };
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    steps.get(step).or(steps.last()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_step_by_step_and_stay_at_the_last() {
        let s = Duration::from_secs;
        let steps = [s(30), s(60), s(300)];
        for (failures, want) in [(0, 0), (1, 30), (2, 60), (3, 300), (4, 300), (u32::MAX, 300)] {
            assert_eq!(rest(failures, &steps), s(want), "{failures}");
        }
        assert_eq!(rest(3, &[]), Duration::ZERO);
    }
}
