//! Why a connection string is refused. Nothing of the string itself stands in a message but what was read without
//! doubt, its secrets masked: what a broken string means isn't known, and any word of it may be a piece of the
//! password.

use std::fmt;

use crate::dsn::Driver;

/// What to write when the string itself is in doubt.
pub const TEMPLATE: &str = "postgresql://USER:PASSWORD@HOST:PORT/DATABASE";

/// The stable word for a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is explained by its meaning")]
pub enum Code {
    Empty,
    MissingScheme,
    UnsupportedScheme,
    Malformed,
    InvalidHost,
    InvalidPort,
    InvalidPercentEncoding,
    UnescapedPassword,
    UnknownParameter,
    DuplicateParameter,
    UnexpandedVariable,
    UnbalancedQuote,
    PastedAssignment,
    PastedCommand,
    RedactedPassword,
    ForeignSyntax,
}

impl Code {
    /// Every one.
    pub const ALL: [Code; 16] = [
        Code::Empty,
        Code::MissingScheme,
        Code::UnsupportedScheme,
        Code::Malformed,
        Code::InvalidHost,
        Code::InvalidPort,
        Code::InvalidPercentEncoding,
        Code::UnescapedPassword,
        Code::UnknownParameter,
        Code::DuplicateParameter,
        Code::UnexpandedVariable,
        Code::UnbalancedQuote,
        Code::PastedAssignment,
        Code::PastedCommand,
        Code::RedactedPassword,
        Code::ForeignSyntax,
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::Empty => "empty",
            Code::MissingScheme => "missing_scheme",
            Code::UnsupportedScheme => "unsupported_scheme",
            Code::Malformed => "malformed",
            Code::InvalidHost => "invalid_host",
            Code::InvalidPort => "invalid_port",
            Code::InvalidPercentEncoding => "invalid_percent_encoding",
            Code::UnescapedPassword => "unescaped_password",
            Code::UnknownParameter => "unknown_parameter",
            Code::DuplicateParameter => "duplicate_parameter",
            Code::UnexpandedVariable => "unexpanded_variable",
            Code::UnbalancedQuote => "unbalanced_quote",
            Code::PastedAssignment => "pasted_assignment",
            Code::PastedCommand => "pasted_command",
            Code::RedactedPassword => "redacted_password",
            Code::ForeignSyntax => "foreign_syntax",
        }
    }

    /// What it stands for.
    pub fn meaning(self) -> &'static str {
        match self {
            Code::Empty => "there is nothing in it",
            Code::MissingScheme => "it is neither a URL nor `keyword=value`",
            Code::UnsupportedScheme => "its scheme names another database, or a driver in a way that none understands",
            Code::Malformed => "it can't be taken apart without guessing",
            Code::InvalidHost => "a host can't be one",
            Code::InvalidPort => "a port isn't a number from 1 to 65535",
            Code::InvalidPercentEncoding => "a `%` is not followed by two hexadecimal digits, or stands for NUL",
            Code::UnescapedPassword => "a `@` or `/` in the password isn't written as %40 or %2F",
            Code::UnknownParameter => "a parameter is neither libpq's nor known of another driver",
            Code::DuplicateParameter => "a parameter is given twice",
            Code::UnexpandedVariable => "a variable in it wasn't replaced by its value",
            Code::UnbalancedQuote => "a quote has no other end",
            Code::PastedAssignment => "the name of a variable was pasted with it",
            Code::PastedCommand => "a command was pasted with it",
            Code::RedactedPassword => "its password was masked by whatever printed it, or was never filled in",
            Code::ForeignSyntax => "it is written in another syntax, such as PDO's or SQL Server's",
        }
    }
}

/// Why a connection string was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DsnError {
    /// The stable word.
    pub code: Code,
    /// Whom it was written for.
    pub driver: Driver,
    /// What is wrong, and what to do about it. Holds nothing of the string.
    pub message: String,
    /// The string that would be right, its password masked; [`TEMPLATE`] where the string is in doubt.
    pub right: String,
}

impl std::error::Error for DsnError {}

impl fmt::Display for DsnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)?;
        if self.driver != Driver::Unknown {
            write!(f, "; it was written for {}", self.driver)?;
        }
        write!(f, "; right would be {}", self.right)
    }
}

impl DsnError {
    /// A refusal of a string that shows neither whom it was written for, nor what would be right.
    pub(super) fn new(code: Code, message: impl Into<String>) -> DsnError {
        DsnError { code, driver: Driver::Unknown, message: message.into(), right: TEMPLATE.to_owned() }
    }

    pub(super) fn malformed(message: impl Into<String>) -> DsnError {
        DsnError::new(Code::Malformed, message)
    }

    /// It was written for this one, unless more is known already.
    pub(super) fn written_for(self, driver: Driver) -> DsnError {
        if self.driver == Driver::Unknown { DsnError { driver, ..self } } else { self }
    }

    /// The same, naming the parameter that it is about. The name has to be one of a list: another may be a piece of a
    /// password.
    pub(super) fn about(self, name: &str) -> DsnError {
        if self.message.contains(name) {
            self
        } else {
            DsnError { message: format!("{name}: {}", self.message), ..self }
        }
    }

    pub(super) fn with_right(self, right: impl Into<String>) -> DsnError {
        DsnError { right: right.into(), ..self }
    }
}
