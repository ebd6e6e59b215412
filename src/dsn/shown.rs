//! Which texts may be shown to people. Whatever a program is given (an argument, a setting, the name of a file) may be
//! a connection string in the wrong place, or a piece of one; every message about such a text asks here.

/// The text holds no mark by which the parts of connection strings are set apart, and so no user, password or value of
/// one that is recognizable. Paths and names as people give them hold none.
pub fn is_plain(text: &str) -> bool {
    text.chars().all(|c| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '~' | '+'))
}

/// The text where it may be shown, else `instead`.
///
/// ```
/// use slowlane::dsn::plain_or;
/// assert_eq!(plain_or("/etc/slowlane.toml", "the file that is named"), "/etc/slowlane.toml");
/// assert_eq!(plain_or("postgresql://u:s3cret@h/d", "the file that is named"), "the file that is named");
/// ```
pub fn plain_or<'t>(text: &'t str, instead: &'t str) -> &'t str {
    if is_plain(text) { text } else { instead }
}

/// As [`plain_or`], for a path.
pub fn path_or(path: &std::path::Path, instead: &str) -> String {
    plain_or(&path.display().to_string(), instead).to_owned()
}

/// A size of memory as Postgres writes one: a number, then `B`, `kB`, `MB`, `GB` or `TB`, kilobytes where no unit
/// stands; 64 kB to 2 TB as for `work_mem`. Whatever is none may be anything, a connection string too.
///
/// ```
/// use slowlane::dsn::is_memory;
/// assert!(is_memory("64MB") && is_memory("1.5 GB") && is_memory("65536"));
/// assert!(!is_memory("64 megabytes") && !is_memory("postgresql://u:s3cret@h/d") && !is_memory("1kB"));
/// ```
pub fn is_memory(text: &str) -> bool {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let kilobytes = match unit.trim_start() {
        "B" => 1.0 / 1024.0,
        "" | "kB" => 1.0,
        "MB" => 1024.0,
        "GB" => 1024.0 * 1024.0,
        "TB" => 1024.0 * 1024.0 * 1024.0,
        _ => return false,
    };
    number.parse::<f64>().is_ok_and(|number| (64.0..=f64::from(i32::MAX)).contains(&(number * kilobytes).round()))
}

/// What [`is_memory`] expects, as the end of a sentence.
pub const MEMORY_EXPECTED: &str = "a size from 64kB to 2047GB with its unit (B, kB, MB, GB, TB), such as 64MB";

/// The text is the path of a file that may be shown: a file's content may stand in the place of its name.
pub(super) fn is_plain_path(text: &str) -> bool {
    is_plain(text) && text.len() <= 255 && !text.contains("-----")
}

/// The text is a connection string, or a piece of one, by what it looks like. Says what is refused at sight; what is
/// shown, [`is_plain`] decides alone.
pub fn may_be_a_connection_string(text: &str) -> bool {
    const WORDS: [&str; 16] = [
        "host", "hostaddr", "server", "port", "user", "username", "userid", "uid", "password", "passwd", "pwd", "pass",
        "dbname", "database", "service", "sslmode",
    ];
    let lower = text.to_ascii_lowercase();
    let scheme =
        ["postgres:", "postgresql:", "jdbc:", "pgsql:"].iter().any(|scheme| lower.trim_start().starts_with(scheme));
    let login = text.split_once('@').is_some_and(|(before, _)| before.contains(':'));
    let names = lower.split(|c: char| c == ';' || c.is_whitespace()).filter_map(|pair| pair.split_once('='));
    scheme
        || login
        || text.contains("://")
        || names.into_iter().any(|(name, _)| WORDS.contains(&name.trim_start_matches('-')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_names_are_shown_and_connection_strings_are_not() {
        for plain in ["", "/etc/slowlane/statements", "./a_b-c.d", "~/x", "café", "slowlane_queue", "../c++"] {
            assert!(is_plain(plain) && !may_be_a_connection_string(plain), "{plain}");
        }
        for text in [
            "postgresql://u:p@h/d",
            "u:p@h",
            "host=h password=p",
            "Host=h;Password=p",
            "pgsql:host=h;password=p",
            "jdbc:postgresql:d",
            "password=p",
            "--password=p",
            "mysql://h",
        ] {
            assert!(!is_plain(text) && may_be_a_connection_string(text), "{text}");
        }
        for text in ["a b", "127.0.0.1:80", "x=y", "a@b", "a;b", "a\nb", "50%"] {
            assert!(!is_plain(text) && !may_be_a_connection_string(text), "{text}");
        }
    }
}
