//! Which texts are the name of a time zone, as far as that is known without a server.
//!
//! A server takes more than names: `UTC+2` is two hours *west* of Greenwich to it, and a typo with a digit in it is a zone
//! that nobody meant. So only names of the time zone database pass. Whether there is such a zone, the server says. What
//! the database's folder has beside the zones is none: `localtime` is the machine's, `Factory` one that nobody set, and
//! `posix/…` and `right/…` have every zone once more, the latter with leap seconds, which a server refuses.

/// The longest name, in characters. The longest one that there is has 32.
pub const MAX_TIME_ZONE_CHARS: usize = 64;

/// What is expected in the place of a name, as the end of a sentence.
pub const EXPECTED: &str = "the name of a time zone, such as Europe/Berlin or UTC";

/// Names without an area that have digits.
const WITH_DIGITS: [&str; 4] = ["EST5EDT", "CST6CDT", "MST7MDT", "PST8PDT"];
/// The zones `Etc/GMT-14` to `Etc/GMT+12`.
const GMT_WEST: u8 = 12;
const GMT_EAST: u8 = 14;

/// What looks like a name and is no zone of anywhere: by the whole of it, and by its first part.
const NO_ZONES: [&str; 3] = ["localtime", "posixrules", "Factory"];
const NO_AREAS: [&str; 2] = ["posix", "right"];

/// The text has the form of a name. `slowlane.enqueue` says the same by patterns.
pub fn is_name(text: &str) -> bool {
    if text.chars().count() > MAX_TIME_ZONE_CHARS || is_no_zone(text) {
        return false;
    }
    let is = |name: &str| text.eq_ignore_ascii_case(name);
    WITH_DIGITS.into_iter().any(is) || is_offset_of_gmt(text) || text.split('/').all(is_part)
}

fn is_no_zone(text: &str) -> bool {
    let is_area = |area: &str| NO_AREAS.iter().any(|no| no.eq_ignore_ascii_case(area));
    NO_ZONES.iter().any(|no| no.eq_ignore_ascii_case(text))
        || text.split_once('/').is_some_and(|(area, _)| is_area(area))
}

/// Words of letters and `_`, with `-` between them.
fn is_part(part: &str) -> bool {
    let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_');
    part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic()) && part.split('-').all(is_word)
}

fn is_offset_of_gmt(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let with_area = lower.strip_prefix("etc/");
    let Some(offset) = with_area.unwrap_or(&lower).strip_prefix("gmt") else { return false };
    // A number's own sign would be read, too.
    let hours =
        |digits: &str, most: u8| !digits.starts_with(['0', '+']) && digits.parse::<u8>().is_ok_and(|n| n <= most);
    match offset.as_bytes().first() {
        _ if ["0", "+0", "-0"].contains(&offset) => true,
        Some(b'+') if with_area.is_some() => offset.strip_prefix('+').is_some_and(|digits| hours(digits, GMT_WEST)),
        Some(b'-') if with_area.is_some() => offset.strip_prefix('-').is_some_and(|digits| hours(digits, GMT_EAST)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn names_of_zones_pass_and_what_a_server_would_take_for_an_offset_does_not() {
        for name in [
            "UTC",
            "utc",
            "Europe/Berlin",
            "America/Argentina/Buenos_Aires",
            "America/Port-au-Prince",
            "W-SU",
            "NZ-CHAT",
            "Etc/GMT+12",
            "Etc/GMT-14",
            "etc/gmt-5",
            "Etc/GMT0",
            "GMT0",
            "GMT+0",
            "GMT-0",
            "EST5EDT",
            "Antarctica/DumontDUrville",
            "Localtimes",
            "right",
        ] {
            assert!(is_name(name), "{name}");
        }
        for text in [
            "",
            " ",
            "UTC+2",
            "UTC-2",
            "GMT+5",
            "Etc/GMT+13",
            "Etc/GMT-15",
            "Etc/GMT+05",
            "+02",
            "2",
            "02:00",
            "<+02>-2",
            "Europe/Berlin1",
            "Berlin+1",
            "Europe/",
            "/Berlin",
            "Europe//Berlin",
            "Europe/Berlin'",
            "a\0b",
            "Zürich",
            "-",
            "a-",
            "_a",
            "interval '1' hour",
            "Etc/GMT+",
            "Etc/GMT++1",
            "localtime",
            "LOCALTIME",
            "posixrules",
            "Factory",
            "posix/Europe/Berlin",
            "right/UTC",
            "Right/Etc/GMT+1",
        ] {
            assert!(!is_name(text), "{text}");
        }
        assert!(!is_name(&"a".repeat(65)) && is_name(&"a".repeat(64)));
    }
}
