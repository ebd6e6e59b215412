//! Who may use whom: read from the sources. Also where `unsafe` may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room, and the rooms that it may use: the table of ARCHITECTURE.md.
fn rooms() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table =
        text.split("| room | owns | may use |").nth(1).expect("the table of rooms").split("\n\n").next().unwrap();
    let names = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>();
    let rows: Vec<Vec<&str>> = table.lines().skip(2).map(|row| row.split(" | ").collect()).collect();
    let all: BTreeSet<String> = rows.iter().flat_map(|row| names(row[0])).collect();
    let may_use = |row: &[&str]| match row[2].trim_end_matches(" |") {
        "everything" => all.clone(),
        "nothing" => BTreeSet::new(),
        cell => names(cell),
    };
    let rooms: BTreeMap<_, _> =
        rows.iter().map(|row| (names(row[0]).pop_first().expect("a room's name"), may_use(row))).collect();
    assert!(rooms.values().all(|used| used.is_subset(&all)), "it names a room that isn't in it: {rooms:?}");
    rooms
}

/// That of this run: what was compiled may be shared with another clone.
fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
}

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let root = root().join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.into_iter().map(|(path, text)| (path.strip_prefix(&root).unwrap().to_owned(), text)).collect()
}

fn room(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Code without its comments: what a doc line names is no use of it.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The rooms that a text names behind `crate::`.
fn used(text: &str) -> Vec<String> {
    let code = code(text);
    code.match_indices("crate::")
        .map(|(at, _)| code[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
        .collect()
}

#[test]
fn rooms_use_only_those_that_they_may() {
    let sources = sources();
    let rooms = rooms();
    assert!(sources.len() > 50 && rooms.len() > 10);
    for (path, text) in &sources {
        let room = room(path);
        if room == "lib" || room == "main" {
            continue;
        }
        let allowed = rooms.get(&room).unwrap_or_else(|| panic!("a new room: {room}"));
        for other in used(text) {
            assert!(!other.is_empty(), "{}: list `crate::{{…}}` apart, room by room", path.display());
            assert!(other == room || allowed.contains(&other), "{} uses {other}", path.display());
        }
    }
}

#[test]
fn the_http_side_knows_no_driver_and_no_kind() {
    for (path, text) in sources().iter().filter(|(path, _)| room(path) == "http") {
        let code = code(text);
        for word in
            ["diesel::", "r2d2::", "pq_sys", "crate::db::pool", "target::Target,", "std::thread::sleep", "block_on"]
        {
            assert!(!code.contains(word), "{} names {word}", path.display());
        }
        // The list of kinds, what it answers with and words for names; nothing that an attempt uses.
        for named in code.split("work::").skip(1) {
            let names = match named.strip_prefix('{') {
                Some(several) => several.split('}').next().unwrap(),
                None => named.split([';', '(', ' ']).next().unwrap(),
            };
            let of_a_file = |name: &str| !name.trim().is_empty() && !name.trim().starts_with(char::is_uppercase);
            assert!(!names.split(',').any(of_a_file), "{} names {names}", path.display());
        }
    }
}

/// The one file that may let handlers wait for a driver: the demo's servers that do it wrong.
const WRONG_ON_PURPOSE: &str = "cli/demo/wrong.rs";

/// What else names actix_web outside the HTTP side: the process that puts the servers together names their types.
const NAMES_SERVERS: (&str, [&str; 2]) = ("app/process.rs", ["use actix_web::dev::Server;", "use actix_web::web;"]);

#[test]
fn handlers_stand_in_one_room_and_one_file_that_does_it_wrong_on_purpose() {
    let (mut exempt, mut named) = (0, 0);
    for (path, text) in sources() {
        let (code, path) = (code(&text), path.to_str().unwrap().to_owned());
        if path == WRONG_ON_PURPOSE {
            assert!(code.contains("actix_web::") && code.contains("diesel::"), "the exemption isn't needed any more");
            exempt += 1;
        } else if !path.starts_with("http/") {
            for line in code.lines().filter(|line| line.contains("actix_web")) {
                assert!(path == NAMES_SERVERS.0 && NAMES_SERVERS.1.contains(&line), "{path} has handlers: {line}");
                named += 1;
            }
        }
        // Only the list of subcommands knows it, by the arguments of the hidden one.
        let refers = code.matches("wrong::").count();
        assert_eq!(refers, usize::from(path == "cli/demo/mod.rs"), "{path} refers to the servers that do it wrong");
    }
    assert_eq!((exempt, named), (1, NAMES_SERVERS.1.len()));
}

#[test]
fn unsafe_code_lives_in_one_room_and_says_why() {
    for (path, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if !code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe") {
                continue;
            }
            assert_eq!(room(&path), "pq", "{}:{}", path.display(), n + 1);
            let explained = lines[n.saturating_sub(4)..=n].iter().any(|line| line.contains("SAFETY:"));
            assert!(explained, "{}:{}: no SAFETY comment", path.display(), n + 1);
        }
    }
}

#[test]
fn every_module_says_what_it_owns() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{}", path.display());
    }
}

/// The paths that a `use` of several names stands for: `a::{b, c::{d}}` are `a::b` and `a::c::d`.
fn spelled_out(before: &str, tree: &str, found: &mut Vec<String>) {
    let (mut depth, mut from) = (0, 0);
    let mut parts = Vec::new();
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[from..]);
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((more, rest)) => {
                spelled_out(&format!("{before}{}", more.trim()), rest.trim_end().trim_end_matches('}'), found);
            }
            None => found.push(format!("{before}{part}")),
        }
    }
}

/// The files of this crate that a file names in its `use`, tests aside. A name that stands in no file of its own is its parent's.
fn named(path: &str, text: &str, modules: &BTreeMap<String, String>) -> BTreeSet<String> {
    let code = code(text.split("#[cfg(test)]\nmod tests").next().unwrap());
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("use crate::") {
        let tree = code[at + 11..].split(';').next().unwrap();
        spelled_out("", tree, &mut paths);
    }
    let file_of = |path: &String| {
        let mut parts: Vec<&str> = path.split(" as ").next().unwrap().split("::").collect();
        while !parts.is_empty() {
            if let Some(file) = modules.get(&parts.join("::")) {
                return Some(file.clone());
            }
            parts.pop();
        }
        None
    };
    paths.iter().filter_map(file_of).filter(|file| file != path).collect()
}

/// Files that name one another, straight or through others, can only be read together.
#[test]
fn no_files_go_round_in_circles() {
    let sources = sources();
    let name = |path: &Path| path.with_extension("").to_str().unwrap().replace("/mod", "").replace('/', "::");
    let modules: BTreeMap<String, String> =
        sources.iter().map(|(path, _)| (name(path), path.to_str().unwrap().to_owned())).collect();
    let mut uses: BTreeMap<String, BTreeSet<String>> = sources
        .iter()
        .map(|(path, text)| {
            let path = path.to_str().unwrap();
            (path.to_owned(), named(path, text, &modules))
        })
        .collect();
    // Whoever uses nobody any more is read, and leaves; who is left goes round.
    loop {
        let read: Vec<String> = uses.iter().filter(|(_, used)| used.is_empty()).map(|(path, _)| path.clone()).collect();
        if read.is_empty() {
            break;
        }
        for path in &read {
            uses.remove(path);
        }
        for used in uses.values_mut() {
            used.retain(|path| !read.contains(path));
        }
    }
    // Of those, they that nobody left uses only lead there.
    loop {
        let used: BTreeSet<String> = uses.values().flatten().cloned().collect();
        let before = uses.len();
        uses.retain(|path, _| used.contains(path));
        if uses.len() == before {
            break;
        }
    }
    assert!(uses.is_empty(), "{uses:#?}");
}

#[test]
fn a_circle_would_be_seen() {
    let modules: BTreeMap<String, String> =
        [("a", "a.rs"), ("b", "b/mod.rs"), ("b::c", "b/c.rs")].map(|(m, f)| (m.to_owned(), f.to_owned())).into();
    let text =
        "//! use crate::a;\nuse crate::{a, b::{self, c::{Deep as D, E}}};\n#[cfg(test)]\nmod tests { use crate::x; }";
    assert_eq!(named("x.rs", text, &modules), BTreeSet::from(["a.rs".into(), "b/mod.rs".into(), "b/c.rs".into()]));
}
