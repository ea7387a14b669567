//! `tailherd version`.

use super::{Context, Failure};

pub(super) fn run(context: Context<'_>) -> Result<(), Failure> {
    writeln!(context.out, "tailherd {}", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}
