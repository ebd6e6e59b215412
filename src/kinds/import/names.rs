//! Names of columns that a table doesn't have: what they look like, and what the difference is where it can't be seen.

use std::sync::LazyLock;

use icu_normalizer::ComposingNormalizerBorrowed;
use regex::Regex;

use crate::queue::record::log::cut;

/// So many of the names are told, and of each so many bytes.
const MAX_SHOWN_NAMES: usize = 10;
const MAX_SHOWN_BYTES: usize = 100;
const MARK: char = '\u{feff}';

/// What can't be seen, or is joined with the letter before it.
static UNSEEN: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{C}\p{Z}\p{M}--\x20]").ok());
/// What has no width.
static WITHOUT_WIDTH: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"[\p{Cf}\p{Cc}--\s]").ok());

fn matches(class: &LazyLock<Option<Regex>>, c: char) -> bool {
    class.as_ref().is_some_and(|class| class.is_match(c.encode_utf8(&mut [0; 4])))
}

/// A name so that what is in it can be seen: as it stands where all of it can, else in quotes and with escapes of JSON.
pub(super) fn shown(name: &str) -> String {
    let plain =
        !name.is_empty() && name.trim() == name && !name.contains('"') && !name.chars().any(|c| matches(&UNSEEN, c));
    if plain {
        return cut(name, MAX_SHOWN_BYTES);
    }
    let mut text = String::from('"');
    for c in cut(name, MAX_SHOWN_BYTES).chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if matches(&UNSEEN, c) => {
                c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text.push_str(&format!("\\u{unit:04x}")));
            }
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

/// Those of `names` that `known` lacks, each with what is about it, and what to do. `None` when it lacks none.
pub(super) fn unknown(names: &[String], known: &[&str]) -> Option<(String, Option<String>)> {
    let mut lacking = names.iter().enumerate().filter(|(_, name)| !known.contains(&name.as_str()));
    let (mut told, mut hint) = (Vec::new(), None);
    for (n, name) in lacking.by_ref().take(MAX_SHOWN_NAMES) {
        let about = about(n, name, names.len(), known);
        told.push(match &about {
            Some(about) => format!("{} ({})", shown(name), about.what),
            None => shown(name),
        });
        hint = hint.or(about.map(|about| about.hint));
    }
    if told.is_empty() {
        return None;
    }
    match lacking.count() {
        0 => {}
        more => told.push(format!("and {more} more")),
    }
    Some((told.join(", "), hint))
}

/// What is about a name.
struct About {
    what: String,
    hint: String,
}

fn about(n: usize, name: &str, count: usize, known: &[&str]) -> Option<About> {
    let mut alike = known.iter().filter(|column| folded(column) == folded(name));
    if !folded(name).is_empty()
        && let Some(column) = alike.next()
    {
        return Some(difference(name, column));
    }
    let about = |what: String, hint: &str| Some(About { what, hint: hint.to_owned() });
    let place = n.saturating_add(1);
    if folded(name).is_empty() {
        return match (n, place == count) {
            (_, true) if count > 1 => about(
                format!("column {place} has no name: the line ends with a delimiter"),
                "remove the delimiter at the end of each line",
            ),
            (0, _) => about(
                "column 1 has no name: row names of R or an index of pandas?".to_owned(),
                "leave them out: write.csv(…, row.names = FALSE), to_csv(…, index=False)",
            ),
            _ => about(format!("column {place} has no name"), "name each column, or leave it out of the file"),
        };
    }
    if count == 1
        && let Some(delimiter) = [';', '\t', '|', ','].into_iter().find(|delimiter| {
            name.contains(*delimiter) && name.split(*delimiter).any(|part| known.contains(&part.trim_matches('"')))
        })
    {
        let hint = format!("set delimiter to {}", serde_json::Value::from(delimiter.to_string()));
        return Some(About { what: format!("{} stands between names", shown(&delimiter.to_string())), hint });
    }
    match n == 0 && name.trim_start_matches(MARK).trim_start().starts_with(['{', '[']) {
        true => about(
            "the file looks like JSON".to_owned(),
            "upload it as application/x-ndjson, one object a line, and set format to ndjson",
        ),
        false => None,
    }
}

fn composed(text: &str) -> String {
    ComposingNormalizerBorrowed::new_nfc().normalize(text).into_owned()
}

/// What is the same for names that look alike.
fn folded(name: &str) -> String {
    let seen: String = composed(name).chars().filter(|c| !matches(&WITHOUT_WIDTH, *c)).collect();
    seen.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// What is different between two names that look alike.
fn difference(name: &str, column: &str) -> About {
    let has = |found: &dyn Fn(&str) -> bool| found(name) != found(column);
    let space = |text: &str| text.chars().find(|c| c.is_whitespace() && *c != ' ');
    let unseen = |text: &str| text.chars().find(|c| matches(&WITHOUT_WIDTH, *c) && *c != MARK);
    let owner = |in_name: bool| if in_name { "it has" } else { "the column's name has" };
    let mut what = Vec::new();
    let mut hint = None;
    let mut say = |words: String, to_do: &str| {
        what.push(words);
        hint.get_or_insert_with(|| to_do.to_owned());
    };
    if has(&|text| text.contains(MARK)) {
        let marks = name.chars().filter(|c| *c == MARK).count().max(1);
        let marks = if marks == 1 { "a byte order mark".to_owned() } else { format!("{marks} byte order marks") };
        say(
            format!("{} {marks}", owner(name.contains(MARK))),
            "remove it: no more than one is skipped, at the beginning of the file",
        );
    }
    if has(&|text| unseen(text).is_some()) {
        let c = unseen(name).or(unseen(column)).unwrap_or_default();
        say(
            format!("{} a character that can't be seen, U+{:04X}", owner(unseen(name).is_some()), u32::from(c)),
            "remove it",
        );
    }
    if has(&|text| space(text).is_some()) {
        let c = space(name).or(space(column)).unwrap_or_default();
        let kind = if matches!(c, '\u{a0}' | '\u{202f}') { "a no-break space" } else { "another kind of space" };
        say(
            format!("{} {kind}, U+{:04X}", owner(space(name).is_some()), u32::from(c)),
            "write a plain space in its place",
        );
    }
    let edges = |text: &str| text.len().saturating_sub(text.trim_matches(' ').len());
    if edges(name) != edges(column) {
        say(format!("{} blanks around it", owner(edges(name) > edges(column))), "remove the blanks around names");
    }
    if has(&|text| composed(text) != text) {
        let words = format!("{} decomposed letters (NFD), as macOS writes them", owner(composed(name) != name));
        say(words, "write composed letters (NFC), such as by uconv -x any-nfc");
    }
    let (lower, upper) = (composed(name), composed(column));
    if lower != upper && lower.to_lowercase() == upper.to_lowercase() {
        say("capital and small letters differ".to_owned(), "write names in the letters that the table has");
    }
    if what.is_empty() {
        what.push("blanks within it differ".to_owned());
    }
    let other = "or name the columns in `columns`, in the order of the file: then the header isn't read";
    About {
        what: format!("{}; the column is {}", what.join(", "), shown(column)),
        hint: format!("{}, {other}", hint.unwrap_or_else(|| "write names as the table has them".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(names: &[&str], known: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let (told, hint) = unknown(&names, known).unwrap();
        (told, hint.unwrap_or_default())
    }

    #[test]
    fn names_that_look_alike_are_told_apart() {
        let known = ["id", "First Name", "Größe", "x"];
        for (name, expected, hint) in [
            ("\u{feff}id", "\"\\ufeffid\" (it has a byte order mark; the column is id)", "no more than one"),
            (
                "\u{feff}\u{feff}id",
                "\"\\ufeff\\ufeffid\" (it has 2 byte order marks; the column is id)",
                "no more than one",
            ),
            (
                "First\u{a0}Name",
                "\"First\\u00a0Name\" (it has a no-break space, U+00A0; the column is First Name)",
                "plain space",
            ),
            ("i\u{200b}d", "\"i\\u200bd\" (it has a character that can't be seen, U+200B; the column is id)", "remove"),
            (
                "Gro\u{308}ße",
                "\"Gro\\u0308ße\" (it has decomposed letters (NFD), as macOS writes them; the column is Größe)",
                "NFC",
            ),
            ("Id", "Id (capital and small letters differ; the column is id)", "letters"),
            (" id ", "\" id \" (it has blanks around it; the column is id)", "blanks"),
            ("First  Name", "First  Name (blanks within it differ; the column is First Name)", "as the table"),
            (
                "\u{feff}first\u{a0}name ",
                "\"\\ufefffirst\\u00a0name \" (it has a byte order mark, it has a no-break space, U+00A0, it has blanks \
                 around it; the column is First Name)",
                "no more than one",
            ),
            ("y", "y", ""),
            ("a\"b", "\"a\\\"b\"", ""),
            ("\u{e000}\u{1d173}", "\"\\ue000\\ud834\\udd73\"", ""),
        ] {
            let (told, found) = told(&[name, "x"], &known);
            assert_eq!(told, expected);
            assert!(found.contains(hint), "{name:?}: {found}");
        }
        let (told, _) = told(&["id"], &["\u{200b}id"]);
        assert!(
            told.contains("the column's name has a character") && told.ends_with("the column is \"\\u200bid\")"),
            "{told}"
        );
    }

    #[test]
    fn names_that_are_none_say_where_they_stand() {
        let known = ["id", "n"];
        for (names, expected, hint) in [
            (&["", "id", "n"][..], "\"\" (column 1 has no name: row names of R or an index of pandas?)", "row.names"),
            (&["id", "n", ""], "\"\" (column 3 has no name: the line ends with a delimiter)", "remove"),
            (&["id", "\u{200b}", "n"], "\"\\u200b\" (column 2 has no name)", "name each"),
            (&["id;n"], "id;n (; stands between names)", "delimiter to \";\""),
            (&["id\tn"], "\"id\\u0009n\" (\"\\u0009\" stands between names)", "delimiter to \"\\t\""),
            (&["{\"n\":1", "\"x\":2}"], "\"{\\\"n\\\":1\" (the file looks like JSON), \"\\\"x\\\":2}\"", "ndjson"),
        ] {
            let (told, found) = told(names, &known);
            assert_eq!(told, expected);
            assert!(found.contains(hint), "{names:?}: {found}");
        }
    }
}
