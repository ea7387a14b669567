//! The ladder: how much of the mesh is left, as a function of what is seen.
//!
//! In: [`Signals`] (what LocalAPI says, which peers answer by which kind of path) and the
//! time. Out: a rung and why it is that one. Nothing here asks anybody: whoever polls LocalAPI
//! and reads the paths' cells fills the signals in, and a simulator may do so as well.
//!
//! LocalAPI's own words are used with care, because they outlive the coordinator: measured,
//! `BackendState: Running`, an empty `Health` and peers' `Online: true` are frozen while the
//! coordinator is away. Only `Self.Online` of this node moves, and only our own probes say
//! whether a peer answers.

use std::sync::Arc;
use std::time::Duration;

use crate::types::{Moment, Rung, RungState, Timing};

/// What is seen of the mesh at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signals {
    /// The local tailscaled.
    pub daemon: Daemon,
    /// Paths to peers that answer.
    pub alive: Alive,
    /// When something last came back over the tailnet.
    pub tailnet_heard: Option<Moment>,
    /// When the wall clock last jumped (this machine slept): what was seen before is old.
    pub woke: Option<Moment>,
}

/// The local tailscaled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    /// No LocalAPI was ever found and no tailnet is remembered, or the tailnet is switched off
    /// in the configuration.
    Never,
    /// LocalAPI was there and does not answer now.
    Down,
    /// It answers.
    Up {
        /// Its state.
        backend: Backend,
        /// How many polls in a row said that this node has no open map poll (`Self.Online`
        /// false); 0 while it has one, or when it does not say.
        offline_polls: u32,
    },
}

/// `BackendState`, as far as it makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// `Running`.
    Running,
    /// `Starting`, `NoState`, or a word we do not know, since then.
    Starting(Moment),
    /// `NeedsLogin`, `NeedsMachineAuth`.
    LoggedOut,
    /// `Stopped`.
    Stopped,
}

impl Backend {
    /// Reads the word; `since` is when it was first said. A word we do not know is not
    /// `Running`, and may become it: it counts as starting.
    pub fn read(word: &str, since: Moment) -> Backend {
        match word {
            "Running" => Backend::Running,
            "NeedsLogin" | "NeedsMachineAuth" => Backend::LoggedOut,
            "Stopped" => Backend::Stopped,
            _ => Backend::Starting(since),
        }
    }
}

/// How many peers answer, by the best kind of path they answer on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Alive {
    /// Over the tailnet.
    pub tailnet: usize,
    /// Pinned peers on the local network that do not answer over the tailnet: the witnesses
    /// of a lost tailnet.
    pub lan: usize,
    /// Servers named in the configuration.
    pub configured: usize,
}

impl Alive {
    /// Whether any peer answers on any path.
    pub fn any(self) -> bool {
        self.tailnet + self.lan + self.configured > 0
    }
}

/// Where on the ladder we are, and whether a better rung is waiting to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    shown: RungState,
    climbs: Option<(Rung, Moment)>,
}

impl Default for Ladder {
    /// The bottom of a program that has just started.
    fn default() -> Self {
        Ladder {
            shown: RungState { rung: Rung::Starting, why: "".into(), since: Moment::ZERO },
            climbs: None,
        }
    }
}

impl Ladder {
    /// The rung.
    pub fn state(&self) -> &RungState {
        &self.shown
    }

    /// The ladder after these signals at `now`.
    ///
    /// Down is taken at once (a lost coordinator only after two polls: a restarted Headscale
    /// shows a few seconds of it); up only after the better rung has held for
    /// [`Timing::rung_hold`].
    #[must_use]
    pub fn next(&self, signals: &Signals, now: Moment, timing: &Timing) -> Ladder {
        if now < Moment::ZERO + timing.starting {
            return self.clone();
        }
        if signals.woke.is_some_and(|woke| now.since(woke) < timing.rung_freeze) {
            return Ladder { climbs: None, ..self.clone() };
        }
        let shown = self.shown.rung;
        let Some((rung, why)) = wanted(shown, signals, now, timing) else {
            return Ladder { climbs: None, ..self.clone() };
        };
        if shown == Rung::Starting || rung > shown {
            return Ladder { shown: RungState { rung, why: why.into(), since: now }, climbs: None };
        }
        if rung == shown {
            let why: Arc<str> =
                if *self.shown.why == *why { self.shown.why.clone() } else { why.into() };
            return Ladder { shown: RungState { why, ..self.shown.clone() }, climbs: None };
        }
        match self.climbs {
            Some((to, since)) if to == rung => {
                if now.since(since) >= timing.rung_hold {
                    let shown = RungState { rung, why: why.into(), since: now };
                    return Ladder { shown, climbs: None };
                }
                self.clone()
            }
            _ => Ladder { shown: self.shown.clone(), climbs: Some((rung, now)) },
        }
    }
}

/// The table of rungs, read from the top; `None` = as before: it cannot be said yet.
fn wanted(
    shown: Rung,
    signals: &Signals,
    now: Moment,
    timing: &Timing,
) -> Option<(Rung, &'static str)> {
    let Signals { daemon, alive, tailnet_heard, .. } = signals;
    // With nobody on any path it is `alone`, for the reason of the row it would have been.
    let or_alone = |rung, why| if alive.any() { (rung, why) } else { (Rung::Alone, why) };
    Some(match daemon {
        // Servers named by hand may answer, but there is no mesh to be on a rung of.
        Daemon::Never => (Rung::Alone, "no_tailnet"),
        Daemon::Down => or_alone(Rung::TailnetLost, "daemon_down"),
        Daemon::Up { backend: Backend::LoggedOut, .. } => or_alone(Rung::TailnetLost, "logged_out"),
        Daemon::Up { backend: Backend::Stopped, .. } => {
            or_alone(Rung::TailnetLost, "stopped_by_user")
        }
        Daemon::Up { backend: Backend::Starting(since), .. } => {
            let starts = now.since(*since) < timing.backend_starting;
            match (starts, alive.any()) {
                // Every start of the daemon looks like this for some seconds: it makes nothing
                // better, and that nobody answers meanwhile means nothing.
                (true, true) if shown <= Rung::CoordinatorLost => {
                    (Rung::CoordinatorLost, "tailscaled_starting")
                }
                (true, _) => return None,
                (false, _) => or_alone(Rung::TailnetLost, "no_netmap"),
            }
        }
        Daemon::Up { backend: Backend::Running, offline_polls } => {
            let online = *offline_polls < 2;
            let silence = tailnet_heard.map_or(Duration::MAX, |heard| now.since(heard));
            match (online, alive.tailnet > 0) {
                (true, true) => (Rung::Full, ""),
                // Nobody answers although all is well: without a witness on the local network
                // it is the peers that are down, not the tailnet.
                (true, false) if alive.lan > 0 => (Rung::TailnetLost, "no_path"),
                (true, false) if alive.configured > 0 => (Rung::Full, "no_peer"),
                (true, false) => (Rung::Alone, "no_peer"),
                (false, true) => (Rung::CoordinatorLost, "not_in_map_poll"),
                // A cold pair without its relay needs two handshakes before its first answer.
                (false, false) if silence < timing.tailnet_silence => {
                    (Rung::CoordinatorLost, "not_in_map_poll")
                }
                (false, false) => or_alone(Rung::TailnetLost, "no_path"),
            }
        }
    })
}

/// What a rung means to a person: said in the log, in `status`, in events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// What still works.
    pub works: &'static str,
    /// What does not.
    pub lost: &'static str,
}

/// What `state` means.
pub fn meaning(state: &RungState) -> Meaning {
    let (works, lost) = match state.rung {
        Rung::Starting => ("this node's own models", "not known yet"),
        Rung::Full => ("all nodes", "nothing"),
        Rung::CoordinatorLost => {
            ("all nodes whose tunnels live", "new devices, changed permissions")
        }
        Rung::TailnetLost => ("nodes that answer outside the tailnet", "the tailnet's tunnels"),
        Rung::Alone => match &*state.why {
            "no_tailnet" => ("this node's own models, servers from `ollamas`", "no tailnet found"),
            _ => ("this node's own models", "every other node"),
        },
    };
    Meaning { works, lost }
}

const NOBODY: &str = "no other node answers";

/// What is broken, for somebody who waits for a model: `None` while all tunnels that live can
/// be used, or where there never was a tailnet.
pub fn outage(state: &RungState) -> Option<&'static str> {
    if !matches!(state.rung, Rung::TailnetLost | Rung::Alone) {
        return None;
    }
    Some(match &*state.why {
        "no_tailnet" => return None,
        "daemon_down" => "tailscaled does not answer",
        "logged_out" => "this device is logged out of its tailnet",
        "stopped_by_user" => "the tailnet is switched off on this device",
        "no_netmap" => "tailscaled was restarted and waits for its coordinator",
        "no_path" => "no tunnel of the tailnet works",
        _ => NOBODY,
    })
}

/// Whether what is lost lies with the nodes that do not answer, and not with this device's own
/// tailnet: then one of them may be back at any moment, and is worth a look.
pub fn may_be_back(state: &RungState) -> bool {
    matches!(outage(state), None | Some(NOBODY))
}

/// What the mesh falls back on if this rung is lost too, where `pinned` peers may be met on
/// the local network.
pub fn next(rung: Rung, pinned: usize) -> String {
    match rung {
        Rung::Starting | Rung::Full | Rung::CoordinatorLost if pinned > 0 => {
            format!("LAN ({pinned} pinned)")
        }
        Rung::Alone => "nothing".to_owned(),
        _ => "this node's own models".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Daemon = Daemon::Up { backend: Backend::Running, offline_polls: 0 };
    const OFFLINE: Daemon = Daemon::Up { backend: Backend::Running, offline_polls: 2 };

    fn at(secs: u64) -> Moment {
        Moment::new(Duration::from_secs(secs))
    }

    fn alive(tailnet: usize, lan: usize, configured: usize) -> Alive {
        Alive { tailnet, lan, configured }
    }

    fn up(backend: Backend) -> Daemon {
        Daemon::Up { backend, offline_polls: 9 }
    }

    fn signals(daemon: Daemon, alive: Alive) -> Signals {
        Signals { daemon, alive, tailnet_heard: None, woke: None }
    }

    #[test]
    fn each_row_of_the_table_is_its_rung() {
        #[track_caller]
        fn check(daemon: Daemon, alive: Alive, rung: Rung, why: &str) {
            let next = Ladder::default().next(&signals(daemon, alive), at(100), &Timing::default());
            assert_eq!((next.state().rung, &*next.state().why), (rung, why));
        }
        use Rung::*;
        let someone = alive(1, 0, 0);
        let witness = alive(0, 1, 0);
        let server = alive(0, 0, 1);
        let nobody = Alive::default();
        check(RUNNING, someone, Full, "");
        check(RUNNING, nobody, Alone, "no_peer");
        check(RUNNING, server, Full, "no_peer");
        check(RUNNING, witness, TailnetLost, "no_path");
        check(OFFLINE, someone, CoordinatorLost, "not_in_map_poll");
        check(OFFLINE, witness, TailnetLost, "no_path");
        check(OFFLINE, nobody, Alone, "no_path");
        check(
            up(Backend::read("NoState", at(90))),
            witness,
            CoordinatorLost,
            "tailscaled_starting",
        );
        check(up(Backend::read("Starting", at(80))), witness, TailnetLost, "no_netmap");
        check(up(Backend::read("Starting", at(80))), nobody, Alone, "no_netmap");
        check(up(Backend::read("NeedsLogin", at(0))), witness, TailnetLost, "logged_out");
        check(up(Backend::read("NeedsMachineAuth", at(0))), nobody, Alone, "logged_out");
        check(up(Backend::read("Stopped", at(0))), witness, TailnetLost, "stopped_by_user");
        check(up(Backend::read("Brandnew", at(0))), someone, TailnetLost, "no_netmap");
        check(up(Backend::read("NoState", at(90))), nobody, Starting, "");
        check(Daemon::Down, witness, TailnetLost, "daemon_down");
        check(Daemon::Down, nobody, Alone, "daemon_down");
        check(Daemon::Never, nobody, Alone, "no_tailnet");
        check(Daemon::Never, server, Alone, "no_tailnet");
    }

    #[test]
    fn an_outage_is_what_keeps_nodes_away_and_no_word_of_the_machine() {
        for (rung, why, broken) in [
            (Rung::Full, "", false),
            (Rung::Starting, "", false),
            (Rung::CoordinatorLost, "not_in_map_poll", false),
            (Rung::Alone, "no_tailnet", false),
            (Rung::Alone, "no_peer", true),
            (Rung::TailnetLost, "daemon_down", true),
            (Rung::TailnetLost, "logged_out", true),
            (Rung::Alone, "stopped_by_user", true),
            (Rung::TailnetLost, "no_netmap", true),
            (Rung::TailnetLost, "no_path", true),
        ] {
            let said = outage(&RungState { rung, why: why.into(), since: at(1) });
            assert_eq!(said.is_some(), broken, "{why}");
            assert!(said.is_none_or(|words| !words.contains('_')), "{said:?}");
        }
    }

    #[test]
    fn nothing_is_said_in_the_first_seconds() {
        let timing = Timing::default();
        let l = Ladder::default().next(&signals(RUNNING, alive(1, 0, 0)), at(14), &timing);
        assert_eq!(l.state().rung, Rung::Starting);
        let l = l.next(&signals(RUNNING, alive(1, 0, 0)), at(15), &timing);
        assert_eq!((l.state().rung, l.state().since), (Rung::Full, at(15)));
    }

    #[test]
    fn one_missed_poll_is_no_lost_coordinator() {
        let timing = Timing::default();
        let full = Ladder::default().next(&signals(RUNNING, alive(1, 0, 0)), at(20), &timing);
        let once = Daemon::Up { backend: Backend::Running, offline_polls: 1 };
        let l = full.next(&signals(once, alive(1, 0, 0)), at(22), &timing);
        assert_eq!(l.state().rung, Rung::Full);
        let l = l.next(&signals(OFFLINE, alive(1, 0, 0)), at(24), &timing);
        assert_eq!((l.state().rung, l.state().since), (Rung::CoordinatorLost, at(24)));
    }

    #[test]
    fn a_better_rung_has_to_hold_and_a_worse_one_does_not() {
        let timing = Timing::default();
        let good = signals(RUNNING, alive(1, 0, 0));
        let bad = signals(Daemon::Down, Alive::default());
        let l = Ladder::default().next(&bad, at(20), &timing).next(&good, at(30), &timing);
        assert_eq!(l.state().rung, Rung::Alone);
        let l = l.next(&good, at(33), &timing);
        assert_eq!(l.state().rung, Rung::Alone);
        // It fell back in between: the four seconds begin again.
        let l = l.next(&bad, at(33), &timing).next(&good, at(35), &timing);
        let l = l.next(&good, at(38), &timing);
        assert_eq!(l.state().rung, Rung::Alone);
        let l = l.next(&good, at(39), &timing);
        assert_eq!((l.state().rung, l.state().since), (Rung::Full, at(39)));
        let l = l.next(&bad, at(40), &timing);
        assert_eq!((l.state().rung, l.state().since), (Rung::Alone, at(40)));
    }

    #[test]
    fn cold_tunnels_get_time_before_the_tailnet_counts_as_lost() {
        let timing = Timing::default();
        let quiet = Signals { tailnet_heard: Some(at(100)), ..signals(OFFLINE, alive(0, 1, 0)) };
        let l = Ladder::default().next(&quiet, at(110), &timing);
        assert_eq!(l.state().rung, Rung::CoordinatorLost);
        let l = l.next(&quiet, at(122), &timing);
        assert_eq!(l.state().rung, Rung::TailnetLost);
    }

    #[test]
    fn a_daemon_that_starts_is_given_time_before_anything_is_called_lost() {
        let timing = Timing::default();
        let full = Ladder::default().next(&signals(RUNNING, alive(1, 0, 0)), at(20), &timing);
        let starts = |lan| signals(up(Backend::read("NoState", at(30))), alive(0, lan, 0));
        let l = full.next(&starts(0), at(44), &timing);
        assert_eq!(l.state().rung, Rung::Full);
        assert_eq!(l.next(&starts(0), at(45), &timing).state().rung, Rung::Alone);
        let l = full.next(&starts(1), at(44), &timing);
        assert_eq!(
            (l.state().rung, &*l.state().why),
            (Rung::CoordinatorLost, "tailscaled_starting")
        );
        let l = l.next(&starts(1), at(45), &timing);
        assert_eq!((l.state().rung, &*l.state().why), (Rung::TailnetLost, "no_netmap"));
        for lan in [0, 1] {
            let down = full.next(&signals(Daemon::Down, alive(0, lan, 0)), at(30), &timing);
            let l = down.next(&starts(lan), at(31), &timing).next(&starts(lan), at(40), &timing);
            assert_eq!(l.state().rung, down.state().rung, "a start makes nothing better");
        }
    }

    #[test]
    fn what_comes_next_names_how_many_are_pinned() {
        assert_eq!(next(Rung::Full, 7), "LAN (7 pinned)");
        assert_eq!(next(Rung::CoordinatorLost, 1), "LAN (1 pinned)");
        assert_eq!(next(Rung::CoordinatorLost, 0), "this node's own models");
        assert_eq!(next(Rung::TailnetLost, 7), "this node's own models");
        assert_eq!(next(Rung::Alone, 7), "nothing");
    }

    #[test]
    fn a_machine_that_slept_looks_again_before_it_says_anything() {
        let timing = Timing::default();
        let full = Ladder::default().next(&signals(RUNNING, alive(1, 0, 0)), at(20), &timing);
        let bad = Signals { woke: Some(at(30)), ..signals(Daemon::Down, Alive::default()) };
        let l = full.next(&bad, at(39), &timing);
        assert_eq!(l.state().rung, Rung::Full);
        assert_eq!(l.next(&bad, at(40), &timing).state().rung, Rung::Alone);
    }

    #[test]
    fn a_new_reason_on_the_same_rung_does_not_begin_it_again() {
        let timing = Timing::default();
        let l = Ladder::default().next(&signals(Daemon::Down, Alive::default()), at(20), &timing);
        let l = l.next(&signals(RUNNING, Alive::default()), at(30), &timing);
        assert_eq!((&*l.state().why, l.state().since), ("no_peer", at(20)));
    }
}
