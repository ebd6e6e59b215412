//! An error with the argument that it is about: `validate` points at it, and a job says it in its message.

use crate::pq::PqError;
use crate::queue::JobError;
use crate::work::WorkError;

/// An error, and the argument that it is about: a JSON pointer such as `/set/name`. Empty for none.
#[derive(Debug)]
pub(in crate::kinds) struct Misplaced {
    pointer: String,
    /// The error's message doesn't name the argument by itself.
    unsaid: bool,
    error: WorkError,
}

impl Misplaced {
    /// An error whose message says by itself what it is about.
    pub fn at(pointer: impl Into<String>, error: WorkError) -> Misplaced {
        Misplaced { pointer: pointer.into(), unsaid: false, error }
    }

    /// An error that says what it is about by the argument alone.
    pub fn within(pointer: &str, error: WorkError) -> Misplaced {
        Misplaced { unsaid: true, ..Misplaced::at(pointer, error) }
    }

    /// With more in its error.
    pub fn explained(self, explain: impl FnOnce(JobError) -> JobError) -> Misplaced {
        let error = match self.error {
            WorkError::Fail(error) => WorkError::Fail(explain(error)),
            other => other,
        };
        Misplaced { error, ..self }
    }

    /// The argument, and the error.
    pub fn apart(self) -> (String, WorkError) {
        (self.pointer, self.error)
    }
}

impl From<WorkError> for Misplaced {
    fn from(error: WorkError) -> Misplaced {
        Misplaced::at("", error)
    }
}

impl From<PqError> for Misplaced {
    fn from(error: PqError) -> Misplaced {
        WorkError::from(error).into()
    }
}

/// As a job says it, with the argument in the message.
impl From<Misplaced> for WorkError {
    fn from(Misplaced { pointer, unsaid, error }: Misplaced) -> WorkError {
        let place = |error: JobError| match unsaid {
            true => JobError { message: format!("{pointer}: {}", error.message), ..error }.bounded(),
            false => error,
        };
        match error {
            WorkError::Retry(error) => WorkError::Retry(place(error)),
            WorkError::Fail(error) => WorkError::Fail(place(error)),
            other => other,
        }
    }
}
