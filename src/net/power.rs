//! Whether this machine runs on battery, as far as its system says.

use crate::types::Power;

/// What the system says now. Reads a few small files of the kernel's.
#[cfg(target_os = "linux")]
pub(super) fn read() -> Power {
    read_at(std::path::Path::new("/sys/class/power_supply"))
}

/// Nobody is asked on this system.
#[cfg(not(target_os = "linux"))]
pub(super) fn read() -> Power {
    Power::Unknown
}

/// From a folder with one entry for each supply. A machine that knows of none is no laptop.
#[cfg(any(target_os = "linux", test))]
fn read_at(folder: &std::path::Path) -> Power {
    let Ok(supplies) = std::fs::read_dir(folder) else { return Power::Mains };
    let mut battery = false;
    for supply in supplies.flatten() {
        let said = |file: &str| {
            let text = std::fs::read_to_string(supply.path().join(file)).unwrap_or_default();
            text.trim().to_owned()
        };
        // The batteries of a mouse or a pen are not the machine's.
        if said("scope") == "Device" {
            continue;
        }
        match said("type").as_str() {
            "Battery" => battery |= !matches!(said("status").as_str(), "Charging" | "Full"),
            _ if said("online") == "1" => return Power::Mains,
            _ => {}
        }
    }
    if battery { Power::Battery } else { Power::Mains }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(supplies: &[(&str, &[(&str, &str)])], expect: Power) {
        let folder = tempfile::tempdir().unwrap();
        for (name, files) in supplies {
            let supply = folder.path().join(name);
            std::fs::create_dir(&supply).unwrap();
            for (file, text) in *files {
                std::fs::write(supply.join(file), format!("{text}\n")).unwrap();
            }
        }
        assert_eq!(read_at(folder.path()), expect, "{supplies:?}");
    }

    #[test]
    fn a_laptop_without_its_plug_is_on_battery() {
        let battery = ("BAT0", &[("type", "Battery"), ("status", "Discharging")][..]);
        let idle = ("BAT0", &[("type", "Battery"), ("status", "Not charging")][..]);
        let full = ("BAT0", &[("type", "Battery"), ("status", "Full")][..]);
        let plug = |online| {
            (
                "AC",
                if online {
                    &[("type", "Mains"), ("online", "1")][..]
                } else {
                    &[("type", "Mains"), ("online", "0")][..]
                },
            )
        };
        let mouse =
            ("hid", &[("type", "Battery"), ("status", "Discharging"), ("scope", "Device")][..]);
        let usb = ("ucsi", &[("type", "USB"), ("online", "1")][..]);
        check(&[battery, plug(false)], Power::Battery);
        check(&[battery], Power::Battery);
        check(&[idle, plug(true)], Power::Mains);
        check(&[battery, usb], Power::Mains);
        check(&[full, plug(false)], Power::Mains);
        check(&[mouse], Power::Mains);
        check(&[], Power::Mains);
        assert_eq!(read_at(std::path::Path::new("/nowhere")), Power::Mains);
    }
}
