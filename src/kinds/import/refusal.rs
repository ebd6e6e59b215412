//! What a server's error says of a row: whether it is the row's, on which line it is, and which column it is about.

use crate::pq::{PqError, PqErrorKind};

/// The server misses a value of a row, or has one too many.
const BAD_COPY_FORMAT: &str = "22P04";
/// An error that no SQLSTATE was chosen for: PL/Perl's and input functions' among them.
const INTERNAL_ERROR: &str = "XX000";

/// Classes of SQLSTATEs that say nothing of a row: of connections and transactions, of privileges of the session, of resources, of
/// objects that are in use, of an operator's doing, of the system, of a snapshot, of a broken configuration, of foreign servers.
const NOT_OF_A_ROW: [&str; 14] = ["08", "0B", "25", "28", "2D", "3B", "3D", "40", "53", "55", "57", "58", "72", "F0"];

/// The error is one of a row, and others may be stored: its values can't be read, violate a constraint, or a trigger refuses
/// them, whatever SQLSTATE it chooses.
pub(super) fn is_about_a_row(error: &PqError) -> bool {
    let Some(sqlstate) = error.sqlstate.as_deref().filter(|_| error.kind == PqErrorKind::Server) else { return false };
    let class = sqlstate.get(..2).unwrap_or_default();
    match (class, sqlstate) {
        // It has a place in a statement of ours, which would fail for any row.
        _ if error.position.is_some() => false,
        // Damaged data or indexes; without a CONTEXT it isn't known that it came of a value or of a trigger.
        ("XX", INTERNAL_ERROR) => error.context.is_some(),
        ("XX" | "HV", _) => false,
        (_, "42501") => false,
        (class, _) => !NOT_OF_A_ROW.contains(&class),
    }
}

/// The names by which a server speaks of what is stored.
pub(super) struct Names {
    /// What COPY writes to, as its CONTEXT has it.
    pub copied: String,
    pub schema: String,
    pub table: String,
    /// The columns that are imported.
    pub columns: Vec<String>,
}

impl Names {
    /// The line of the COPY, where the CONTEXT says it in whatever language.
    pub fn line(&self, error: &PqError) -> Option<u64> {
        self.place(error).map(|(line, _)| line)
    }

    /// The column of the table, where the server names it: in a field of the error, in the CONTEXT of the COPY, or in what it
    /// says of a value that is missing.
    pub fn column(&self, error: &PqError) -> Option<String> {
        let ours = error.table.as_ref() == Some(&self.table) && error.schema.as_ref() == Some(&self.schema);
        let named = error.column.clone().filter(|_| ours);
        named.or_else(|| self.in_context(error)).or_else(|| self.in_message(error))
    }

    /// `COPY t, line 3, column c: "value"`: table, line, column and value stand in this order in all languages that
    /// PostgreSQL is translated to, Japanese and Korean with the table before the word.
    fn place<'e>(&self, error: &'e PqError) -> Option<(u64, &'e str)> {
        let context = error.context.as_deref()?;
        let place = context.lines().find_map(|line| match line.strip_prefix("COPY ") {
            Some(rest) => rest.strip_prefix(self.copied.as_str()),
            None => line
                .strip_prefix(self.copied.as_str())
                .filter(|rest| rest.starts_with("のCOPY") || rest.starts_with(" 복사")),
        })?;
        let digits = place.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let (number, rest) = digits.split_at(end);
        Some((number.parse().ok()?, rest))
    }

    fn in_context(&self, error: &PqError) -> Option<String> {
        let (_, rest) = self.place(error)?;
        let ends =
            |behind: &str| behind.is_empty() || [":", " :", "\u{a0}:", " 열"].iter().any(|end| behind.starts_with(end));
        let places = self.columns.iter().flat_map(|name| {
            rest.match_indices(name.as_str()).filter_map(move |(at, _)| {
                let (before, behind) = (rest.get(..at)?, rest.get(at.saturating_add(name.len())..)?);
                (before.ends_with(' ') && ends(behind)).then_some((at, std::cmp::Reverse(name.len()), name))
            })
        });
        // Behind a colon comes the value, or the row.
        let value = rest.find(':').unwrap_or(rest.len());
        places.filter(|(at, ..)| *at < value).min().map(|(.., name)| name.clone())
    }

    /// `missing data for column "c"`
    fn in_message(&self, error: &PqError) -> Option<String> {
        if error.sqlstate.as_deref() != Some(BAD_COPY_FORMAT) {
            return None;
        }
        let blank = |c: char| c.is_whitespace();
        let mark = |c: char| "\"«»„“”".contains(c);
        let stands_in_quotes = |name: &&String| {
            error.message.match_indices(name.as_str()).any(|(at, _)| {
                let before = error.message.get(..at).unwrap_or_default().trim_end_matches(blank);
                let behind = error.message.get(at.saturating_add(name.len())..).unwrap_or_default();
                before.ends_with(mark) && behind.trim_start_matches(blank).starts_with(mark)
            })
        };
        self.columns.iter().filter(stands_in_quotes).max_by_key(|name| name.len()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(sqlstate: &str, context: Option<&str>) -> PqError {
        let mut error = PqError::of(PqErrorKind::Server, "");
        (error.sqlstate, error.context) = (Some(sqlstate.to_owned()), context.map(str::to_owned));
        error
    }

    #[test]
    fn an_error_is_the_rows_unless_it_is_known_not_to_be() {
        let of_a_row = [
            "09000", "0A000", "20000", "21000", "22001", "22003", "22007", "22008", "2200N", "22P02", "22P04", "22P05",
            "23502", "23503", "23505", "23514", "23P01", "2F003", "38000", "39000", "3F000", "42601", "42602", "42704",
            "42804", "42883", "42P01", "44000", "54000", "54001", "54023", "MY001", "P0001", "P0002", "P0003", "P0004",
            "ZZ999",
        ];
        let of_no_row = [
            "08006", "0B000", "25006", "25P02", "25P03", "28000", "2D000", "3B001", "3D000", "40001", "40P01", "42501",
            "53100", "53200", "53300", "55000", "55006", "55P03", "55P04", "57014", "57P01", "57P05", "58030", "58P01",
            "72000", "F0000", "HV000", "XX000", "XX001", "XX002",
        ];
        of_a_row.iter().for_each(|state| assert!(is_about_a_row(&error(state, None)), "{state}"));
        of_no_row.iter().for_each(|state| assert!(!is_about_a_row(&error(state, None)), "{state}"));
        assert!(is_about_a_row(&error("XX000", Some("COPY t, line 1, column h: \"x\""))));
        assert!(!is_about_a_row(&error("XX001", Some("COPY t, line 1"))));
        assert!(!is_about_a_row(&PqError { position: Some(1), ..error("42703", None) }));
        assert!(!is_about_a_row(&PqError::connection_lost("gone")));
    }

    #[test]
    fn line_and_column_are_found_in_every_language() {
        let columns = ["line", "column", "c", "c2", "a b", "Spalte", "x: \"y", "7"].map(str::to_owned).to_vec();
        let names = |copied: &str| Names {
            copied: copied.to_owned(),
            schema: "public".to_owned(),
            table: copied.to_owned(),
            columns: columns.clone(),
        };
        for (context, column) in [
            ("COPY t, line 3, column c2: \"n/a\"", Some("c2")),
            ("COPY t, line 3, column column: \"c: c2: \"", Some("column")),
            ("COPY t, line 3, column line: null input", Some("line")),
            ("COPY t, line 3, column a b: \"1\"", Some("a b")),
            ("COPY t, line 3, column x: \"y: \"1\"", Some("x: \"y")),
            ("COPY t, line 3, column 7: \"1\"", Some("7")),
            ("COPY t, line 3, column c", Some("c")),
            ("COPY t, line 3: \"1, column c: 2\"", None),
            ("COPY t, line 3", None),
            ("PL/pgSQL function f() line 3 at RAISE\nCOPY t, line 3: \"1,column c: 2\"", None),
            ("COPY t, Zeile 3, Spalte c2: »n/a«", Some("c2")),
            ("COPY t, Zeile 3, Spalte Spalte: NULL Eingabe", Some("Spalte")),
            ("COPY t, línea 3, columna c2: «n/a»", Some("c2")),
            ("COPY t, ligne 3, colonne c2 : « n/a »", Some("c2")),
            ("COPY t, ligne 3 : « 1, colonne c : »", None),
            ("COPY t, riga 3, colonna c2: \"n/a\"", Some("c2")),
            ("tのCOPY、行 3、列 c2: \"n/a\"", Some("c2")),
            ("COPY t, ხაზი 3, სვეტი c2: \"n/a\"", Some("c2")),
            ("t 복사, 3번째 줄, c2 열: \"n/a\"", Some("c2")),
            ("COPY t, 3행, c2 열: null 입력", Some("c2")),
            ("COPY t, строка 3, столбец c2: \"n/a\"", Some("c2")),
            ("COPY t, rad 3, kolumn c2: null-indata", Some("c2")),
            ("COPY t, рядок 3, стовпець c2: \"n/a\"", Some("c2")),
            ("COPY t, 行 3, 列 c2: \"n/a\"", Some("c2")),
        ] {
            let error = error("22P02", Some(context));
            assert_eq!(names("t").line(&error), Some(3), "{context}");
            assert_eq!(names("t").column(&error).as_deref(), column, "{context}");
        }
        let of_another = error("22P02", Some("COPY t2, line 3, column c: \"x\""));
        assert_eq!(names("t 1").line(&error("22P02", Some("COPY t 1, line 30"))), Some(30));
        assert_eq!(names("u").line(&of_another), None);
    }

    #[test]
    fn a_missing_value_names_its_column_in_every_language() {
        let columns = ["name", "n", "column"].map(str::to_owned).to_vec();
        let (copied, schema, table) = ("t".to_owned(), "public".to_owned(), "t".to_owned());
        let names = Names { copied, schema, table, columns };
        for (message, expected) in [
            ("missing data for column \"name\"", Some("name")),
            ("fehlende Daten für Spalte »name«", Some("name")),
            ("données manquantes pour la colonne « n »", Some("n")),
            ("列\"name\"のデータがありません", Some("name")),
            ("extra data after last expected column", None),
        ] {
            let error =
                PqError { message: message.to_owned(), ..error(BAD_COPY_FORMAT, Some("COPY t, line 2: \"x\"")) };
            assert_eq!(names.column(&error).as_deref(), expected, "{message}");
        }
        // A column of another table, such as one that a trigger writes to.
        let of = |schema: &str, table: &str| PqError {
            schema: Some(schema.to_owned()),
            table: Some(table.to_owned()),
            column: Some("name".to_owned()),
            ..error("23502", None)
        };
        assert_eq!(names.column(&of("public", "t")).as_deref(), Some("name"));
        assert_eq!(names.column(&of("audit", "t")), None);
        assert_eq!(names.column(&of("public", "log")), None);
    }
}
