//! What libpq would find around a process: its variables, and the files that define services. Taken away at the start,
//! so that nothing reaches a connection but what its own string says; a private cluster's connections must not follow
//! PGHOSTADDR to another server.
//!
//! What `sslrootcert=system` means is put there instead: the OpenSSL that is built in looks for certificates where no
//! system has them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use openssl_probe::ProbeResult;

use crate::dsn::{Secret, Surroundings};

/// Where Debian has the services of the whole machine, unless PGSYSCONFDIR says otherwise.
const SYSTEM_FOLDER: &str = "/etc/postgresql-common";
/// A file of services is small: 1 MiB.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// What was found when somebody first asked.
static FOUND: OnceLock<Surroundings> = OnceLock::new();

/// Reads libpq's variables and files, takes the variables away, and says where this machine keeps the certificates that
/// it trusts. For the first line of a program: while another thread
/// runs, nothing is taken away, and libpq goes on seeing them.
pub fn take_surroundings() -> &'static Surroundings {
    FOUND.get_or_init(|| {
        let found = look();
        take_away(&found);
        found
    })
}

/// Libpq's variables and files, left where they are unless [`take_surroundings`] took them: the environment is that of
/// a program that slowlane is only a part of.
pub fn surroundings() -> &'static Surroundings {
    FOUND.get_or_init(look)
}

fn look() -> Surroundings {
    let variables: BTreeMap<String, Secret> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| is_libpqs(name))
        .map(|(name, value)| (name, Secret::new(value)))
        .collect();
    let service_files = service_files(&variables).iter().filter_map(|path| read(path)).collect();
    Surroundings { variables, service_files }
}

fn take_away(found: &Surroundings) {
    if is_alone() {
        for name in found.variables.keys() {
            // SAFETY: this is the only thread of the process, so that nobody reads the environment meanwhile.
            unsafe { std::env::remove_var(name) };
        }
        for (name, value) in certificates(openssl_probe::probe(), |name| std::env::var_os(name)) {
            // SAFETY: as above.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

/// A variable that libpq reads: others that begin with PG are somebody else's, such as one that holds a connection
/// string.
fn is_libpqs(name: &str) -> bool {
    const OTHERS: [&str; 6] = ["PGSERVICEFILE", "PGSYSCONFDIR", "PGLOCALEDIR", "PGTZ", "PGDATESTYLE", "PGGEQO"];
    OTHERS.contains(&name) || super::parameters().iter().any(|known| known.variable.as_deref() == Some(name))
}

/// OpenSSL's own variables with what was found, where they aren't set. Who sets one of them means that one alone.
fn certificates(found: ProbeResult, variable: impl Fn(&str) -> Option<OsString>) -> Vec<(&'static str, OsString)> {
    let names = [openssl_probe::ENV_CERT_FILE, openssl_probe::ENV_CERT_DIR];
    if names.iter().any(|name| variable(name).is_some_and(|value| !value.is_empty())) {
        return Vec::new();
    }
    let folders = std::env::join_paths(found.cert_dir).ok().filter(|folders| !folders.is_empty());
    let values = [found.cert_file.map(PathBuf::into_os_string), folders];
    names.into_iter().zip(values).filter_map(|(name, value)| Some((name, value?))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_trusts_is_named_unless_somebody_named_something_else() {
        let found =
            || ProbeResult { cert_file: Some("/a/bundle.crt".into()), cert_dir: vec!["/a".into(), "/b".into()] };
        let unset = certificates(found(), |_| None);
        assert_eq!(unset, [("SSL_CERT_FILE", "/a/bundle.crt".into()), ("SSL_CERT_DIR", "/a:/b".into())]);
        assert_eq!(certificates(found(), |name| (name == "SSL_CERT_DIR").then(|| "/own".into())), []);
        assert_eq!(certificates(ProbeResult { cert_file: None, cert_dir: Vec::new() }, |_| None), []);
    }
}
