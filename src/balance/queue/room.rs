//! What fits into an engine's memory, as far as that has been seen.
//!
//! Ollama does not say how much memory it may use, and it never refuses a load: it lets idle
//! models go for it, and waits for busy ones. So what was once in memory together fits, what
//! pushed something else out does not, and what nobody has tried yet is taken to fit. A wrong
//! guess costs a wait and is corrected by the next list that speaks against it.

use std::collections::HashMap;
use std::sync::Arc;

/// So many weights are remembered; an engine has fewer.
const MOST_SIZES: usize = 4096;

#[derive(Debug)]
pub(super) struct Room {
    sizes: HashMap<Arc<str>, u64>,
    /// The most bytes that were in memory together.
    fits: u64,
    /// The least that were too much.
    too_much: u64,
    /// The most models that were in memory together.
    together: usize,
    /// How many models it holds however small they are.
    most: usize,
}

impl Room {
    pub(super) fn new() -> Room {
        Room { sizes: HashMap::new(), fits: 0, too_much: u64::MAX, together: 0, most: usize::MAX }
    }

    /// The size of these weights; 0 = not known, and then nothing new is learned.
    pub(super) fn know(&mut self, weights: &Arc<str>, size: u64) {
        if size == 0 || self.sizes.get(weights) == Some(&size) {
            return;
        }
        if self.sizes.len() >= MOST_SIZES {
            self.sizes.clear();
        }
        self.sizes.insert(weights.clone(), size);
    }

    /// Whether these fit together. What is not known is taken to.
    pub(super) fn holds<'a>(&self, together: impl Iterator<Item = &'a Arc<str>>) -> bool {
        let (bytes, count) = self.sum(together);
        bytes < self.too_much && count <= self.most
    }

    /// Whether these surely fit together: as many bytes and as many models were seen to.
    pub(super) fn surely_holds<'a>(
        &self,
        together: impl Iterator<Item = &'a Arc<str>> + Clone,
    ) -> bool {
        let (bytes, count) = self.sum(together.clone());
        bytes <= self.fits
            && count <= self.together
            && together.clone().all(|one| self.sizes.contains_key(one))
            && self.holds(together)
    }

    /// These were in memory together.
    pub(super) fn held<'a>(&mut self, together: impl Iterator<Item = &'a Arc<str>>) {
        let (bytes, count) = self.sum(together);
        self.fits = self.fits.max(bytes);
        self.together = self.together.max(count);
        if self.fits >= self.too_much {
            self.too_much = u64::MAX;
        }
        if count > self.most {
            self.most = usize::MAX;
        }
    }

    /// These were not, although one was loaded while the others were there.
    pub(super) fn burst<'a>(&mut self, together: impl Iterator<Item = &'a Arc<str>>) {
        let (bytes, count) = self.sum(together);
        if bytes > self.fits {
            self.too_much = self.too_much.min(bytes);
        } else {
            self.most = self.most.min(count.saturating_sub(1)).max(1);
        }
    }

    fn sum<'a>(&self, weights: impl Iterator<Item = &'a Arc<str>>) -> (u64, usize) {
        weights.fold((0, 0), |(bytes, count), one| {
            (bytes + self.sizes.get(one).copied().unwrap_or(0), count + 1)
        })
    }
}
