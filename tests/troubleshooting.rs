//! docs/troubleshooting.md has an entry for every code that can be given out, and for no other; and every code comes
//! from one of the lists.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use slowlane::doctor::FindingCode;
use slowlane::dsn;
use slowlane::http;
use slowlane::pq::ConnectFailure;
use slowlane::queue::ErrorCode;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The entries of each section, in the order of the page, and how many words each has.
fn entries(page: &str) -> BTreeMap<String, Vec<(String, usize)>> {
    let mut sections: BTreeMap<String, Vec<(String, usize)>> = BTreeMap::new();
    let mut section = None;
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = Some(title.to_owned());
        } else if let (Some(title), Some(code)) = (line.strip_prefix("### `"), &section) {
            sections.entry(code.clone()).or_default().push((title.trim_end_matches('`').to_owned(), 0));
        } else if let Some((_, words)) = section.as_ref().and_then(|name| sections.get_mut(name)?.last_mut()) {
            *words += line.split_whitespace().count();
        }
    }
    sections
}

#[test]
fn every_code_has_an_entry_and_every_entry_a_code() {
    let page = fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let sections = entries(&page);
    let words = |codes: &mut dyn Iterator<Item = &'static str>| codes.map(str::to_owned).collect::<Vec<_>>();
    let lists = [
        ("Answers of HTTP", words(&mut http::Code::ALL.iter().map(|code| code.as_str()))),
        ("Errors of jobs", words(&mut ErrorCode::ALL.iter().map(|code| code.as_str()))),
        ("Connecting", words(&mut ConnectFailure::ALL.iter().map(|class| class.word()))),
        ("Connection strings", words(&mut dsn::Code::ALL.iter().map(|code| code.as_str()))),
        ("Findings of the doctor", words(&mut FindingCode::ALL.iter().map(|code| code.as_str()))),
        ("Refused at the start", words(&mut ["target_role_too_strong"].into_iter())),
    ];
    let mut wrong = Vec::new();
    for (section, mut codes) in lists {
        let explained = sections.get(section).cloned().unwrap_or_default();
        wrong.extend(
            explained.iter().filter(|(_, words)| *words < 5).map(|(code, _)| format!("{section}: {code} says nothing")),
        );
        let mut explained: Vec<String> = explained.into_iter().map(|(code, _)| code).collect();
        codes.sort();
        explained.sort();
        wrong.extend(
            codes.iter().filter(|code| !explained.contains(code)).map(|code| format!("{section}: {code} is missing")),
        );
        wrong.extend(
            explained.iter().filter(|code| !codes.contains(code)).map(|code| format!("{section}: {code} is no code")),
        );
        explained.dedup();
        assert_eq!(explained.len(), sections.get(section).map_or(0, Vec::len), "{section}: an entry stands twice");
    }
    assert_eq!(wrong, Vec::<String>::new());
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

/// What stands in a file without its comments and its unit tests.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_job_fails_by_a_word_that_is_on_no_list() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut wrong = Vec::new();
    let mut errors = 0;
    for file in files {
        let code = code_of(&fs::read_to_string(&file).unwrap());
        let shown = file.display();
        for (at, call) in code.match_indices("JobError::new(") {
            errors += 1;
            let argument = code[at + call.len()..].trim_start();
            if argument.starts_with(['"', '&']) || argument.starts_with("format!") {
                wrong.push(format!("{shown}: {}", argument.lines().next().unwrap_or_default()));
            }
        }
        // The fields of an error that is written out.
        for (at, field) in code.match_indices("code: \"") {
            wrong.push(format!("{shown}: {}", code[at..].chars().take(field.len() + 30).collect::<String>()));
        }
    }
    assert!(errors > 50, "only {errors} errors were found: is the pattern still right?");
    assert_eq!(wrong, Vec::<String>::new());
}
