//! What can be told of a statement from its text alone, as PostgreSQL's lexer reads it: its first words.
//!
//! No parser, and no wall: it gives a clear answer early. What holds is asked from the server.

/// The first words of a statement, in capitals, behind blanks, comments and empty statements: fewer than asked for when
/// the text ends.
pub(super) fn first_words(sql: &str, most: usize) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = Some(sql);
    while words.len() < most {
        let Some((word, after)) = rest.and_then(next_word) else { break };
        words.push(word.to_ascii_uppercase());
        rest = Some(after);
    }
    words
}

/// The first word of a statement. `None` when there is none.
pub(super) fn first_word(sql: &str) -> Option<&str> {
    next_word(sql).map(|(word, _)| word)
}

/// What an EXPLAIN explains, and whether it runs it (ANALYZE). `None` for any other statement.
pub(super) fn explained(sql: &str) -> Option<(bool, &str)> {
    let (first, rest) = next_word(sql)?;
    if !first.eq_ignore_ascii_case("EXPLAIN") {
        return None;
    }
    let (word, after) = next_word(rest)?;
    let analyze = is_one_of(word, &["ANALYZE", "ANALYSE"]);
    if word == "(" {
        let (inner, _) = next_word(after)?;
        // A statement may stand in parentheses too.
        let is_statement = is_one_of(inner, &["(", "SELECT", "WITH", "VALUES", "TABLE"]);
        return if is_statement { Some((false, rest)) } else { explain_options(after) };
    }
    let verbose = if analyze { next_word(after)? } else { (word, after) };
    match (analyze, is_one_of(verbose.0, &["VERBOSE"])) {
        (analyze, true) => Some((analyze, verbose.1)),
        (true, false) => Some((true, after)),
        (false, false) => Some((false, rest)),
    }
}

/// Reads options up to their closing parenthesis. The last one of a name counts.
fn explain_options(options: &str) -> Option<(bool, &str)> {
    let (mut analyze, mut name, mut value) = (false, "", "");
    let mut rest = options;
    loop {
        let (word, after) = next_word(rest)?;
        rest = after;
        match word {
            "," | ")" => {
                if is_one_of(name, &["ANALYZE", "ANALYSE"]) {
                    analyze = !is_one_of(value, &["FALSE", "OFF", "0"]);
                }
                (name, value) = ("", "");
                if word == ")" {
                    return Some((analyze, rest));
                }
            }
            "'" | "\"" => {}
            word if name.is_empty() => name = word,
            word => value = word,
        }
    }
}

fn is_one_of(word: &str, known: &[&str]) -> bool {
    known.iter().any(|known| word.eq_ignore_ascii_case(known))
}

/// A word (or a single other character) and what follows it.
fn next_word(sql: &str) -> Option<(&str, &str)> {
    let mut rest = sql;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ';');
        if let Some(comment) = rest.strip_prefix("--") {
            rest = comment.find(['\n', '\r']).and_then(|end| comment.get(end..))?;
        } else if rest.starts_with("/*") {
            rest = after_comment(rest)?;
        } else {
            break;
        }
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    let end = if end == 0 { rest.chars().next()?.len_utf8() } else { end };
    rest.split_at_checked(end)
}

/// What follows a comment; comments nest in Postgres. `None` when it doesn't end.
fn after_comment(sql: &str) -> Option<&str> {
    let mut rest = sql;
    let mut depth = 0_u32;
    loop {
        if let Some(inner) = rest.strip_prefix("/*") {
            depth += 1;
            rest = inner;
        } else if let Some(after) = rest.strip_prefix("*/") {
            depth -= 1;
            rest = after;
            if depth == 0 {
                return Some(rest);
            }
        } else {
            let mut chars = rest.chars();
            chars.next()?;
            rest = chars.as_str();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{explained, first_word, first_words};

    #[test]
    fn an_explain_says_what_it_runs() {
        for (sql, expected) in [
            ("SELECT 1", None),
            ("EXPLAIN SELECT 1", Some((false, "SELECT 1"))),
            ("explain verbose SELECT 1", Some((false, "SELECT 1"))),
            ("/* a */ EXPLAIN ANALYZE -- b\n DELETE FROM t", Some((true, "-- b\n DELETE FROM t"))),
            ("EXPLAIN ANALYSE VERBOSE DELETE FROM t", Some((true, "DELETE FROM t"))),
            ("EXPLAIN (ANALYZE, BUFFERS) DELETE FROM t", Some((true, "DELETE FROM t"))),
            ("EXPLAIN (analyze 'on', format json) DELETE FROM t", Some((true, "DELETE FROM t"))),
            ("EXPLAIN (ANALYZE off) DELETE FROM t", Some((false, "DELETE FROM t"))),
            ("EXPLAIN (ANALYZE, ANALYZE false) DELETE FROM t", Some((false, "DELETE FROM t"))),
            ("EXPLAIN (VERBOSE, ANALYZE 1)(SELECT 1)", Some((true, "(SELECT 1)"))),
            ("EXPLAIN (SELECT 1)", Some((false, "(SELECT 1)"))),
            ("EXPLAIN", None),
            ("EXPLAIN (ANALYZE", None),
        ] {
            assert_eq!(explained(sql).map(|(analyze, rest)| (analyze, rest.trim())), expected, "{sql}");
        }
    }

    #[test]
    fn the_first_word_is_found_behind_comments() {
        assert_eq!(first_word("SELECT 1"), Some("SELECT"));
        assert_eq!(first_word(" -- a\n/* b /* c */ */ ; with x as (select 1) select"), Some("with"));
        assert_eq!(first_word("(SELECT 1)"), Some("("));
        for nothing in ["", "  \n", "-- only a comment", "/* open", "/* a */ -- b", ";;"] {
            assert_eq!(first_word(nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn further_words_are_found_behind_comments_too() {
        assert_eq!(first_words("prepare -- x\n/* y */ transaction 'a'", 2), ["PREPARE", "TRANSACTION"]);
        assert_eq!(first_words("commit", 2), ["COMMIT"]);
        assert_eq!(first_words(";;", 2), Vec::<String>::new());
        assert_eq!(first_words("End;", 3), ["END"]);
    }
}
