//! What a hosted answer costs.
//!
//! In flow the usage of an answer that has ended and the price in the configuration; out flow
//! dollars, into the provider's account and the metrics.

use std::sync::Arc;

use crate::api::ending::Usage;
use crate::config::{Cost, HostedModel, Provider};
use crate::directory::accounts::today;

use super::Proxy;

/// What is to be paid for an answer, once it has ended.
pub(crate) struct Bill {
    pub(crate) px: Arc<Proxy>,
    pub(crate) provider: Arc<Provider>,
    pub(crate) model: Arc<HostedModel>,
    /// Bytes of the prompt, for a provider that does not count.
    pub(crate) prompt: u64,
}

impl Bill {
    /// Pays for what was used. `items`: pieces of the answer, if nobody counted tokens.
    pub(crate) fn settle(&self, usage: &Usage, items: u64) {
        let usage = Usage {
            prompt_tokens: usage.prompt_tokens.or(Some(self.prompt / 4)),
            output_tokens: usage.output_tokens.or(Some(items)),
            ..*usage
        };
        let usd = price(&self.model.cost, &usage);
        if usd > 0.0 {
            self.px.accounts.paid(&self.provider, usd, today());
            self.px.metrics.cost(&self.provider.name, &self.model.id, usd);
        }
    }
}

/// Dollars for an answer.
fn price(cost: &Cost, usage: &Usage) -> f64 {
    let tokens = |n: Option<u64>| n.unwrap_or(0) as f64;
    let (read, written) = (tokens(usage.cached_tokens), tokens(usage.cache_writes));
    // What the cache gave is among the tokens of the prompt.
    let fresh = (tokens(usage.prompt_tokens) - read - written).max(0.0);
    let million = fresh * cost.input
        + read * cost.cache_read
        + written * cost.cache_write
        + tokens(usage.output_tokens) * cost.output;
    million / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_costs_what_its_tokens_cost() {
        let cost = Cost { input: 3.0, output: 15.0, cache_read: 0.3, cache_write: 3.75 };
        let usage = Usage {
            prompt_tokens: Some(1_000_000),
            cached_tokens: Some(400_000),
            cache_writes: Some(100_000),
            output_tokens: Some(200_000),
            ..Usage::default()
        };
        let usd = price(&cost, &usage);
        assert!((usd - (1.5 + 0.12 + 0.375 + 3.0)).abs() < 1e-9, "{usd}");
        assert_eq!(price(&Cost::default(), &usage), 0.0);
    }
}
