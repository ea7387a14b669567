//! For whom a node works, and the time of day that a person lives by.

use serde::{Deserialize, Serialize};

/// For whom a node works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accepting {
    /// For everybody whom its rules let in.
    #[default]
    All,
    /// For devices of its owner.
    Mine,
    /// For nobody else. (A word of a newer version means that something is held back.)
    #[serde(other)]
    None,
}

impl Accepting {
    /// The word in reports and status.
    pub const fn label(self) -> &'static str {
        match self {
            Accepting::All => "all",
            Accepting::Mine => "mine",
            Accepting::None => "none",
        }
    }

    /// Whether it is [`Accepting::All`].
    pub fn is_all(&self) -> bool {
        *self == Accepting::All
    }

    /// Whether somebody so near to the engines' owner is let in.
    pub fn admits(self, side: Side) -> bool {
        match side {
            Side::Here => true,
            Side::Mine => self != Accepting::None,
            Side::Guest => self == Accepting::All,
        }
    }
}

/// How near a caller is to the owner of a node's engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// A program on the node itself.
    Here,
    /// Another device of the node's owner.
    Mine,
    /// Anybody else.
    Guest,
}

/// `share.when`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words of the configuration")]
pub enum ShareWhen {
    Auto,
    All,
    Mine,
    None,
    Idle,
}

impl ShareWhen {
    /// The word in the configuration and in status.
    pub const fn label(self) -> &'static str {
        match self {
            ShareWhen::Auto => "auto",
            ShareWhen::All => "all",
            ShareWhen::Mine => "mine",
            ShareWhen::None => "none",
            ShareWhen::Idle => "idle",
        }
    }
}

/// A time of day where the machine stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// The year.
    pub year: i16,
    /// The month, from 1.
    pub month: i8,
    /// The day of the month, from 1.
    pub day: i8,
    /// Minutes since midnight, as a clock on the wall shows them.
    pub minute: u16,
}
