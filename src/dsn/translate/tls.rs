//! The parameters that say whether and how to use TLS: gathered first, and decided when all of them are known.

use crate::dsn::foreign;
use crate::dsn::refusal::{Code, DsnError};
use crate::dsn::translate::Translation;
use crate::dsn::{Change, Driver};

impl Translation<'_> {
    pub(super) fn ssl_mode(&mut self, value: String) -> Result<(), DsnError> {
        // sqlx takes its words in any case.
        let value = if self.driver == Driver::Sqlx { value.to_ascii_lowercase() } else { value };
        if let Some(known) = &self.tls.mode {
            if foreign::strength(known) < foreign::strength(&value) {
                self.tls.mode = Some(value);
            }
            return Err(DsnError::new(Code::DuplicateParameter, "sslmode is given twice: keep the one that is meant"));
        }
        self.tls.mode = Some(value);
        Ok(())
    }

    pub(super) fn tls_word(&mut self, name: &'static str, value: &str) -> Result<(), DsnError> {
        let place = match name {
            "ssl-mode" => {
                self.change("renamed", "ssl-mode is sslmode to libpq");
                self.written_as.insert("sslmode", "ssl-mode");
                return self.ssl_mode(value.to_owned());
            }
            "SSL Mode" => return self.ssl_mode(foreign::ssl_mode(value)?.to_owned()),
            "Trust Server Certificate" => {
                self.tls.trust = Some(foreign::flag_of(value)?);
                self.change("tls", format!("{name} decides what SSL Mode means"));
                return Ok(());
            }
            "requiressl" => {
                // The old word: without it, TLS is taken where the server has it.
                if foreign::flag_of(value)? {
                    self.tls.direct = true;
                    self.change("tls", "requiressl is sslmode=require to libpq");
                } else {
                    self.dropped(name, "it says nothing that isn't so anyway")?;
                }
                return Ok(());
            }
            "ssl" => &mut self.tls.flag,
            "sslaccept" => &mut self.tls.accept,
            "uselibpqcompat" => &mut self.tls.libpq_words,
            "direct_tls" => {
                if foreign::flag_of(value)? {
                    self.change("renamed", "direct_tls is sslnegotiation=direct to libpq");
                    self.put("sslnegotiation", "direct".to_owned())?;
                    self.tls.direct = true;
                } else {
                    self.dropped(name, "it says nothing that isn't so anyway")?;
                }
                return Ok(());
            }
            _ => {
                self.tls.unchecked = value.ends_with("NonValidatingFactory");
                self.change("dropped", format!("{name} names code of that driver's: sslmode says what is checked"));
                return Ok(());
            }
        };
        if name != "ssl" {
            self.changes.push(Change::new("tls", format!("{name} decides what sslmode means")));
        }
        if place.replace(value.to_owned()).is_some() {
            let message = format!("{name} is given twice: keep the one that is meant");
            return Err(DsnError::new(Code::DuplicateParameter, message));
        }
        Ok(())
    }

    pub(super) fn decide_tls(&mut self) -> Result<(), DsnError> {
        self.tls.files = ["sslcert", "sslkey", "sslrootcert"].iter().any(|file| self.parameters.contains_key(*file));
        self.tls.roots = self.parameters.contains_key("sslrootcert");
        if self.driver == Driver::Pq && self.parameters.get("sslrootcert").is_some_and(|cert| cert == "system") {
            self.tls.mode.get_or_insert_with(|| "verify-full".to_owned());
        }
        let by_its_name = |error: DsnError| match self.written_as.get("sslmode") {
            Some(name) if error.message.starts_with("sslmode") => error.about(name),
            _ => error,
        };
        let Some((mode, by_system)) = self.tls.resolve(self.driver).map_err(by_its_name)? else { return Ok(()) };
        let said = self.tls.mode.as_deref() == Some(mode)
            && self.tls.flag.is_none()
            && self.tls.accept.is_none()
            && self.driver != Driver::AdoNet;
        if !said {
            let why = match self.driver {
                Driver::NodePostgres if mode == "verify-full" => {
                    ": node-postgres verifies the server's certificate with that word, and libpq wouldn't"
                }
                Driver::Pq if self.tls.mode.is_none() && self.tls.flag.is_none() => {
                    ": lib/pq asks for it where nothing is said"
                }
                Driver::AdoNet if mode == "require" && self.tls.trust != Some(true) => {
                    ": the certificate isn't checked, as Npgsql does since version 8; write SSL Mode=VerifyFull if it is to be"
                }
                Driver::AdoNet if mode == "verify-full" && self.tls.mode.as_deref() == Some("require") => {
                    ": the certificate is not to be trusted unseen"
                }
                Driver::Jdbc if mode == "verify-full" && self.tls.mode.is_none() => ": pgjdbc verifies with ssl=true",
                _ if mode == "require" && self.tls.flag.as_deref().is_some_and(|word| word != "require") => {
                    ": the certificate isn't checked; write sslmode=verify-full if it is to be"
                }
                _ => "",
            };
            self.change("tls", format!("TLS is asked for as sslmode={mode}{why}"));
        }
        if by_system && !self.parameters.contains_key("sslrootcert") {
            self.change("tls", "sslrootcert=system is added: that driver trusts the well-known authorities");
            self.put("sslrootcert", "system".to_owned())?;
        }
        self.put("sslmode", mode.to_owned())
    }
}
