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
