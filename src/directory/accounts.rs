//! What is remembered of each provider between requests: what it was asked and paid, and for
//! how long it rests.
//!
//! In flow requests, answers and failures, each with the time; out flows whether a provider's
//! step is open now, or why it is passed over, and what outlives a restart ([`Kept`]): a limit or
//! a budget for a day is one for the whole day. Nothing here waits or asks anybody.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::api::hosted::Rest;
use crate::config::{Failover, Provider};
use crate::types::Moment;

/// How long a provider that could not be reached is left alone, failure by failure.
const UNREACHED: [u64; 5] = [1, 2, 5, 10, 30];
/// The longest rest that a provider's own word gives it.
const LONGEST: Duration = Duration::from_secs(3600);

/// Today, as a number of days (UTC).
pub fn today() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() / 86_400)
}

/// Why a step is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// It could not be reached lately.
    Down,
    /// It first answered on another network, and another machine may have its address here.
    Elsewhere,
    /// It rests after a failure.
    Rests(&'static str),
    /// It takes no more requests in this minute or day.
    Limit,
    /// Its money for today is spent.
    Budget,
}

impl Skip {
    /// As a person reads it.
    pub fn text(self) -> &'static str {
        match self {
            Skip::Down => "it could not be reached lately",
            Skip::Elsewhere => "it belongs to another network",
            Skip::Rests("billing") => "it rests: its account has no money left",
            Skip::Rests("key") => "it rests: it refused the key",
            Skip::Rests(_) => "it rests after a failure",
            Skip::Limit => "its limit of requests is reached",
            Skip::Budget => "its budget for today is spent",
        }
    }
}

/// What was asked and paid on a day.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Kept {
    /// Which day, as [`today`] counts.
    pub day: u64,
    /// By provider.
    pub providers: BTreeMap<Arc<str>, Spent>,
}

/// What one provider was asked and paid on a day.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Requests.
    pub requests: u32,
    /// Dollars.
    pub usd: f64,
}

/// All providers.
#[derive(Debug, Default)]
pub struct Accounts(Mutex<HashMap<Arc<str>, Account>>);

#[derive(Debug, Default)]
struct Account {
    /// The requests of the last minute.
    recent: VecDeque<Moment>,
    /// Which day it is, and what was asked and paid on it.
    day: u64,
    spent: Spent,
    /// Until when the whole provider rests, and why.
    rests: Option<(Moment, &'static str)>,
    /// Failures in a row of a model, and until when it rests.
    models: HashMap<Arc<str>, (u32, Moment)>,
    down: Option<Down>,
}

#[derive(Debug, Clone, Copy)]
struct Down {
    failures: usize,
    /// When somebody may look whether it is back.
    look: Moment,
    looking: bool,
}

impl Account {
    fn today(&mut self, day: u64) {
        if self.day != day {
            (self.day, self.spent) = (day, Spent::default());
        }
    }
}

impl Accounts {
    fn at<T>(&self, provider: &Provider, f: impl FnOnce(&mut Account) -> T) -> T {
        f(self.0.lock().entry(Arc::clone(&provider.name)).or_default())
    }

    /// Whether a model of a provider may be asked now. `day` counts days.
    pub fn open(
        &self,
        provider: &Provider,
        model: &str,
        now: Moment,
        day: u64,
    ) -> Result<(), Skip> {
        self.at(provider, |account| {
            account.today(day);
            while account.recent.front().is_some_and(|at| now.since(*at) >= Duration::from_secs(60))
            {
                account.recent.pop_front();
            }
            if let Some((_, why)) = account.rests.filter(|(until, _)| now < *until) {
                return Err(Skip::Rests(why));
            }
            if account.models.get(model).is_some_and(|(_, until)| now < *until) {
                return Err(Skip::Rests("failure"));
            }
            let reached = |limit: Option<u32>, count: usize| {
                limit.is_some_and(|limit| count >= usize::try_from(limit).unwrap_or(usize::MAX))
            };
            if reached(provider.limit.per_minute, account.recent.len())
                || provider.limit.per_day.is_some_and(|limit| account.spent.requests >= limit)
            {
                return Err(Skip::Limit);
            }
            if provider.budget.is_some_and(|budget| account.spent.usd >= budget) {
                return Err(Skip::Budget);
            }
            if account.down.is_some() { Err(Skip::Down) } else { Ok(()) }
        })
    }

    /// A request leaves for it.
    pub fn sent(&self, provider: &Provider, now: Moment, day: u64) {
        self.at(provider, |account| {
            account.today(day);
            account.spent.requests = account.spent.requests.saturating_add(1);
            if provider.limit.per_minute.is_some() {
                account.recent.push_back(now);
            }
        });
    }

    /// It answered.
    pub fn answered(&self, provider: &Provider, model: &str) {
        self.at(provider, |account| {
            account.models.remove(model);
            account.rests = None;
        });
    }

    /// It failed and rests.
    pub fn failed(
        &self,
        provider: &Provider,
        model: &Arc<str>,
        (rest, why): (Rest, &'static str),
        failover: &Failover,
        now: Moment,
    ) {
        self.at(provider, |account| match rest {
            Rest::None => {}
            Rest::Billing => account.rests = Some((now + failover.billing_cooldown, why)),
            Rest::Model(said) => {
                let (failures, until) = account.models.entry(Arc::clone(model)).or_default();
                *failures = failures.saturating_add(1);
                let step = usize::try_from(*failures - 1).unwrap_or(usize::MAX);
                let steps = &failover.cooldown;
                let usual = steps.get(step).or(steps.last()).copied().unwrap_or_default();
                *until = now + said.unwrap_or(usual).min(LONGEST);
            }
        });
    }

    /// No connection to it could be made, or one was.
    pub fn reached(&self, provider: &Provider, reached: bool, now: Moment) {
        self.at(provider, |account| {
            account.down = (!reached).then(|| {
                let failures = account.down.map_or(0, |down| down.failures);
                let rest = UNREACHED.get(failures).copied().unwrap_or(30);
                let look = now + Duration::from_secs(rest);
                Down { failures: failures + 1, look, looking: false }
            });
        });
    }

    /// Whether it is time that somebody looks if it is back: says yes to one only.
    pub fn look(&self, provider: &Provider, now: Moment) -> bool {
        self.at(provider, |account| match &mut account.down {
            Some(down) if !down.looking && now >= down.look => {
                down.looking = true;
                true
            }
            _ => false,
        })
    }

    /// What a provider was asked and paid today.
    pub fn spent(&self, provider: &Provider, day: u64) -> Spent {
        self.at(provider, |account| {
            account.today(day);
            account.spent
        })
    }

    /// What outlives a restart.
    pub fn kept(&self, day: u64) -> Kept {
        let accounts = self.0.lock();
        let of_today = accounts.iter().filter(|(_, a)| a.day == day && a.spent.requests > 0);
        Kept { day, providers: of_today.map(|(name, a)| (Arc::clone(name), a.spent)).collect() }
    }

    /// Takes up what an earlier run kept.
    pub fn recall(&self, kept: Kept) {
        let mut accounts = self.0.lock();
        for (name, spent) in kept.providers {
            // A file that was written by hand gives nobody money back.
            let usd = if spent.usd.is_finite() { spent.usd.max(0.0) } else { 0.0 };
            let account = accounts.entry(name).or_default();
            (account.day, account.spent) = (kept.day, Spent { usd, ..spent });
        }
    }

    /// Dollars were spent.
    pub fn paid(&self, provider: &Provider, usd: f64, day: u64) {
        self.at(provider, |account| {
            account.today(day);
            account.spent.usd += usd;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FixedEnv, parse};

    const COOLDOWN: &str = "failover: { cooldown: ['30s', '1m'], billingCooldown: '10m' }";

    fn at(seconds: u64) -> Moment {
        Moment::new(Duration::from_secs(seconds))
    }

    fn world(more: &str) -> (Accounts, Arc<Provider>, Failover) {
        let text = format!(
            "{{ {COOLDOWN}, models: {{ providers: {{ p: {{ baseUrl: 'https://x.example', {more} }} }} }} }}"
        );
        let config = parse(&text, None, &FixedEnv::default()).unwrap();
        (Accounts::default(), config.models.providers["p"].clone(), config.failover)
    }

    #[test]
    fn a_failure_rests_as_long_as_was_said_else_ever_longer() {
        let (accounts, p, failover) = world("");
        let model: Arc<str> = "m".into();
        let fail = |rest, now| accounts.failed(&p, &model, (rest, "busy"), &failover, at(now));
        let open = |model: &str, now| accounts.open(&p, model, at(now), 0).is_ok();
        fail(Rest::Model(Some(Duration::from_secs(7))), 0);
        assert!(!open("m", 6) && open("m", 7) && open("other", 0));
        fail(Rest::Model(None), 10);
        assert!(!open("m", 69) && open("m", 70), "the second failure in a row");
        accounts.answered(&p, "m");
        fail(Rest::Model(None), 100);
        assert!(!open("m", 129) && open("m", 130), "begins anew after an answer");
        fail(Rest::Billing, 200);
        assert!(!open("other", 799) && open("other", 800));
        fail(Rest::None, 900);
        assert!(open("m", 900));
    }

    #[test]
    fn limits_and_budgets_pass_over_a_step_before_it_fails() {
        let (accounts, p, _) = world("limit: { perMinute: 2, perDay: 3 }, budget: 1.5");
        for now in [0, 10] {
            assert_eq!(accounts.open(&p, "m", at(now), 1), Ok(()));
            accounts.sent(&p, at(now), 1);
        }
        assert_eq!(accounts.open(&p, "m", at(59), 1), Err(Skip::Limit));
        assert_eq!(accounts.open(&p, "m", at(60), 1), Ok(()));
        accounts.sent(&p, at(60), 1);
        assert_eq!(accounts.open(&p, "m", at(500), 1), Err(Skip::Limit), "the day's");
        assert_eq!(accounts.open(&p, "m", at(500), 2), Ok(()));
        accounts.paid(&p, 1.5, 2);
        assert_eq!(accounts.open(&p, "m", at(600), 2), Err(Skip::Budget));
        assert_eq!(accounts.open(&p, "m", at(600), 3), Ok(()));
    }

    #[test]
    fn what_was_asked_and_paid_outlives_a_restart_and_not_the_day() {
        let (accounts, p, _) = world("limit: { perDay: 2 }, budget: 1.5");
        accounts.sent(&p, at(0), 7);
        accounts.paid(&p, 1.0, 7);
        let text = serde_json::to_string(&accounts.kept(7)).unwrap();
        assert_eq!(accounts.kept(8), Kept { day: 8, ..Kept::default() });

        let again = Accounts::default();
        again.recall(serde_json::from_str(&text).unwrap());
        assert_eq!(again.spent(&p, 7), Spent { requests: 1, usd: 1.0 });
        again.sent(&p, at(0), 7);
        assert_eq!(again.open(&p, "m", at(0), 7), Err(Skip::Limit));
        assert_eq!(again.open(&p, "m", at(0), 8), Ok(()));

        let again = Accounts::default();
        again.recall(serde_json::from_str(&text).unwrap());
        again.paid(&p, 0.5, 7);
        assert_eq!(again.open(&p, "m", at(0), 7), Err(Skip::Budget));
    }

    #[test]
    fn what_cannot_be_reached_is_looked_at_by_one_ever_more_rarely() {
        let (accounts, p, _) = world("");
        accounts.reached(&p, false, at(0));
        assert_eq!(accounts.open(&p, "m", at(0), 0), Err(Skip::Down));
        assert!(!accounts.look(&p, at(0)) && accounts.look(&p, at(1)) && !accounts.look(&p, at(1)));
        accounts.reached(&p, false, at(5));
        assert!(!accounts.look(&p, at(6)) && accounts.look(&p, at(7)));
        accounts.reached(&p, true, at(8));
        assert_eq!(accounts.open(&p, "m", at(8), 0), Ok(()));
    }
}
