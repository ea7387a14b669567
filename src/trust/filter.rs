//! The tailnet's packet filter: who may reach which of this node's ports.
//!
//! In: the rules that LocalAPI shows of the network map. Out: whether a node may reach a port
//! of ours, or that these rules alone do not say. The filter is kept with its age, so that it
//! still holds while there is no tailnet: that a policy closed a port looks, from the other
//! side, exactly like an outage, and must not open the local network instead.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Who may reach this node, as the coordinator last said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// What lets somebody in. Nothing else does.
    pub rules: Vec<FilterRule>,
}

/// One rule: these sources reach these destinations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterRule {
    /// Source addresses.
    pub srcs: Vec<Prefix>,
    /// Whether sources are also named by a capability of theirs (`SrcCaps`), which cannot be
    /// looked up here.
    pub by_capability: bool,
    /// Destinations on this node.
    pub dsts: Vec<FilterDst>,
    /// Whether the rule speaks of TCP.
    pub tcp: bool,
}

/// Addresses and ports of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterDst {
    /// The addresses.
    pub net: Prefix,
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl Filter {
    /// Whether a node with the addresses `src` may open a TCP connection to one of `ports` at
    /// one of `dst`. `None` = these rules do not say.
    pub fn reaches(&self, src: &[IpAddr], dst: &[IpAddr], ports: &[u16]) -> Option<bool> {
        if src.is_empty() || dst.is_empty() || ports.is_empty() {
            return None;
        }
        let mut perhaps = false;
        for rule in self.rules.iter().filter(|r| r.tcp) {
            for to in dst.iter().filter(|a| rule.opens(**a, ports)) {
                // Packets never change their family on the way.
                let mut from = src.iter().filter(|a| a.is_ipv4() == to.is_ipv4()).peekable();
                perhaps |= rule.by_capability && from.peek().is_some();
                if from.any(|a| rule.srcs.iter().any(|p| p.contains(*a))) {
                    return Some(true);
                }
            }
        }
        if perhaps { None } else { Some(false) }
    }
}

impl FilterRule {
    fn opens(&self, address: IpAddr, ports: &[u16]) -> bool {
        self.dsts.iter().any(|d| {
            d.net.contains(address) && ports.iter().any(|p| (d.first..=d.last).contains(p))
        })
    }
}

/// A range of addresses: an address, and how many of its first bits count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix {
    addr: IpAddr,
    bits: u8,
}

impl Prefix {
    /// Of an address and a number of bits; `None` if it has fewer than that.
    pub fn new(addr: IpAddr, bits: u8) -> Option<Prefix> {
        let most = if addr.is_ipv4() { 32 } else { 128 };
        (bits <= most).then_some(Prefix { addr, bits })
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let bits = u32::from(self.bits);
        match (self.addr, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let differ = a.to_bits() ^ b.to_bits();
                differ.checked_shr(32 - bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let differ = a.to_bits() ^ b.to_bits();
                differ.checked_shr(128 - bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A text that is no range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected an address or a range such as 100.64.0.0/10")]
pub struct PrefixError;

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let (addr, bits) = match text.split_once('/') {
            Some((addr, bits)) => (addr, Some(bits.parse::<u8>().map_err(|_| PrefixError)?)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| PrefixError)?;
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        Prefix::new(addr, bits.unwrap_or(whole)).ok_or(PrefixError)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

impl Serialize for Prefix {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Prefix, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|a| a.parse().unwrap()).collect()
    }

    fn rule(srcs: &str, caps: bool, dst: &str, ports: (u16, u16)) -> FilterRule {
        FilterRule {
            srcs: srcs.split_whitespace().map(|p| p.parse().unwrap()).collect(),
            by_capability: caps,
            dsts: vec![FilterDst { net: dst.parse().unwrap(), first: ports.0, last: ports.1 }],
            tcp: true,
        }
    }

    #[test]
    fn the_filter_says_who_reaches_the_mesh_port() {
        #[track_caller]
        fn check(rules: &[FilterRule], src: &str, dst: &str, want: Option<bool>) {
            let filter = Filter { rules: rules.to_vec() };
            assert_eq!(filter.reaches(&ips(src), &ips(dst), &[11434]), want, "{src} -> {dst}");
        }
        let all = (0, 65535);
        let open = rule("100.64.0.0/11 100.114.0.0/16", false, "0.0.0.0/0", all);
        let six = rule("fd7a:115c:a1e0::/48", false, "::/0", all);
        let one = std::slice::from_ref;
        let me = "100.64.0.1 fd7a:115c:a1e0::1";
        check(one(&open), "100.64.0.2", me, Some(true));
        check(one(&open), "100.113.0.2", me, Some(false));
        check(one(&open), "fd7a:115c:a1e0::2", me, Some(false));
        let mixed = rule("100.64.0.0/11", false, "::/0", all);
        check(&[mixed], "100.64.0.2", me, Some(false));
        check(&[open.clone(), six.clone()], "fd7a:115c:a1e0::2", me, Some(true));
        check(&[], "100.64.0.2", me, Some(false));
        for ports in [(11434, 11434), (0, 11434), (11434, 65535)] {
            check(&[rule("100.64.0.2", false, "100.64.0.1", ports)], "100.64.0.2", me, Some(true));
        }
        for ports in [(22, 22), (11435, 65535), (0, 11433)] {
            check(&[rule("100.64.0.2", false, "100.64.0.1", ports)], "100.64.0.2", me, Some(false));
        }
        check(&[rule("100.64.0.2", false, "100.64.0.9", all)], "100.64.0.2", me, Some(false));
        check(&[FilterRule { tcp: false, ..open.clone() }], "100.64.0.2", me, Some(false));
        // Nothing to compare is not an answer.
        check(one(&open), "", me, None);
        check(&[open], "100.64.0.2", "", None);
    }

    #[test]
    fn a_rule_by_capability_alone_says_nothing() {
        let caps = rule("", true, "100.64.0.1", (0, 65535));
        let ask = |rules: &[FilterRule]| {
            let filter = Filter { rules: rules.to_vec() };
            filter.reaches(&ips("100.64.0.2"), &ips("100.64.0.1"), &[11434])
        };
        assert_eq!(ask(std::slice::from_ref(&caps)), None);
        let plain = rule("100.64.0.2/31", false, "100.64.0.1", (0, 65535));
        assert_eq!(ask(&[caps, plain]), Some(true));
        assert_eq!(ask(&[rule("", true, "100.64.0.1", (22, 22))]), Some(false), "another port");
    }

    #[test]
    fn ranges_are_read_and_written_alike() {
        for text in ["0.0.0.0/0", "100.64.0.0/10", "100.64.0.1/32", "::/0", "fd7a::/48"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        for bad in ["", "x", "1.2.3.4/33", "::/129", "1.2.3.4/", "1.2.3.4/-1", "1.2.3.4/8/8"] {
            assert_eq!(bad.parse::<Prefix>(), Err(PrefixError), "{bad}");
        }
        let all: Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains("255.255.255.255".parse().unwrap()));
        assert!(!all.contains("::1".parse().unwrap()));
    }
}
