//! An error with its causes, in one line.

use core::fmt;

/// Writes the causes of an error behind its own text, if the alternate form is asked for, as by `{error:#}`: `a: b: c`.
pub(crate) fn write_causes(f: &mut fmt::Formatter<'_>, error: &dyn core::error::Error) -> fmt::Result {
    if !f.alternate() {
        return Ok(());
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        write!(f, ": {error}")?;
        cause = error.source();
    }
    Ok(())
}
