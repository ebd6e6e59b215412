//! The path of a URL: the name of a database, or the folder of a socket in its place.

use crate::dsn::refusal::DsnError;

/// What a path stands for. Both are still percent-encoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place<'p> {
    Database(&'p str),
    Socket { folder: &'p str, database: &'p str },
}

/// Where Postgres, its packages and Cloud SQL put sockets. A folder that isn't known may be anything, a piece of a
/// password too.
fn is_folder(path: &str) -> bool {
    let path = path.trim_start_matches('/').replace("%3A", ":").replace("%3a", ":");
    let known =
        ["var/run/postgresql", "run/postgresql", "var/lib/postgresql", "tmp", "private/tmp", "var/pgsql_socket"];
    // project:region:instance, where the project may be of a domain.
    let instance =
        |name: &str| !name.contains('/') && matches!(name.split(':').filter(|part| !part.is_empty()).count(), 3 | 4);
    known.contains(&path.as_str()) || path.strip_prefix("cloudsql/").is_some_and(instance)
}

fn misplaced() -> DsnError {
    DsnError::malformed(
        "a path stands in the place of the database: the folder of a socket is host, as in \
         postgresql://USER:PASSWORD@/DATABASE?host=/FOLDER; a `/` in the name of a database is written %2F",
    )
}

/// What the path behind the hosts means; `path` is without its first `/`. libpq takes all of it for the database.
///
/// # Errors
/// When it is a path, and no folder in which sockets are known to stand.
pub(super) fn of_path(path: &str, has_host: bool) -> Result<Place<'_>, DsnError> {
    let (folder, last) = path.rsplit_once('/').unwrap_or(("", path));
    let whole = path.contains('/') && is_folder(path);
    match () {
        () if has_host && (whole || is_folder(folder)) => Err(misplaced()),
        () if has_host || folder.is_empty() => Ok(Place::Database(path)),
        () if whole => Ok(Place::Socket { folder: path, database: "" }),
        () if is_folder(folder) => Ok(Place::Socket { folder, database: last }),
        () => Err(misplaced()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_sockets_is_known() {
        let socket = |folder, database| Ok::<_, DsnError>(Place::Socket { folder, database });
        assert_eq!(of_path("cloudsql/p:r:i/db", false), socket("cloudsql/p:r:i", "db"));
        assert_eq!(of_path("cloudsql/p%3Ar%3Ai/db", false), socket("cloudsql/p%3Ar%3Ai", "db"));
        assert_eq!(of_path("cloudsql/p:r:i", false), socket("cloudsql/p:r:i", ""));
        assert_eq!(of_path("cloudsql/example.com:p:r:i/", false), socket("cloudsql/example.com:p:r:i", ""));
        assert_eq!(of_path("var/run/postgresql/db", false), socket("var/run/postgresql", "db"));
        assert_eq!(of_path("tmp/db", false), socket("tmp", "db"));
        for database in ["", "db", "tmp", "a%2Fb"] {
            assert_eq!(of_path(database, false), Ok(Place::Database(database)));
        }
        assert_eq!(of_path("a/b", true), Ok(Place::Database("a/b")));
        for (path, has_host) in
            [("a/b", false), ("opt/pg/db", false), ("cloudsql/p:r:i/db", true), ("run/postgresql", true)]
        {
            assert!(of_path(path, has_host).is_err(), "{path}");
        }
    }
}
