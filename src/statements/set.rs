//! The saved statements in effect: the folder, read whole, and put in the place of what was there before.
//!
//! A file that is broken takes nothing from the others. What it held when it was last whole stays in effect, and says
//! that it does. Whoever begins with a set keeps it: a job that is being checked never sees half of one and half of the
//! next.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use chrono::{DateTime, Utc};
use serde_json::value::RawValue;

use crate::dsn::path_or;
use crate::statements::error::FileError;
use crate::statements::file::{FileName, InnerKind, MAX_FILE_BYTES, Statement};

/// The most files of a folder.
pub const MAX_FILES: usize = 1_000;

/// What a kind says of arguments: each that it refuses, by a JSON pointer and what was expected.
pub type CheckArgs = dyn Fn(InnerKind, &RawValue) -> Result<(), Vec<(String, String)>> + Send + Sync;

/// A file that can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The file in its folder.
    pub file: FileName,
    /// What is wrong, and where.
    pub error: FileError,
    /// The statement that is still in effect as the file had it before.
    pub stale: Option<String>,
}

/// What a folder held at one moment.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The statements, by name.
    pub statements: BTreeMap<String, Arc<Statement>>,
    /// Files that can't be used, by their names.
    pub broken: Vec<Broken>,
    /// When it was read, by this process' clock.
    pub loaded_at: DateTime<Utc>,
}

impl Loaded {
    /// The statement is in effect as its file was before it broke.
    pub fn is_stale(&self, name: &str) -> bool {
        self.broken.iter().any(|broken| broken.stale.as_deref() == Some(name))
    }

    /// It has the same statements and the same broken files as `other`.
    pub fn is_as(&self, other: &Loaded) -> bool {
        let versions = |loaded: &Loaded| -> Vec<(String, String)> {
            loaded.statements.iter().map(|(name, statement)| (name.clone(), statement.version.clone())).collect()
        };
        self.broken == other.broken && versions(self) == versions(other)
    }
}

/// The folder can't be read at all: what was in effect stays.
#[derive(Debug, thiserror::Error)]
#[error("the folder of saved statements, {folder}, can't be read: {why}")]
pub struct UnreadableFolder {
    /// Which one.
    pub folder: String,
    /// Why.
    pub why: String,
}

/// The saved statements of a process.
pub struct Statements {
    folder: PathBuf,
    check: Box<CheckArgs>,
    loaded: RwLock<Arc<Loaded>>,
    /// One reads at a time, or an older look would replace a newer one.
    reading: Mutex<()>,
}

impl Statements {
    /// Reads a folder for the first time.
    ///
    /// # Errors
    /// When it can't be read at all; broken files are no error.
    pub fn open(folder: &Path, check: Box<CheckArgs>) -> Result<Statements, UnreadableFolder> {
        let loaded = read(folder, &*check, None)?;
        Ok(Statements {
            folder: folder.to_owned(),
            check,
            loaded: RwLock::new(Arc::new(loaded)),
            reading: Mutex::default(),
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What is in effect.
    pub fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The statement of this name that is in effect.
    pub fn get(&self, name: &str) -> Option<Arc<Statement>> {
        self.loaded().statements.get(name).cloned()
    }

    /// Reads the folder again. Waits for the disk: not for a thread that answers requests.
    ///
    /// # Errors
    /// When it can't be read at all: then everything stays as it was.
    pub fn reload(&self) -> Result<Arc<Loaded>, UnreadableFolder> {
        let _alone = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = Arc::new(read(&self.folder, &*self.check, Some(&self.loaded()))?);
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&loaded);
        Ok(loaded)
    }
}

/// What the folder holds now, and for broken files what they held `before`.
fn read(folder: &Path, check: &CheckArgs, before: Option<&Loaded>) -> Result<Loaded, UnreadableFolder> {
    let unreadable = |why: String| UnreadableFolder { folder: path_or(folder, "the one that is named"), why };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| unreadable(error.to_string()))? {
        let name = entry.map_err(|error| unreadable(error.to_string()))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".sql") && !name.starts_with('.') {
            files.push(name);
        }
    }
    if files.len() > MAX_FILES {
        return Err(unreadable(format!("it has {} files, and at most {MAX_FILES} are read", files.len())));
    }
    files.sort();
    let mut statements: BTreeMap<String, Arc<Statement>> = BTreeMap::new();
    let mut broken: Vec<Broken> = Vec::new();
    for file in files {
        let outcome = read_file(&folder.join(&file)).and_then(|text| statement(&file, &text, check));
        let error = match outcome {
            Ok(statement) => match statements.get(&statement.name) {
                None => {
                    statements.insert(statement.name.clone(), Arc::new(statement));
                    continue;
                }
                Some(other) => {
                    let message = format!("the name {} is taken by {}", statement.name, other.file);
                    FileError { line: statement.line_of("/name"), message }
                }
            },
            Err(error) => error,
        };
        broken.push(Broken { file: FileName::of(&file), error, stale: None });
    }
    // Only what no other file has taken the name of by now.
    for broken in &mut broken {
        let known = before.into_iter().flat_map(|before| before.statements.values());
        let former =
            known.filter(|former| former.file == broken.file).find(|former| !statements.contains_key(&former.name));
        if let Some(former) = former {
            broken.stale = Some(former.name.clone());
            statements.insert(former.name.clone(), Arc::clone(former));
        }
    }
    Ok(Loaded { statements, broken, loaded_at: Utc::now() })
}

fn read_file(path: &Path) -> Result<String, FileError> {
    let wrong = |message: String| FileError { line: 1, message };
    let about = fs::metadata(path).map_err(|error| wrong(format!("the file can't be read: {error}")))?;
    if !about.is_file() {
        return Err(wrong("expected a file".to_owned()));
    }
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(|error| wrong(format!("the file can't be read: {error}")))?;
    let read = file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| wrong(format!("the file can't be read: {error}")))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(wrong(format!("expected at most {MAX_FILE_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
        FileError { line, message: "expected UTF-8".to_owned() }
    })
}

/// What a file says, as far as its kind takes it.
fn statement(file: &str, text: &str, check: &CheckArgs) -> Result<Statement, FileError> {
    let statement = Statement::read(file, text)?;
    match check(statement.kind, &statement.arguments_without_values()) {
        Ok(()) => Ok(statement),
        Err(refused) => {
            let (pointer, detail) = refused.into_iter().next().unwrap_or_default();
            let place = pointer.trim_start_matches('/').to_owned();
            let message = if place.is_empty() { detail } else { format!("{place}: {detail}") };
            Err(FileError { line: statement.line_of(&pointer), message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anything(_: InnerKind, _: &RawValue) -> Result<(), Vec<(String, String)>> {
        Ok(())
    }

    fn write(folder: &Path, file: &str, text: &str) {
        fs::write(folder.join(file), text).unwrap();
    }

    #[test]
    fn a_broken_file_leaves_the_others_and_what_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        write(at, "a.sql", "-- kind = 'query'\nSELECT 1");
        write(at, "b.sql", "-- kind = 'query'\n-- knid = 1\nSELECT 2");
        write(at, ".hidden.sql", "nothing");
        write(at, "notes.txt", "nothing");
        fs::create_dir(at.join("c.sql")).unwrap();
        let set = Statements::open(at, Box::new(anything)).unwrap();
        let names = |loaded: &Loaded| loaded.statements.keys().cloned().collect::<Vec<_>>();
        let broken = |loaded: &Loaded| {
            loaded.broken.iter().map(|b| (b.file.to_string(), b.error.line, b.stale.clone())).collect::<Vec<_>>()
        };
        assert_eq!(names(&set.loaded()), ["a"]);
        assert_eq!(broken(&set.loaded()), [("b.sql".to_owned(), 2, None), ("c.sql".to_owned(), 1, None)]);
        let first = set.get("a").unwrap().version.clone();

        write(at, "b.sql", "-- kind = 'query'\nSELECT 2");
        write(at, "a.sql", "SELECT 1");
        let loaded = set.reload().unwrap();
        assert_eq!(names(&loaded), ["a", "b"]);
        assert!(loaded.is_stale("a") && !loaded.is_stale("b"));
        assert_eq!(set.get("a").unwrap().version, first);

        // It stays through further looks, until the file is whole or gone, or another one has the name.
        assert!(set.reload().unwrap().is_stale("a"));
        write(at, "b.sql", "-- kind = 'query'\n-- name = 'a'\nSELECT 2");
        let loaded = set.reload().unwrap();
        assert!(!loaded.is_stale("a") && loaded.statements["a"].file == "b.sql");
        write(at, "d.sql", "-- kind = 'query'\n-- name = 'a'\nSELECT 2");
        let loaded = set.reload().unwrap();
        assert!(
            loaded
                .broken
                .iter()
                .any(|b| b.file == "d.sql" && b.error.line == 2 && b.error.message.contains("taken by b.sql"))
        );
        fs::remove_file(at.join("b.sql")).unwrap();
        assert_eq!(set.reload().unwrap().statements["a"].file, "d.sql");
        drop(folder);
        assert!(set.reload().is_err());
        assert_eq!(set.get("a").unwrap().file, "d.sql");
    }

    #[test]
    fn what_the_kind_refuses_is_an_error_with_its_line() {
        fn refusing(_: InnerKind, _: &RawValue) -> Result<(), Vec<(String, String)>> {
            Err(vec![("/row_limit".to_owned(), "expected 1 or more".to_owned())])
        }
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.sql", "-- kind = 'query'\n-- row_limit = 0\nSELECT 1");
        let set = Statements::open(folder.path(), Box::new(refusing)).unwrap();
        let expected = FileError { line: 2, message: "row_limit: expected 1 or more".to_owned() };
        assert_eq!(set.loaded().broken[0].error, expected);
    }
}
