//! What surrounds a connection string when it is pasted: blanks, marks that nobody sees, quotes, the name of a
//! variable, a command. The first two are taken off, the rest is named.

use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::{Change, Parameter};

/// Programs whose command lines have connection strings in them.
const COMMANDS: [&str; 12] = [
    "psql",
    "pgcli",
    "pg_dump",
    "pg_dumpall",
    "pg_restore",
    "pg_isready",
    "createdb",
    "dropdb",
    "vacuumdb",
    "usql",
    "pgbench",
    "docker",
];

/// Marks without a width, which editors and chat programs leave behind.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{feff}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{ad}')
}

fn trim(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c.is_control() || is_invisible(c))
}

/// The string without what surrounds it.
pub(super) fn tidy<'t>(text: &'t str, changes: &mut Vec<Change>) -> Result<&'t str, DsnError> {
    let mut rest = trim(text);
    if rest != text {
        changes.push(Change::new("trimmed", "blanks, line ends or invisible characters around it are left out"));
    }
    if let Some(inside) = unquoted(rest) {
        changes.push(Change::new("unquoted", "the quotes around it are left out"));
        rest = trim(inside);
    }
    if rest.is_empty() {
        return Err(DsnError::new(Code::Empty, "the connection string is empty"));
    }
    // Pairs may stand on lines of their own.
    let pairs = !rest.contains("://") && super::raw::looks_like_key_value(rest);
    let is_wrong = |c: char| is_invisible(c) || (c.is_control() && !(pairs && c.is_ascii_whitespace()));
    if rest.contains(is_wrong) {
        return Err(DsnError::malformed("a line end or an invisible character stands within it"));
    }
    Ok(rest)
}

fn unquoted(text: &str) -> Option<&str> {
    [('"', '"'), ('\'', '\''), ('`', '`'), ('\u{201c}', '\u{201d}'), ('\u{2018}', '\u{2019}')]
        .into_iter()
        .find_map(|(open, close)| text.strip_prefix(open)?.strip_suffix(close))
}

/// Refuses what was pasted with more around it than quotes, with what stands within.
pub(super) fn check_pasted<'t>(text: &'t str, table: &[Parameter]) -> Result<(), (DsnError, &'t str)> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    let is_command = COMMANDS.contains(&first) || first.ends_with("/psql");
    if is_command && first.len() < text.len() {
        let error = DsnError::new(Code::PastedCommand, "give the connection string alone, without the command");
        let arguments = text.strip_prefix(first).unwrap_or_default();
        return Err((error, trim(arguments).trim_matches(['"', '\''])));
    }
    match assigned(text, table) {
        Some(value) => Err((
            DsnError::new(Code::PastedAssignment, "give the value alone, without the name of the variable before it"),
            value,
        )),
        None => Ok(()),
    }
}

/// The value behind `NAME=`, `export NAME=`, `name: ` and their like, where it is a connection string itself.
fn assigned<'t>(text: &'t str, table: &[Parameter]) -> Option<&'t str> {
    let exported = ["export ", "set ", "SET ", "env ", "ENV ", "$env:", "- "]
        .iter()
        .find_map(|word| text.strip_prefix(word))
        .map(str::trim_start);
    let line = exported.unwrap_or(text);
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let name = name.trim_start_matches('"');
    let rest = rest.trim_start_matches('"').trim_start();
    let value = rest.strip_prefix(['=', ':'])?;
    if name.is_empty() || table.iter().any(|known| known.keyword == name) || value.starts_with("//") {
        return None;
    }
    let value = value.trim_start().trim_start_matches(['"', '\'']);
    let scheme = value.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '_' | '-' | ':'))
    });
    let keyword = rest.starts_with('=')
        && value.split_once('=').is_some_and(|(word, _)| table.iter().any(|known| known.keyword == word));
    let other = ["jdbc", "r2dbc", "r2dbcs"].iter().any(|known| name.eq_ignore_ascii_case(known));
    let is_one = (scheme || keyword) && !other;
    is_one.then(|| value.trim_end_matches(['"', '\'', ';', ',']))
}

/// Refuses a string in which something was to be filled in.
pub(super) fn check_variables(text: &str) -> Result<(), DsnError> {
    let opened = [("${", "}"), ("$(", ")"), ("{{", "}}"), ("<%", "%>"), ("#{", "}"), ("%(", ")s")];
    let has = opened
        .iter()
        .any(|(open, close)| text.find(open).is_some_and(|at| text.get(at..).is_some_and(|rest| rest.contains(close))));
    // What was cut off within a variable is one too.
    if has || text.contains("${") || names_a_variable(text) {
        return Err(DsnError::new(
            Code::UnexpandedVariable,
            "a variable in it was not replaced by its value: whatever was to do that didn't run, or doesn't know it",
        ));
    }
    Ok(())
}

/// `$NAME` as the whole of a component, or `%NAME%`.
fn names_a_variable(text: &str) -> bool {
    let is_name = |name: &str| {
        name.len() > 1
            && name.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())
            && name.starts_with(|c: char| c.is_ascii_uppercase())
    };
    let pieces = || text.split(['/', ':', '@', '?', '&', '=', ' ', ',', '\'']);
    pieces().any(|piece| piece.strip_prefix('$').is_some_and(is_name))
        || pieces().any(|piece| piece.strip_prefix('%').and_then(|p| p.strip_suffix('%')).is_some_and(is_name))
}

/// A quote that begins or ends the string, and has no other end. One that ends a value of `keyword='value'` is none.
pub(super) fn check_quotes(text: &str) -> Result<(), DsnError> {
    const QUOTES: [char; 7] = ['"', '\'', '`', '\u{201c}', '\u{201d}', '\u{2018}', '\u{2019}'];
    if text.starts_with(QUOTES) || text.ends_with(QUOTES) {
        return Err(unbalanced());
    }
    Ok(())
}

pub(super) fn unbalanced() -> DsnError {
    DsnError::new(Code::UnbalancedQuote, "a quote at an end of it has no other end: quote all of it, or nothing")
}

/// What stands where a password was: asterisks, dots, or words that ask to be replaced.
pub(super) fn is_redacted(password: &str) -> bool {
    let only = |marks: &[char]| password.chars().all(|c| marks.contains(&c));
    if password.is_empty() {
        return false;
    }
    let framed = [('<', '>'), ('[', ']'), ('{', '}')]
        .into_iter()
        .find_map(|(open, close)| password.strip_prefix(open)?.strip_suffix(close));
    let word = framed.unwrap_or(password).to_ascii_lowercase().replace(['-', '_', ' '], "");
    let asks = ["password", "yourpassword", "dbpassword", "redacted", "hidden", "masked", "secret", "filtered"];
    only(&['*'])
        || only(&['\u{2022}'])
        || only(&['\u{25cf}'])
        || (framed.is_some() && asks.contains(&word.as_str()))
        || ["yourpassword", "redacted", "[redacted]"].contains(&word.as_str())
}
