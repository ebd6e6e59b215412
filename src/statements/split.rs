//! Where one statement of a file ends and the next begins: at a `;` outside of quotes, comments and parentheses, as
//! psql and the server's lexer (section 4.1 of the manual) have it. Knows no statement.

/// The statements of a text, each with the line on which it begins, comments before it included (0 for the first line
/// of the text), without those that are nothing but blanks and comments.
pub(super) fn statements(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut from, mut at) = (0, 0);
    // Something stood there that is neither blank nor comment.
    let mut first: Option<usize> = None;
    let mut depth = 0_usize;
    // Within BEGIN ATOMIC … END of a function's body.
    let mut atomic = 0_usize;
    let mut words: Vec<String> = Vec::new();
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let (token, length) = token(rest);
        match token {
            Token::Blank => {}
            Token::End if depth == 0 && atomic == 0 => {
                found.extend(first.take().map(|_| (from, text.get(from..at).unwrap_or_default())));
                from = at + length;
                words.clear();
            }
            token => {
                first.get_or_insert(at);
                match token {
                    Token::Open => depth += 1,
                    Token::Close => depth = depth.saturating_sub(1),
                    Token::Word => {
                        let word = rest.get(..length).unwrap_or_default().to_ascii_uppercase();
                        let makes_routine = words.first().is_some_and(|w| w == "CREATE")
                            && words.iter().any(|w| w == "FUNCTION" || w == "PROCEDURE");
                        match word.as_str() {
                            "ATOMIC" if makes_routine && words.last().is_some_and(|w| w == "BEGIN") => atomic = 1,
                            "CASE" if atomic > 0 => atomic += 1,
                            "END" if atomic > 0 => atomic -= 1,
                            _ => {}
                        }
                        words.push(word);
                    }
                    _ => {}
                }
            }
        }
        at += length;
    }
    found.extend(first.map(|_| (from, text.get(from..).unwrap_or_default())));
    let line = |at: usize| text.get(..at).unwrap_or_default().matches('\n').count();
    let blanks = |statement: &str| statement.len() - statement.trim_start().len();
    found.into_iter().map(|(from, statement)| (line(from + blanks(statement)), statement.trim())).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    /// Blanks and comments.
    Blank,
    /// A semicolon.
    End,
    Open,
    Close,
    Word,
    /// Anything else.
    Other,
}

/// The token at the beginning of `rest`, which isn't empty, and its length in bytes.
fn token(rest: &str) -> (Token, usize) {
    let mut chars = rest.chars();
    let Some(c) = chars.next() else { return (Token::Other, 1) };
    let upto = |end: Option<usize>| end.unwrap_or(rest.len());
    match c {
        ';' => (Token::End, 1),
        '(' | '[' => (Token::Open, 1),
        ')' | ']' => (Token::Close, 1),
        '-' if rest.starts_with("--") => (Token::Blank, upto(rest.find('\n'))),
        '/' if rest.starts_with("/*") => (Token::Blank, comment(rest)),
        '\'' => (Token::Other, quoted(rest, '\'', false)),
        '"' => (Token::Other, quoted(rest, '"', false)),
        '$' => (Token::Other, dollar_quoted(rest).unwrap_or(1)),
        'e' | 'E' if rest.get(1..2) == Some("'") => {
            (Token::Other, 1 + quoted(rest.get(1..).unwrap_or_default(), '\'', true))
        }
        c if c.is_whitespace() => (Token::Blank, c.len_utf8()),
        // A dollar within a word belongs to it, and begins no quote.
        c if c.is_alphabetic() || c == '_' || !c.is_ascii() => {
            (Token::Word, upto(rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()))))
        }
        c if c.is_ascii_digit() => (Token::Other, upto(rest.find(|c: char| !c.is_ascii_digit()))),
        c => (Token::Other, c.len_utf8()),
    }
}

/// The length of a comment, which may hold others.
fn comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(left) = rest.get(at..).filter(|left| !left.is_empty()) {
        if left.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if left.starts_with("*/") {
            (depth, at) = (depth.saturating_sub(1), at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += left.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of what stands in quotes, doubled ones within.
fn quoted(rest: &str, mark: char, escapes: bool) -> usize {
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        if escapes && c == '\\' {
            chars.next();
        } else if c == mark && chars.next_if(|(_, next)| *next == mark).is_none() {
            return at + c.len_utf8();
        }
    }
    rest.len()
}

/// The length of `$tag$ … $tag$`; `None` for a parameter and whatever else begins with a dollar.
fn dollar_quoted(rest: &str) -> Option<usize> {
    let end = rest.get(1..)?.find('$')? + 1;
    let tag = rest.get(1..end)?;
    let is_tag = tag.chars().all(|c| c.is_alphanumeric() || c == '_') && !tag.starts_with(|c: char| c.is_ascii_digit());
    if !is_tag {
        return None;
    }
    let mark = rest.get(..=end)?;
    Some(rest.get(end + 1..)?.find(mark).map_or(rest.len(), |at| end + 1 + at + mark.len()))
}

#[cfg(test)]
mod tests {
    use super::statements;

    #[test]
    fn statements_end_where_psql_ends_them() {
        let text =
            "-- only a comment;\n;\nSELECT ';', E'\\';', \"a;\"\"b\", $1;\n/* ; /* ; */ ; */ DO $x$ BEGIN; END $x$;
INSERT INTO t (a) VALUES ($$;$$), ('it''s;'); SELECT a$b;c$ FROM t;\nSELECT (SELECT 1; SELECT 2) -- ;\n";
        let found: Vec<&str> = statements(text).into_iter().map(|(_, statement)| statement).collect();
        assert_eq!(
            found,
            [
                "SELECT ';', E'\\';', \"a;\"\"b\", $1",
                "/* ; /* ; */ ; */ DO $x$ BEGIN; END $x$",
                "INSERT INTO t (a) VALUES ($$;$$), ('it''s;')",
                "SELECT a$b",
                "c$ FROM t",
                "SELECT (SELECT 1; SELECT 2) -- ;",
            ]
        );
        let lines: Vec<usize> = statements(text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 3, 4, 4, 4, 5]);
    }

    #[test]
    fn the_body_of_a_function_is_one_statement() {
        let text = "CREATE FUNCTION f() RETURNS int LANGUAGE SQL BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; SELECT 3";
        let found = statements(text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[1].1, "SELECT 3");
        for nothing in ["", " \n-- x", "/* open", ";;"] {
            assert!(statements(nothing).is_empty(), "{nothing:?}");
        }
        for open in ["SELECT 'open", "SELECT $a$ open; x", "SELECT \"o;"] {
            assert_eq!(statements(open).len(), 1, "{open}");
        }
    }
}
