//! For whom this node works now: a pure decision.
//!
//! In: what the configuration says of sharing, what the machine says of itself, what a person
//! ordered, the time of day and the clock on the wall where the machine stands. Out: for whom,
//! why in words a person reads, until when if that is known. What the machine does not say
//! restricts nothing. Nothing here asks anybody or waits.

use std::time::Duration;

use crate::types::{Accepting, LocalTime, Power, ShareWhen, Wall};

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// When this node works for others.
    pub when: ShareWhen,
    /// After how long without use the machine is idle.
    pub idle_after: Duration,
    /// Hours in which it works for nobody else, as minutes of the day (from, to).
    pub quiet: Vec<(u16, u16)>,
    /// Whether it works for others over metered links.
    pub metered: bool,
}

/// What the machine says of itself; `None` = nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// What it runs on.
    pub power: Power,
    /// Whether its way to the world is paid by the byte.
    pub metered: Option<bool>,
    /// For how long nobody has used it.
    pub idle: Option<Duration>,
    /// For how long no program on it has asked its engines.
    pub asked: Option<Duration>,
    /// Whether it is about to sleep.
    pub sleeping: bool,
}

/// A pause that a person ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pause {
    /// Until when; `None` = until it is taken back.
    pub until: Option<Wall>,
    /// The latest time of day at which it was looked at.
    pub seen: Wall,
}

impl Pause {
    /// One that begins now, for so long.
    pub fn new(now: Wall, length: Option<Duration>) -> Pause {
        Pause { until: length.map(|length| now + length), seen: now }
    }

    /// Looks at it; false when it is over. A clock that was set back moves its end along, so
    /// that it lasts no longer than was said.
    pub fn look(&mut self, now: Wall) -> bool {
        let back = self.seen.since(now);
        self.until = self.until.map(|until| Wall(until.0.saturating_sub(back.as_secs())));
        self.seen = now;
        self.until.is_none_or(|until| until > now)
    }
}

/// What a person ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Orders {
    /// Nothing for others, until a time or for good.
    pub pause: Option<Pause>,
    /// Nothing new for others, until it is taken back.
    pub drain: bool,
}

/// The decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// For whom this node works.
    pub accepting: Accepting,
    /// Why not for all; empty if it does.
    pub why: String,
    /// Until when that holds, as far as is known.
    pub until: Option<Wall>,
    /// What would have mattered, and nobody says.
    pub unknown: Vec<&'static str>,
}

/// Decides. `local` turns a time into the one on the wall where the machine stands.
pub fn decide(
    rules: &Rules,
    machine: &Machine,
    orders: Orders,
    now: Wall,
    local: &dyn Fn(Wall) -> LocalTime,
) -> Sharing {
    let (accepting, why, until) =
        held(rules, machine, orders, now, local).unwrap_or((Accepting::All, String::new(), None));
    Sharing { accepting, why, until, unknown: unknown(rules, machine) }
}

type Held = (Accepting, String, Option<Wall>);

/// What holds something back: what lets least in first, then what a person would name first.
fn held(
    rules: &Rules,
    machine: &Machine,
    orders: Orders,
    now: Wall,
    local: &dyn Fn(Wall) -> LocalTime,
) -> Option<Held> {
    let none = |why: &str, until| Some((Accepting::None, why.to_owned(), until));
    let mine = |why: &str| Some((Accepting::Mine, why.to_owned(), None));
    if orders.drain {
        return none("draining", None);
    }
    if let Some(Pause { until, .. }) = orders.pause {
        let why = match until {
            Some(until) => format!("paused until {}", clock(until, now, local)),
            None => "paused".to_owned(),
        };
        return none(&why, until);
    }
    if machine.sleeping {
        return none("going to sleep", None);
    }
    if rules.when == ShareWhen::None {
        return none("share.when is none", None);
    }
    if let Some(end) = rules.quiet.iter().filter_map(|hours| quiet_until(*hours, now, local)).max()
    {
        return none(&format!("quiet hours until {}", clock(end, now, local)), Some(end));
    }
    let idle = |time: Option<Duration>| time.is_none_or(|time| time >= rules.idle_after);
    if rules.when == ShareWhen::Idle && !(idle(machine.idle) && idle(machine.asked)) {
        return none("in use", None);
    }
    if rules.when == ShareWhen::Mine {
        return mine("share.when is mine");
    }
    if machine.power == Power::Battery && rules.when != ShareWhen::All {
        return mine("on battery");
    }
    if machine.metered == Some(true) && !rules.metered {
        return mine("metered link");
    }
    None
}

fn unknown(rules: &Rules, machine: &Machine) -> Vec<&'static str> {
    let (when, mut unknown) = (rules.when, Vec::new());
    if when == ShareWhen::Idle && machine.idle.is_none() {
        unknown.push("whether anybody uses it");
    }
    if matches!(when, ShareWhen::Auto | ShareWhen::Idle) && machine.power == Power::Unknown {
        unknown.push("whether it runs on battery");
    }
    if !rules.metered && !matches!(when, ShareWhen::Mine | ShareWhen::None) {
        unknown.extend(machine.metered.is_none().then_some("whether its link is metered"));
    }
    unknown
}

/// When these hours end, if it is in them now. Found by walking, since the clock on the wall
/// leaps twice a year, and an hour that it leaps over ends with the leap.
fn quiet_until(
    (from, to): (u16, u16),
    now: Wall,
    local: &dyn Fn(Wall) -> LocalTime,
) -> Option<Wall> {
    const DAY: u64 = 26 * 60;
    let quiet = |at: Wall| {
        let minute = local(at).minute;
        if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
    };
    if !quiet(now) {
        return None;
    }
    let minute = Wall(now.0 - now.0 % 60);
    let mut later = (1..=DAY).map(|n| minute + Duration::from_secs(60 * n));
    later.find(|at| !quiet(*at)).or(Some(now + Duration::from_secs(60 * DAY)))
}

/// A time as a person says it: with its day if that is not plain.
pub fn clock(at: Wall, now: Wall, local: &dyn Fn(Wall) -> LocalTime) -> String {
    let LocalTime { year, month, day, minute } = local(at);
    let time = format!("{:02}:{:02}", minute / 60, minute % 60);
    if at.since(now) < Duration::from_secs(20 * 3600) {
        return time;
    }
    format!("{year}-{month:02}-{day:02} {time}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;
    const MIN: Duration = Duration::from_secs(60);

    /// 1970-01-01 as a zone without any summer time has it, `day` days later.
    fn plain(at: Wall) -> LocalTime {
        let day = i8::try_from(at.0 / (24 * HOUR)).unwrap();
        let minute = u16::try_from(at.0 / 60 % 1440).unwrap();
        LocalTime { year: 1970, month: 1, day: 1 + day, minute }
    }

    fn at(hour: u64, minute: u64) -> Wall {
        Wall(hour * HOUR + minute * 60)
    }

    fn rules() -> Rules {
        let when = ShareWhen::Auto;
        Rules { when, idle_after: 10 * MIN, quiet: Vec::new(), metered: false }
    }

    fn plugged() -> Machine {
        let power = Power::Mains;
        Machine { power, metered: Some(false), idle: None, asked: None, sleeping: false }
    }

    #[track_caller]
    fn check(
        rules: &Rules,
        machine: Machine,
        orders: Orders,
        now: Wall,
        expect: (&str, &str, Option<Wall>),
    ) {
        let is = decide(rules, &machine, orders, now, &plain);
        assert_eq!((is.accepting.label(), is.why.as_str(), is.until), expect);
    }

    #[test]
    fn each_reason_is_said_in_words_and_the_narrowest_rules() {
        let noon = at(12, 0);
        let (auto, free) = (rules(), Orders::default());
        let with = |when| Rules { when, ..rules() };
        let battery = Machine { power: Power::Battery, ..plugged() };
        let idle = |mins: u32| Machine { idle: Some(mins * MIN), ..plugged() };
        check(&auto, plugged(), free, noon, ("all", "", None));
        check(&auto, battery, free, noon, ("mine", "on battery", None));
        check(&with(ShareWhen::All), battery, free, noon, ("all", "", None));
        check(&with(ShareWhen::Mine), plugged(), free, noon, ("mine", "share.when is mine", None));
        check(&with(ShareWhen::None), plugged(), free, noon, ("none", "share.when is none", None));
        check(&with(ShareWhen::Idle), idle(9), free, noon, ("none", "in use", None));
        check(&with(ShareWhen::Idle), idle(10), free, noon, ("all", "", None));
        let asked = Machine { asked: Some(MIN), ..idle(30) };
        check(&with(ShareWhen::Idle), asked, free, noon, ("none", "in use", None));
        let unplugged = Machine { power: Power::Battery, ..idle(30) };
        check(&with(ShareWhen::Idle), unplugged, free, noon, ("mine", "on battery", None));
        let metered = Machine { metered: Some(true), ..plugged() };
        check(&auto, metered, free, noon, ("mine", "metered link", None));
        check(&with(ShareWhen::All), metered, free, noon, ("mine", "metered link", None));
        check(&Rules { metered: true, ..rules() }, metered, free, noon, ("all", "", None));
        let lid = Machine { sleeping: true, ..battery };
        check(&auto, lid, free, noon, ("none", "going to sleep", None));

        let pause = |length| Orders { pause: Some(Pause::new(noon, length)), drain: false };
        check(&auto, lid, pause(None), noon, ("none", "paused", None));
        let six = Some(at(18, 0));
        check(
            &auto,
            plugged(),
            pause(Some(6 * 60 * MIN)),
            noon,
            ("none", "paused until 18:00", six),
        );
        let far = Some(at(36, 0));
        let words = "paused until 1970-01-02 12:00";
        check(&auto, plugged(), pause(Some(24 * 60 * MIN)), noon, ("none", words, far));
        let both = Orders { drain: true, ..pause(None) };
        check(&auto, battery, both, noon, ("none", "draining", None));
    }

    #[test]
    fn what_nobody_says_restricts_nothing_and_is_named() {
        let mute = Machine { power: Power::Unknown, metered: None, ..plugged() };
        let idle = Rules { when: ShareWhen::Idle, ..rules() };
        let is = decide(&idle, &mute, Orders::default(), at(12, 0), &plain);
        assert_eq!((is.accepting, is.why.as_str(), is.unknown.len()), (Accepting::All, "", 3));
        let said = decide(&rules(), &plugged(), Orders::default(), at(12, 0), &plain);
        assert_eq!(said.unknown, [""; 0]);
        let mine = Rules { when: ShareWhen::Mine, ..rules() };
        assert_eq!(decide(&mine, &mute, Orders::default(), at(12, 0), &plain).unknown, [""; 0]);
    }

    #[test]
    fn quiet_hours_may_cross_midnight() {
        let night = Rules { quiet: vec![(22 * 60, 7 * 60), (13 * 60, 14 * 60)], ..rules() };
        for (now, expect) in [
            (at(21, 59), ("all", "", None)),
            (at(22, 0), ("none", "quiet hours until 07:00", Some(at(31, 0)))),
            (at(23, 59), ("none", "quiet hours until 07:00", Some(at(31, 0)))),
            (at(24, 0), ("none", "quiet hours until 07:00", Some(at(31, 0)))),
            (Wall(at(30, 59).0 + 59), ("none", "quiet hours until 07:00", Some(at(31, 0)))),
            (at(31, 0), ("all", "", None)),
            (at(13, 30), ("none", "quiet hours until 14:00", Some(at(14, 0)))),
        ] {
            check(&night, plugged(), Orders::default(), now, expect);
        }
    }

    #[test]
    fn quiet_hours_go_by_the_clock_on_the_wall_when_that_leaps() {
        let quiet = |hours| Rules { quiet: vec![hours], ..rules() };
        // At 02:00 it says 03:00, as in spring.
        let spring = |at: Wall| plain(if at.0 >= 2 * HOUR { at + 60 * MIN } else { at });
        let is = |rules: &Rules, now| {
            decide(rules, &plugged(), Orders::default(), now, &spring).until.map(|at| at.0)
        };
        assert_eq!(is(&quiet((60, 7 * 60)), at(1, 0)), Some(6 * HOUR), "an hour less of quiet");
        assert_eq!(is(&quiet((60, 150)), at(1, 0)), Some(2 * HOUR), "it leapt over the end");
        assert_eq!(is(&quiet((130, 150)), at(2, 5)), None, "it leapt over all of it");
        // At 03:00 it says 02:00 once more, as in autumn.
        let autumn = |at: Wall| plain(if at.0 >= 3 * HOUR { Wall(at.0 - HOUR) } else { at });
        let is = |now| {
            let rules = quiet((60, 7 * 60));
            decide(&rules, &plugged(), Orders::default(), now, &autumn).until.map(|at| at.0)
        };
        assert_eq!(
            (is(at(1, 0)), is(at(7, 59)), is(at(8, 0))),
            (Some(8 * HOUR), Some(8 * HOUR), None)
        );
    }

    #[test]
    fn a_pause_lasts_as_long_as_was_said_whatever_the_clock_does() {
        let mut pause = Pause::new(at(12, 0), Some(2 * 60 * MIN));
        assert!(pause.look(at(13, 0)));
        // Set back by a year's worth: an hour is left.
        let mut back = Pause { seen: at(13, 0) + 8760 * 60 * MIN, ..pause };
        back.until = Some(at(14, 0) + 8760 * 60 * MIN);
        assert!(back.look(at(13, 0)));
        assert_eq!(back.until, Some(at(14, 0)));
        assert!(back.look(at(13, 59)) && !back.look(at(14, 0)));
        // Set on: over, as the clock says.
        assert!(!pause.look(at(14, 0)));
        let mut endless = Pause::new(at(12, 0), None);
        assert!(endless.look(at(600, 0)) && endless.look(at(1, 0)));
    }
}
