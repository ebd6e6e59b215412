//! What libpq would find around a process: its variables, and the files that define services. Taken away at the start, so
//! that nothing reaches a connection but what its own string says; a private cluster's connections must not follow
//! PGHOSTADDR to another server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::dsn::{Secret, Surroundings};

/// Where Debian has the services of the whole machine, unless PGSYSCONFDIR says otherwise.
const SYSTEM_FOLDER: &str = "/etc/postgresql-common";
/// A file of services is small: 1 MiB.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Reads libpq's variables and files, and takes the variables away. For the first line of a program: while another thread
/// runs, nothing is taken away, and libpq goes on seeing them.
pub fn take_surroundings() -> Surroundings {
    let variables: BTreeMap<String, Secret> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("PG"))
        .map(|(name, value)| (name, Secret::new(value)))
        .collect();
    let service_files = service_files(&variables).iter().filter_map(|path| read(path)).collect();
    if is_alone() {
        for name in variables.keys() {
            // SAFETY: this is the only thread of the process, so that nobody reads the environment meanwhile.
            unsafe { std::env::remove_var(name) };
        }
    }
    Surroundings { variables, service_files }
}

/// This thread is the only one, as far as the kernel says it.
fn is_alone() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() == 1)
}

/// libpq's order: PGSERVICEFILE or the user's own file, then the machine's.
fn service_files(variables: &BTreeMap<String, Secret>) -> Vec<PathBuf> {
    let variable = |name: &str| variables.get(name).map(Secret::expose).filter(|value| !value.is_empty());
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pg_service.conf"));
    let own = variable("PGSERVICEFILE").map(PathBuf::from).or_else(home);
    let system = Path::new(variable("PGSYSCONFDIR").unwrap_or(SYSTEM_FOLDER)).join("pg_service.conf");
    own.into_iter().chain([system]).collect()
}

fn read(path: &Path) -> Option<Secret> {
    let small = std::fs::metadata(path).is_ok_and(|about| about.is_file() && about.len() <= MAX_FILE_BYTES);
    small.then(|| std::fs::read_to_string(path).ok()).flatten().map(Secret::new)
}
