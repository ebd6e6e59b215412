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
    use super::{first_word, first_words};

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
