//! Where things stand in a file: its header and what follows it, and the lines of keys.

use std::collections::BTreeMap;

use crate::statements::error::FileError;

/// The TOML of the comments at the top, each line of it in its place; what follows; and the line that this begins with.
pub(super) fn parts(text: &str) -> Result<(String, &str, usize), FileError> {
    let mut header = String::new();
    let (mut at, mut count) = (0, 0);
    for line in text.split_inclusive('\n') {
        let Some(content) = line.strip_prefix("--") else { break };
        let content = content.strip_prefix(' ').unwrap_or(content);
        header.push_str(content.trim_end_matches(['\r', '\n']));
        header.push('\n');
        at += line.len();
        count += 1;
    }
    if header.trim().is_empty() {
        let message = "expected a header: lines of comments at the top that hold TOML, such as `-- kind = \"query\"`";
        return Err(FileError { line: 1, message: message.to_owned() });
    }
    let body = text.get(at..).unwrap_or_default();
    // Lines without anything on them belong to neither.
    let skipped = body.len() - body.trim_start_matches([' ', '\t', '\r', '\n']).len();
    let line = count + 1 + body.get(..skipped).unwrap_or_default().matches('\n').count();
    Ok((header, body.get(skipped..).unwrap_or_default().trim_end(), line))
}

/// The line of a place, from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or_default().matches('\n').count() + 1
}

/// Where keys stand: `name`, `params.0`, `args`, `args.view`.
pub(super) fn key_lines(header: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    let mut section = String::new();
    let mut params = 0;
    for (n, line) in header.lines().enumerate() {
        let (line, number) = (line.trim(), n + 1);
        if line.split_whitespace().collect::<String>().starts_with("[[params]]") {
            lines.entry("params".to_owned()).or_insert(number);
            lines.insert(format!("params.{params}"), number);
            params += 1;
            section = "params".to_owned();
        } else if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            name.clone_into(&mut section);
            lines.entry(section.clone()).or_insert(number);
        } else if let Some((key, _)) = line.split_once('=') {
            let key = key.trim().trim_matches('"');
            let key = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
            lines.entry(key).or_insert(number);
        }
    }
    lines
}
