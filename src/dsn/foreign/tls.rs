//! Whether and how to use TLS, by what a string asks its own driver for: never weaker than that.

use crate::dsn::Driver;
use crate::dsn::foreign::values::{flag, flag_of};
use crate::dsn::refusal::DsnError;

/// sslmode's words, from the weakest to the strongest.
pub const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// How strong a mode is; `None` for what is none.
pub fn strength(mode: &str) -> Option<usize> {
    SSL_MODES.iter().position(|known| *known == mode)
}

/// What a string asks for where TLS is concerned, in its own driver's words.
#[derive(Debug, Default)]
pub(in crate::dsn) struct Tls {
    /// `sslmode`.
    pub mode: Option<String>,
    /// `ssl`.
    pub flag: Option<String>,
    /// Prisma's `sslaccept`.
    pub accept: Option<String>,
    /// node-postgres' `uselibpqcompat`.
    pub libpq_words: Option<String>,
    /// asyncpg's `direct_tls`.
    pub direct: bool,
    /// It names a certificate, a key, or whom to trust.
    pub files: bool,
    /// It names whom to trust.
    pub roots: bool,
    /// pgjdbc's `sslfactory` is one that checks nothing.
    pub unchecked: bool,
    /// Npgsql's `Trust Server Certificate`.
    pub trust: Option<bool>,
}

impl Tls {
    /// libpq's sslmode for it, and whether the server's certificate is to be checked by the system's roots when no file
    /// is named. `None` when the string says nothing.
    ///
    /// pgjdbc verifies with `ssl=true` alone; node-postgres verifies with every word but `disable` and `no-verify`;
    /// lib/pq asks for TLS where nothing is said; pgx, sqlx and Npgsql trust the system's authorities where no file is
    /// named.
    pub fn resolve(&self, driver: Driver) -> Result<Option<(&'static str, bool)>, DsnError> {
        let mut wanted: Option<(&'static str, bool)> = None;
        let mut raise = |mode: &'static str, by_system: bool| {
            let stronger = wanted.is_none_or(|(known, _)| strength(mode) > strength(known));
            if stronger {
                wanted = Some((mode, by_system));
            }
        };
        let libpq_words = self.libpq_words.as_deref().map(flag_of).transpose();
        let libpq_words = libpq_words.map_err(|error| error.about("uselibpqcompat"))?.unwrap_or(false);
        let verifies = driver.verifies_by_default() && !libpq_words;
        for (name, word) in [("sslmode", &self.mode), ("ssl", &self.flag)] {
            let Some(word) = word else { continue };
            // pgjdbc looks at ssl only where there is no sslmode.
            if name == "ssl" && driver == Driver::Jdbc && self.mode.is_some() {
                continue;
            }
            match (word.as_str(), flag(word)) {
                ("require", _) if self.trust == Some(false) => raise("verify-full", true),
                ("verify-full", _) if driver.trusts_the_system() => raise("verify-full", true),
                // libpq verifies by the system's authorities only where it verifies the host name too.
                ("verify-ca", _) if driver.trusts_the_system() && !self.roots => raise("verify-full", true),
                ("no-verify", _) => raise("require", false),
                ("prefer" | "require" | "verify-ca" | "verify-full", _) if verifies => raise("verify-full", true),
                (word, _) if strength(word).is_some() => {
                    raise(SSL_MODES.iter().find(|mode| **mode == word).copied().unwrap_or("verify-full"), false);
                }
                (_, Some(true)) if name == "ssl" && verifies => raise("verify-full", true),
                (_, Some(true)) if name == "ssl" && driver == Driver::Jdbc && !self.unchecked => {
                    raise("verify-full", false);
                }
                (_, Some(true)) if name == "ssl" => raise("require", false),
                (_, Some(false)) if name == "ssl" => raise("disable", false),
                _ => {
                    let flags = if name == "ssl" { "true, false, " } else { "" };
                    return Err(DsnError::malformed(format!(
                        "{name} is one of {flags}disable, allow, prefer, require, verify-ca and verify-full"
                    )));
                }
            }
        }
        if self.direct {
            raise("require", false);
        }
        if driver == Driver::Pq && self.mode.is_none() && self.flag.is_none() {
            raise("require", false);
        }
        // node-postgres turns TLS on as soon as it is given a file for it.
        if verifies && self.files && self.mode.is_none() && self.flag.is_none() {
            raise("verify-full", true);
        }
        match self.accept.as_deref() {
            Some("strict") => raise("verify-full", true),
            Some("accept_invalid_certs") | None => {}
            Some(_) => return Err(DsnError::malformed("sslaccept is strict or accept_invalid_certs")),
        }
        Ok(wanted)
    }
}
