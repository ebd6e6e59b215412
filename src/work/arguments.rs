//! What a kind says of its arguments: each that it refuses, and the upload that they name.

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::queue::model::pointer::step;
use crate::queue::{ErrorCode, JobError};
use crate::uploads::ContentType;
use crate::work::error::WorkError;

/// An argument that can't be accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgError {
    /// A JSON pointer from the arguments, such as `/sql`.
    pub pointer: String,
    /// What was expected.
    pub detail: String,
}

impl ArgError {
    /// An error about the argument at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> ArgError {
        ArgError { pointer: pointer.into(), detail: detail.into() }
    }
}

/// An argument that names an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadArg {
    /// A JSON pointer from the arguments, such as `/upload`.
    pub pointer: &'static str,
    /// The upload.
    pub id: Uuid,
    /// What it has to be. `None` where that makes no difference.
    pub reads: Option<UploadTypes>,
}

/// What an upload has to be so that the work can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadTypes {
    /// A JSON pointer from the arguments to the one that says so, such as `/format`.
    pub pointer: &'static str,
    /// What the upload may have been sent as.
    pub types: &'static [ContentType],
}

impl UploadArg {
    /// The argument at `pointer` names the upload `id`, of whatever type.
    pub fn new(pointer: &'static str, id: Uuid) -> UploadArg {
        UploadArg { pointer, id, reads: None }
    }

    /// The argument at `pointer` says that the upload is of one of these types: a job is accepted for no other one.
    /// One that comes in by SQL or from Rust isn't looked at: the work has to compare [`Upload::content_type`] as well.
    ///
    /// [`Upload::content_type`]: crate::uploads::Upload::content_type
    pub fn reading(self, pointer: &'static str, types: &'static [ContentType]) -> UploadArg {
        UploadArg { reads: Some(UploadTypes { pointer, types }), ..self }
    }
}

/// Arguments that a kind refuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the arguments were refused: {}", listed(.errors))]
pub struct CheckError {
    /// Each of them.
    pub errors: Vec<ArgError>,
}

pub(super) fn listed(errors: &[ArgError]) -> String {
    errors.iter().map(|error| format!("{}: {}", error.pointer, error.detail)).collect::<Vec<_>>().join("; ")
}

pub(super) fn no_json(error: serde_json::Error) -> CheckError {
    CheckError { errors: vec![ArgError::new("", format!("expected arguments that have a JSON form: {error}"))] }
}

/// The end of a job whose arguments are refused.
pub(super) fn invalid_args(refused: CheckError) -> WorkError {
    WorkError::Fail(JobError::new(ErrorCode::InvalidArgs, refused.to_string()))
}

/// Reads arguments. An error has the pointer of what it is about.
pub(super) fn parse<W: DeserializeOwned>(args: &RawValue) -> Result<W, ArgError> {
    let mut reader = serde_json::Deserializer::from_str(args.get());
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let pointer = pointer_of(error.path());
        // The position that serde_json adds is one within the arguments and would mislead.
        let text = error.into_inner().to_string();
        let detail = text.split(" at line ").next().unwrap_or(&text).to_owned();
        ArgError { pointer, detail }
    })
}

fn pointer_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(format!("/{index}")),
            Segment::Map { key } => Some(step(key)),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}
