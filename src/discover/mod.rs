//! Discovery: which nodes there are, which of them may be used, and where they are.

mod known;
