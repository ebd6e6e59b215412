//! Finding an installed Postgres server: where `SLOWLANE_POSTGRES_BIN` says, otherwise in PATH, by `pg_config` and in
//! Debian's folders; the newest first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cluster::ClusterError;

/// The oldest server that is supported.
const OLDEST_MAJOR: u32 = 14;
/// The environment variable that names the folder of the server's programs. No other server is looked for then.
const CHOSEN: &str = "SLOWLANE_POSTGRES_BIN";

/// The programs of one installed server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
    major: u32,
}

impl Binaries {
    /// The path of one of its programs.
    pub fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// Its major version.
    pub fn major(&self) -> u32 {
        self.major
    }
}

/// The newest installed server.
///
/// # Errors
/// When there is none of at least version 14, or `SLOWLANE_POSTGRES_BIN` names a folder without one.
pub fn find_binaries() -> Result<Binaries, ClusterError> {
    candidates()?.into_iter().next().ok_or(ClusterError::NoBinaries)
}

/// The server for a data folder: of its own version, or the newest for one that isn't made yet.
pub(super) fn for_folder(data: &Path) -> Result<Binaries, ClusterError> {
    let Ok(version) = fs::read_to_string(data.join("PG_VERSION")) else {
        return find_binaries();
    };
    let version = version.trim();
    let other = || ClusterError::OtherVersion(data.to_owned(), version.to_owned());
    candidates()?.into_iter().find(|binaries| binaries.major.to_string() == version).ok_or_else(other)
}

/// The servers to choose from: the one that the environment names, or all that are installed.
fn candidates() -> Result<Vec<Binaries>, ClusterError> {
    match std::env::var_os(CHOSEN).filter(|folder| !folder.is_empty()) {
        Some(folder) => {
            let folder = PathBuf::from(folder);
            let chosen = in_folder(folder.clone());
            Ok(vec![chosen.ok_or(ClusterError::NoBinariesThere(folder))?])
        }
        None => Ok(installed()),
    }
}

/// The server whose programs are in this folder, where it is new enough.
fn in_folder(folder: PathBuf) -> Option<Binaries> {
    let major = major_of(&folder)?;
    (folder.join("initdb").is_file() && major >= OLDEST_MAJOR).then_some(Binaries { folder, major })
}

fn installed() -> Vec<Binaries> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).filter(|folder| folder.join("postgres").is_file());
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|e| e.path().join("bin"));
    let mut found: Vec<Binaries> = in_path.chain(by_pg_config()).chain(debian).filter_map(in_folder).collect();
    found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
    found
}

fn by_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()))
}

/// `postgres (PostgreSQL) 15.18 (…)` gives 15.
fn major_of(folder: &Path) -> Option<u32> {
    let output = Command::new(folder.join("postgres")).arg("--version").stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}
