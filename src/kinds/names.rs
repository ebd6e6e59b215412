//! Names of tables, views and indexes in arguments: written as SQL writes them, and looked up as the session's
//! `search_path` has them. Where that finds nothing, the error names the argument, and what there is under nearly the
//! same name.
//!
//! A name is read here, by the rules of the server: newer servers take one that can't be read for one that isn't there.

use crate::pq::Session;
use crate::pq::quote::{identifier, text_array};
use crate::queue::{ErrorCode, JobError};
use crate::work::WorkError;

/// A name in an argument.
pub(super) struct Named<'n> {
    /// A JSON pointer from the arguments, such as `/table`.
    pointer: &'n str,
    name: &'n str,
    /// What it is to be.
    what: &'static str,
    /// The kinds of relations that it may be, as the catalog has them.
    kinds: &'static [&'static str],
    code: ErrorCode,
}

impl<'n> Named<'n> {
    pub fn table(pointer: &'n str, name: &'n str) -> Named<'n> {
        let kinds = &["r", "p", "m", "f"];
        Named { pointer, name, what: "table", kinds, code: ErrorCode::TableNotFound }
    }

    pub fn view(pointer: &'n str, name: &'n str) -> Named<'n> {
        Named { pointer, name, what: "materialized view", kinds: &["m"], code: ErrorCode::ViewNotFound }
    }

    pub fn index(pointer: &'n str, name: &'n str) -> Named<'n> {
        Named { pointer, name, what: "index", kinds: &["i", "I"], code: ErrorCode::IndexNotFound }
    }

    /// The oid of what has the name, of whatever kind it is.
    pub fn oid(&self, session: &mut Session) -> Result<String, WorkError> {
        let Some(parts) = self.parts(session)? else { return Err(self.unreadable(session)?) };
        match found(session, &parts)? {
            Some(oid) => Ok(oid),
            None => Err(self.missing(session, &parts)?),
        }
    }

    /// The name can be read, and nothing has it.
    pub fn is_missing(&self, session: &mut Session) -> Result<bool, WorkError> {
        let Some(parts) = self.parts(session)? else { return Ok(false) };
        Ok(found(session, &parts)?.is_none())
    }

    /// Schema and name, or the name alone. The database may stand before them, as long as it is this one.
    fn parts(&self, session: &mut Session) -> Result<Option<Vec<String>>, WorkError> {
        let Some(mut parts) = parts(self.name) else { return Ok(None) };
        if parts.len() == 3 {
            let database = parts.remove(0);
            let rows = session.query("SELECT pg_catalog.current_database() = $1", &[Some(&database)])?;
            return Ok((rows.get(0, 0) == Some("t")).then_some(parts));
        }
        Ok((parts.len() < 3).then_some(parts))
    }

    fn missing(&self, session: &mut Session, parts: &[String]) -> Result<WorkError, WorkError> {
        let message = format!("there is no {} {}, or its schema isn't in the search_path", self.what, self.name);
        let hint = match self.alike(session, parts)?.first() {
            Some(there) => format!("there is {there}: write {}", self.written(there)),
            None => "name its schema too, where the role's search_path doesn't lead to it".to_owned(),
        };
        Ok(WorkError::Fail(JobError::new(self.code, message).with_hint(hint)))
    }

    fn unreadable(&self, session: &mut Session) -> Result<WorkError, WorkError> {
        let message = format!("{}: {} is no name as SQL writes it", self.pointer, self.name);
        if let Some(parts) = parts(self.name) {
            return self.elsewhere(session, &parts);
        }
        let guesses = guesses(self.name);
        let mut there = Vec::new();
        for guess in &guesses {
            there.append(&mut self.alike(session, guess)?);
        }
        let quoted =
            guesses.first().map(|parts| parts.iter().map(|part| identifier(part)).collect::<Vec<_>>().join("."));
        let hint = match (there.first(), quoted) {
            (Some(there), _) => format!("there is {there}: write {}", self.written(there)),
            (None, Some(quoted)) => {
                format!("a name with blanks or capitals stands in double quotes: write {}", self.written(&quoted))
            }
            (None, None) => "write schema.name or name, each in double quotes where SQL would have them".to_owned(),
        };
        Ok(WorkError::Fail(JobError::new(self.code, message).with_hint(hint)))
    }

    /// A name of more parts than schema and name.
    fn elsewhere(&self, session: &mut Session, parts: &[String]) -> Result<WorkError, WorkError> {
        let fail = |message: String, hint: String| {
            Ok(WorkError::Fail(JobError::new(self.code, format!("{}: {message}", self.pointer)).with_hint(hint)))
        };
        let [database, rest @ ..] = parts else { return fail("no name".to_owned(), String::new()) };
        if rest.len() != 2 {
            let hint = "write schema.name, each in double quotes where a dot is a part of it".to_owned();
            return fail(format!("{} has more parts than a database, a schema and a name", self.name), hint);
        }
        let rows = session.query("SELECT pg_catalog.current_database()", &[])?;
        let message = format!(
            "{} is in the database {database}, and the target is the database {}",
            self.name,
            rows.get(0, 0).unwrap_or_default()
        );
        let name = rest.iter().map(|part| identifier(part)).collect::<Vec<_>>().join(".");
        fail(message, format!("name a target of that database, or write {}", self.written(&name)))
    }

    /// The argument as it is to be written in JSON.
    fn written(&self, name: &str) -> String {
        let argument = self.pointer.rsplit('/').next().unwrap_or_default();
        format!("\"{argument}\": {}", serde_json::Value::from(name))
    }

    /// What there is under these names but for capitals and the schema, quoted where SQL needs it.
    fn alike(&self, session: &mut Session, parts: &[String]) -> Result<Vec<String>, WorkError> {
        let [.., name] = parts else { return Ok(Vec::new()) };
        let schema = parts.iter().rev().nth(1);
        let rows = session.query(
            "SELECT CASE WHEN $2::text IS NULL AND pg_catalog.pg_table_is_visible(c.oid)
                         THEN pg_catalog.format('%I', c.relname) ELSE pg_catalog.format('%I.%I', n.nspname, c.relname) END
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE pg_catalog.lower(c.relname) = pg_catalog.lower($1) AND c.relkind::text = ANY ($3::text[])
                AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND n.nspname !~ '^pg_(toast|temp)'
              ORDER BY pg_catalog.lower(n.nspname) IS DISTINCT FROM pg_catalog.lower($2),
                       NOT pg_catalog.pg_table_is_visible(c.oid), c.relname <> $1, n.nspname, c.relname LIMIT 3",
            &[Some(name), schema.map(String::as_str), Some(&text_array(self.kinds))],
        )?;
        Ok((0..rows.len()).filter_map(|row| rows.get(row, 0)).map(str::to_owned).collect())
    }
}

/// The oid of what has this name.
fn found(session: &mut Session, parts: &[String]) -> Result<Option<String>, WorkError> {
    let name = parts.iter().map(|part| identifier(part)).collect::<Vec<_>>().join(".");
    let rows = session.query("SELECT pg_catalog.to_regclass($1)::pg_catalog.oid", &[Some(&name)])?;
    Ok(rows.get(0, 0).map(str::to_owned))
}

/// What blanks are to the server.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c' | '\x0b')
}

/// The parts of a name between its dots, each as it is in the catalog: without quotes, and in small letters where there
/// were none. `None` for what is no name.
fn parts(name: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = name.trim_start_matches(is_blank);
    loop {
        let part;
        (part, rest) = match rest.strip_prefix('"') {
            Some(quoted) => until_quote(quoted)?,
            None => {
                let end = rest.find(|c| c == '.' || is_blank(c)).unwrap_or(rest.len());
                let (part, rest) = rest.split_at_checked(end)?;
                (part.to_ascii_lowercase(), rest)
            }
        };
        if part.is_empty() {
            return None;
        }
        parts.push(part);
        rest = rest.trim_start_matches(is_blank);
        match rest.strip_prefix('.') {
            Some(more) => rest = more.trim_start_matches(is_blank),
            None => return rest.is_empty().then_some(parts),
        }
    }
}

/// What stands in quotes, and what follows the closing one. A quote is doubled within.
fn until_quote(quoted: &str) -> Option<(String, &str)> {
    let (mut text, mut rest) = (String::new(), quoted);
    loop {
        let (before, after) = rest.split_once('"')?;
        text.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                text.push('"');
                rest = more;
            }
            None => return Some((text, after)),
        }
    }
}

/// What somebody may have meant by a name that can't be read, the likeliest first.
fn guesses(name: &str) -> Vec<Vec<String>> {
    let bare = |text: &str| text.trim().trim_matches('"').replace("\"\"", "\"");
    let mut guesses = Vec::new();
    if let Some((schema, table)) = name.split_once('.') {
        guesses.push(vec![bare(schema), bare(table)]);
    }
    guesses.push(vec![bare(name)]);
    guesses.retain(|parts| parts.iter().all(|part| !part.is_empty()));
    guesses
}

#[cfg(test)]
mod tests {
    use super::{guesses, parts};

    #[test]
    fn names_are_read_as_the_server_reads_them() {
        let read = |name: &str| parts(name).map(|parts| parts.join("|"));
        for (name, expected) in [
            ("t", "t"),
            (" Sales . ORDERS\n", "sales|orders"),
            ("\"My \"\"Table\"", "My \"Table"),
            ("a.\"B.c\".É", "a|B.c|É"),
            ("my-table", "my-table"),
            ("1", "1"),
        ] {
            assert_eq!(read(name).as_deref(), Some(expected), "{name}");
        }
        for name in ["", " ", "My Table", "a.", ".a", "a..b", "\"open", "\"\"", "\"a\"b", "a \"b\""] {
            assert_eq!(read(name), None, "{name}");
        }
    }

    #[test]
    fn what_was_meant_is_guessed() {
        assert_eq!(guesses("My Table"), [["My Table"]]);
        assert_eq!(guesses("public.My Table")[0], ["public", "My Table"]);
        assert_eq!(guesses("public.\"My Table")[0], ["public", "My Table"]);
        assert_eq!(guesses("a. ")[0], ["a."]);
    }
}
