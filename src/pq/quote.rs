//! Names and texts as SQL has them, for the few places that take no parameter: identifiers, utility statements, and SQL
//! that is printed for somebody to run.

/// A name as an identifier.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Names as a list of identifiers.
pub fn identifiers<S: AsRef<str>>(names: &[S]) -> String {
    names.iter().map(|name| identifier(name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// A text as a literal, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    match text.contains('\\') {
        true => format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''")),
        false => format!("'{}'", text.replace('\'', "''")),
    }
}

/// Texts as the text of an array, for a parameter.
pub fn text_array<S: AsRef<str>>(texts: &[S]) -> String {
    let element = |text: &S| format!("\"{}\"", text.as_ref().replace('\\', "\\\\").replace('"', "\\\""));
    format!("{{{}}}", texts.iter().map(element).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_name_or_a_text_stands_within_it() {
        assert_eq!(identifiers(&["a", "B\"; --"]), "\"a\", \"B\"\"; --\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal("\\'"), "E'\\\\'''");
        assert_eq!(text_array(&["a", "\"", "\\", "{b},NULL"]), r#"{"a","\"","\\","{b},NULL"}"#);
    }
}
