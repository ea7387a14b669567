//! What macOS says, by commands that are documented and always there: `pmset -g batt` of the
//! battery, `ioreg -c IOHIDSystem` of the last key or mouse. Nobody there says of a link whether
//! it is metered, nor of a sleep that it comes.

use std::process::Command;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::Host;
use crate::types::Power;

/// How often they are asked: each is a process.
const LOOK: Duration = Duration::from_secs(15);

/// Tells `out` what the machine says, for as long as somebody listens.
#[cfg_attr(not(target_os = "macos"), expect(dead_code, reason = "only its parts are tested"))]
pub(super) async fn follow(out: watch::Sender<Host>) {
    while !out.is_closed() {
        let said = tokio::task::spawn_blocking(|| Host {
            power: said("/usr/bin/pmset", &["-g", "batt"]).as_deref().map(power),
            idle: said("/usr/sbin/ioreg", &["-c", "IOHIDSystem", "-d", "4"])
                .as_deref()
                .and_then(idle),
            ..Host::default()
        });
        if let Ok(host) = said.await {
            out.send_if_modified(|was| std::mem::replace(was, host) != host);
        }
        sleep(LOOK).await;
    }
}

/// What a command writes.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// From `pmset -g batt`: its first line names what is drawn from.
fn power(text: &str) -> Power {
    match text.lines().next().and_then(|line| line.split('\'').nth(1)) {
        Some("AC Power") => Power::Mains,
        Some("Battery Power" | "UPS Power") => Power::Battery,
        _ => Power::Unknown,
    }
}

/// From `ioreg -c IOHIDSystem`: `"HIDIdleTime"`, in nanoseconds.
fn idle(text: &str) -> Option<Duration> {
    let (_, rest) = text.split_once("\"HIDIdleTime\" = ")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_battery_is_what_pmset_draws_from() {
        let battery = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=22151267)\t64%; \
                       discharging; 3:12 remaining present: true\n";
        let plugged = "Now drawing from 'AC Power'\n -InternalBattery-0 (id=22151267)\t100%; \
                       charged; 0:00 remaining present: true\n";
        for (text, expect) in [
            (battery, Power::Battery),
            (plugged, Power::Mains),
            ("Now drawing from 'AC Power'\n", Power::Mains),
            ("Now drawing from 'UPS Power'\n", Power::Battery),
            ("", Power::Unknown),
            ("pmset: no such command", Power::Unknown),
        ] {
            assert_eq!(power(text), expect, "{text}");
        }
    }

    #[test]
    fn idle_is_what_the_last_key_says() {
        let text = "+-o Root  <class IORegistryEntry, id 0x100000100, retain 37>\n  | {\n  |   \
                    \"HIDClickTime\" = 500000000\n  |   \"HIDIdleTime\" = 2310125208\n  |   \
                    \"HIDScrollCountMaxTimeDeltaBetween\" = 600\n  | }\n";
        assert_eq!(idle(text), Some(Duration::from_nanos(2_310_125_208)));
        for text in ["", "\"HIDIdleTime\" = ", "\"HIDIdleTime\" = soon", "HIDIdleTime"] {
            assert_eq!(idle(text), None, "{text}");
        }
    }

    #[test]
    fn a_command_that_is_not_there_says_nothing() {
        assert_eq!(said("/nowhere/pmset", &[]), None);
        assert_eq!(said("/bin/sh", &["-c", "exit 3"]), None);
        assert_eq!(said("/bin/sh", &["-c", "echo it"]).as_deref(), Some("it\n"));
    }
}
