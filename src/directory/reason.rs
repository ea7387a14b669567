//! Why a request goes where it goes, in the few words of `requests`.
//!
//! In flows a choice as it was made; out flows a [`Reason`]: numbers, which become words when
//! somebody reads them. One is kept for each request, and hardly any is ever read.

use std::fmt;

use super::weigh::{Scales, behind, span};
use crate::balance::{Candidate, Pick, Terms, verdicts};
use crate::types::NodeName;

/// Why that one was taken: `loaded, 0.4 s; desk would wait 12 s`.
#[derive(Debug, Clone)]
pub struct Reason {
    /// Why there was no choice, if there was none.
    only: &'static str,
    state: &'static str,
    terms: Terms,
    /// Among how many chance took it.
    drawn: Option<usize>,
    /// What would have been next, and what that would have taken.
    next: Option<(NodeName, Terms)>,
}

impl Reason {
    /// Of a pick among these candidates. `pinned`: somebody named its node.
    pub fn of(scales: &Scales<'_>, numbers: &[Candidate], pick: &Pick, pinned: bool) -> Reason {
        let chosen = numbers.iter().find(|c| c.index == pick.index);
        let is = |what: fn(&Candidate) -> bool| chosen.is_some_and(what);
        let terms = pick.terms;
        let drawn = (pick.among > 1 && !is(|c| c.is_local)).then_some(pick.among);
        let next = || {
            let order = verdicts(numbers, scales.ask, scales.now);
            let next = order.iter().find(|v| v.index != pick.index)?;
            Some((scales.offers.get(next.index)?.node.name.clone(), next.terms))
        };
        Reason {
            only: match (pinned, numbers.len()) {
                (true, _) => "pinned, ",
                (false, 0 | 1) if scales.offers.len() > 1 => "only node left, ",
                (false, 0 | 1) => "only node, ",
                _ => "",
            },
            state: match (is(|c| c.loaded_ctx > 0), terms.load > 0.0, is(|c| c.loading)) {
                (true, true, _) => "loads anew",
                (true, false, _) => "loaded",
                (false, _, true) => "loading",
                (false, ..) => "loads",
            },
            terms,
            next: if drawn.is_none() && numbers.len() > 1 { next() } else { None },
            drawn,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}, {}", self.only, self.state, span(self.terms.total))?;
        if !self.terms.behind.is_empty() {
            write!(f, ", although {}", behind(self.terms.behind))?;
        }
        if let Some(among) = self.drawn {
            write!(f, "; drawn among {among}")?;
        }
        let Some((name, t)) = &self.next else { return Ok(()) };
        // What its load costs others is no time of this request's.
        let takes = t.takes();
        let name = name.as_str();
        match () {
            () if !t.behind.is_empty() => write!(f, "; {name} {}", behind(t.behind)),
            () if t.wait > 0.5 * takes => write!(f, "; {name} would wait {}", span(t.wait)),
            () if t.load > 0.5 * takes => write!(f, "; {name} would load for {}", span(t.load)),
            () => write!(f, "; {name} {}", span(takes)),
        }
    }
}
