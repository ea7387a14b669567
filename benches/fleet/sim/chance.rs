//! Chance that depends on nothing but its place: what befalls a request at a node is the same
//! under every policy.

/// A number in 0..1 for a seed, a place and a purpose.
pub(crate) fn part(seed: u64, place: u64, purpose: u64) -> f64 {
    let mixed = mix(mix(mix(seed) ^ place) ^ purpose);
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

/// A factor around 1 with this relative error, as everyday errors are: normal, cut at 3 sigma.
pub(crate) fn about_one(seed: u64, place: u64, purpose: u64, error: f64) -> f64 {
    let (a, b) = (part(seed, place, purpose), part(seed, place, purpose + 1_000_003));
    let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    (1.0 + error * normal.clamp(-3.0, 3.0)).max(0.1)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
