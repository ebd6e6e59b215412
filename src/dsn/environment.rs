//! What stands around a connection string: libpq's variables, and the files in which services are defined. Both are
//! handed in as text; what they add becomes part of the string, by name, and nothing of them is left for libpq to find.

use std::collections::BTreeMap;

use crate::dsn::check::check;
use crate::dsn::foreign::strength;
use crate::dsn::raw::Raw;
use crate::dsn::translate::translate;
use crate::dsn::{Change, Driver, Dsn, DsnError, Parameter, Secret};

/// libpq's surroundings of a process.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The variables whose names begin with PG.
    pub variables: BTreeMap<String, Secret>,
    /// The texts of the files that define services, the first one first.
    pub service_files: Vec<Secret>,
}

impl Surroundings {
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(Secret::expose).filter(|value| !value.is_empty())
    }

    /// The parameters of a service, from the first file that has it.
    fn service(&self, name: &str) -> Option<Vec<(String, String)>> {
        self.service_files.iter().find_map(|file| service_in(file.expose(), name))
    }
}

/// A section of a file like `pg_service.conf`: `[name]`, then `keyword=value` lines.
fn service_in(text: &str, name: &str) -> Option<Vec<(String, String)>> {
    let mut found: Option<Vec<(String, String)>> = None;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if found.is_some() {
                break;
            }
            if section == name {
                found = Some(Vec::new());
            }
        } else if let (Some(pairs), Some((keyword, value))) = (found.as_mut(), line.split_once('=')) {
            pairs.push((keyword.trim().to_owned(), value.trim().to_owned()));
        }
    }
    found
}

/// Whether a variable may set a parameter of TLS: never to something weaker than what holds without it.
fn weakens(keyword: &str, value: &str) -> bool {
    const OLD: [&str; 2] = ["TLSv1", "TLSv1.1"];
    match keyword {
        "sslmode" => strength(value) < strength("prefer"),
        "channel_binding" => value == "disable",
        "ssl_min_protocol_version" | "ssl_max_protocol_version" => OLD.contains(&value),
        "sslcertmode" => value == "disable",
        "require_auth" => value.split(',').any(|method| method == "none"),
        _ => false,
    }
}

impl Dsn {
    /// The string with its service expanded and with libpq's variables in effect, each named as a change. What the
    /// string says itself goes before its service, and that before the variables.
    ///
    /// # Errors
    /// When the service is defined nowhere, or a value of it can't be used.
    pub fn within(
        &self,
        surroundings: &Surroundings,
        table: &[Parameter],
        changes: &mut Vec<Change>,
    ) -> Result<Dsn, DsnError> {
        let mut dsn = self.clone();
        let own = dsn.parameters.remove("service");
        dsn.parameters.remove("servicefile");
        let from_variable = own.is_none();
        if let Some(service) = own.as_deref().or_else(|| surroundings.variable("PGSERVICE")) {
            dsn.add_service(service, surroundings, table, changes)?;
            if from_variable {
                changes.push(Change::new("variable", "the service is the one of PGSERVICE"));
            }
        }
        for parameter in table {
            let Some(variable) = parameter.variable.as_deref() else { continue };
            let Some(value) = surroundings.variable(variable) else { continue };
            dsn.add_variable(&parameter.keyword, variable, value, changes);
        }
        for variable in ["PGTZ", "PGDATESTYLE", "PGGEQO"] {
            if surroundings.variable(variable).is_some() {
                changes.push(Change::new("variable", format!("{variable} has no effect: say it in options")));
            }
        }
        check(&dsn.parameters)?;
        Ok(dsn)
    }

    fn add_service(
        &mut self,
        service: &str,
        surroundings: &Surroundings,
        table: &[Parameter],
        changes: &mut Vec<Change>,
    ) -> Result<(), DsnError> {
        let Some(pairs) = surroundings.service(service) else {
            return Err(DsnError::malformed(
                "its service is defined nowhere: libpq looks into PGSERVICEFILE or ~/.pg_service.conf, then into PGSYSCONFDIR",
            ));
        };
        let raw = Raw { parameters: pairs, ..Raw::default() };
        let service = translate(raw, Driver::Libpq, table, changes)?;
        let mut added = Vec::new();
        for (keyword, value) in service.dsn.parameters {
            if keyword == "service" {
                return Err(DsnError::malformed("a service names another service"));
            }
            if !self.parameters.contains_key(&keyword) {
                self.parameters.insert(keyword.clone(), value);
                added.push(keyword);
            }
        }
        changes.push(Change::new("service", format!("the service gives {}", added.join(", "))));
        Ok(())
    }

    fn add_variable(&mut self, keyword: &str, variable: &str, value: &str, changes: &mut Vec<Change>) {
        let has = |dsn: &Dsn, keyword: &str| dsn.parameters.contains_key(keyword);
        if has(self, keyword) || matches!(keyword, "service" | "servicefile" | "sslkeylogfile") {
            return;
        }
        if keyword == "hostaddr" && has(self, "host") {
            changes.push(Change::new("variable", format!("{variable} has no effect: the string names a host itself")));
            return;
        }
        // PGPORT belongs to PGHOST, or to the socket of this machine.
        let roots = self.parameters.get("sslrootcert").is_some_and(|cert| cert == "system");
        let verified = keyword == "sslmode" && roots && strength(value) < strength("verify-full");
        if weakens(keyword, value) || verified {
            changes.push(Change::new("variable", format!("{variable} has no effect: it would make TLS weaker")));
            return;
        }
        changes.push(Change::new("variable", format!("{keyword} is that of the variable {variable}")));
        self.parameters.insert(keyword.to_owned(), value.to_owned());
    }
}
