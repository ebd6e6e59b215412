//! Why a statement can't be prepared or run, and which value it is about.

use crate::kinds::params::ParamError;
use crate::pq::PqError;
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// Why a statement can't be run.
pub(super) enum PrepareError {
    /// The server says so.
    Server(PqError),
    /// The parameters aren't what the server described.
    Params(ParamError),
    /// The server says so of a value or of its type.
    Placed {
        /// A JSON pointer, such as `/params/0`.
        place: String,
        /// What the job ends with, where it isn't what the server's error says.
        code: Option<ErrorCode>,
        /// The server's error.
        error: Box<PqError>,
    },
}

impl From<PqError> for PrepareError {
    fn from(error: PqError) -> Self {
        PrepareError::Server(error)
    }
}

impl From<ParamError> for PrepareError {
    fn from(error: ParamError) -> Self {
        PrepareError::Params(error)
    }
}

impl PrepareError {
    /// What the server says of a statement that it plans or runs: about one of its values, where the CONTEXT names
    /// that.
    pub fn of_run(error: PqError) -> PrepareError {
        match value_of(&error) {
            Some(n) => PrepareError::Placed { place: format!("/params/{n}"), code: None, error: Box::new(error) },
            None => PrepareError::Server(error),
        }
    }

    /// The values, or the one of them, that it is about: a JSON pointer such as `/params/0`. The message says so, too.
    pub fn place(&self) -> Option<String> {
        match self {
            PrepareError::Server(_) => None,
            PrepareError::Params(error) => match error.message.split_once(": ") {
                Some((place, _)) if place.starts_with('/') => Some(place.to_owned()),
                _ => Some("/params".to_owned()),
            },
            PrepareError::Placed { place, .. } => Some(place.clone()),
        }
    }

    /// As a failure of the work, the server's errors as `server` has them.
    pub fn or_server(self, server: impl FnOnce(PqError) -> WorkError) -> WorkError {
        match self {
            PrepareError::Server(error) => server(error),
            PrepareError::Params(error) => WorkError::Fail(JobError::new(error.code, error.message)),
            PrepareError::Placed { place, code, error } => {
                let message = format!("{place}: {}", error.message);
                let placed = |error: JobError| JobError {
                    code: code.map_or(error.code, |code| code.as_ref().to_owned()),
                    ..error
                };
                // Its position is one in a statement of ours.
                match WorkError::from(PqError { message, position: None, ..*error }) {
                    WorkError::Fail(error) => WorkError::Fail(placed(error)),
                    other => other,
                }
            }
        }
    }
}

/// The place of the value that the server can't read, from 0: the last line of the CONTEXT names it in every language,
/// as in
/// `unnamed portal parameter $1`. A list of all values, which a server may be set to add, has a colon in front.
fn value_of(error: &PqError) -> Option<usize> {
    let of_data = error.sqlstate.as_deref().is_some_and(|state| state.starts_with("22") || state.starts_with("23"));
    let line = error.context.as_deref().filter(|_| of_data)?.lines().last()?;
    let (before, behind) = line.split_once('$')?;
    let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
    let number: usize = behind.get(..digits)?.parse().ok()?;
    number.checked_sub(1).filter(|_| !before.trim_end().ends_with(':'))
}

#[cfg(test)]
mod tests {
    use super::value_of;
    use crate::pq::{PqError, PqErrorKind};

    #[test]
    fn the_context_names_the_value() {
        for (state, context, expected) in [
            ("22P02", Some("unnamed portal parameter $2"), Some(1)),
            ("22P02", Some("unbenanntes Portal, Parameter $1 = '$9'"), Some(0)),
            ("23514", Some("SQL function \"f\" statement 1\nunnamed portal parameter $12"), Some(11)),
            ("22P02", Some("unnamed portal with parameters: $1 = 'a'"), None),
            ("22P02", Some("SQL statement \"SELECT $1\"\nPL/pgSQL function f() line 1"), None),
            ("42P01", Some("unnamed portal parameter $2"), None),
            ("22P02", Some("unnamed portal parameter $0"), None),
            ("22P02", None, None),
        ] {
            let mut error = PqError::of(PqErrorKind::Server, "");
            (error.sqlstate, error.context) = (Some(state.to_owned()), context.map(str::to_owned));
            assert_eq!(value_of(&error), expected, "{context:?}");
        }
    }
}
