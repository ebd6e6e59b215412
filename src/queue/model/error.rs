//! Why a job or an attempt failed, with texts of bounded length.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::queue::model::BlockedBy;
use crate::queue::model::limits::MAX_ERROR_BYTES;

/// Why a job or an attempt failed, as its caller sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// A stable word: an [`ErrorCode`](crate::queue::ErrorCode), or one of an embedder's own kind.
    pub code: String,
    /// What happened, and what to do next.
    pub message: String,
    /// The same job may well succeed when it is tried again.
    pub retryable: bool,
    /// The server's SQLSTATE, where there is one.
    pub sqlstate: Option<String>,
    /// The server's DETAIL.
    pub detail: Option<String>,
    /// The server's HINT, or ours.
    pub hint: Option<String>,
    /// Where in the caller's SQL, in characters from 1.
    pub position: Option<u32>,
    /// The column that the server names, such as that of a value which it can't read. Left out of the JSON when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// The constraint that the server names. Left out of the JSON when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constraint: Option<String>,
    /// After a lock was waited for in vain: who held it when it was looked at last. `None` where nobody was seen.
    #[serde(default)]
    pub blocked_by: Option<Vec<BlockedBy>>,
}

impl JobError {
    /// An error of slowlane's own by its [`ErrorCode`](crate::queue::ErrorCode), or of an embedder's kind by a word of its own; not to be tried
    /// again. Its texts are cut at [`MAX_ERROR_BYTES`].
    pub fn new(code: impl AsRef<str>, message: impl Into<String>) -> JobError {
        JobError {
            code: code.as_ref().to_owned(),
            message: cut(message.into()),
            retryable: false,
            sqlstate: None,
            detail: None,
            hint: None,
            position: None,
            column: None,
            constraint: None,
            blocked_by: None,
        }
    }

    /// The same error, worth another try.
    pub fn retryable(mut self) -> JobError {
        self.retryable = true;
        self
    }

    /// The same error with a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> JobError {
        self.hint = Some(cut(hint.into()));
        self
    }

    /// The same error, each of its texts cut at [`MAX_ERROR_BYTES`]: a server's may have the whole of a value.
    pub fn bounded(self) -> JobError {
        let (detail, hint) = (self.detail.map(cut), self.hint.map(cut));
        JobError { message: cut(self.message), detail, hint, ..self }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_ERROR_BYTES {
        text.truncate(text.floor_char_boundary(MAX_ERROR_BYTES - '…'.len_utf8()));
        text.push('…');
    }
    text
}

impl std::error::Error for JobError {}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_an_error_are_bounded() {
        let long = "é".repeat(100_000);
        let error = JobError::new("e", long.clone()).with_hint(long.clone());
        let literal = JobError { detail: Some(long.clone()), hint: Some(long.clone()), message: long, ..error.clone() };
        let bounded = literal.bounded();
        for text in
            [&error.message, &bounded.message].into_iter().chain([&error, &bounded].map(|e| e.hint.as_ref().unwrap()))
        {
            assert!(text.len() <= MAX_ERROR_BYTES && text.len() > MAX_ERROR_BYTES - 5 && text.ends_with("é…"));
        }
        assert!(bounded.detail.is_some_and(|detail| detail.len() <= MAX_ERROR_BYTES));
        assert_eq!(JobError::new("e", "short").message, "short");
    }
}
