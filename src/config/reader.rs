//! How a connection string of a setting is read: for whomever it was written, by name, and with what stands around it.

use crate::config::{ConfigError, variable};
use crate::dsn::{self, Dsn, Origin, Parameter, Surroundings};

/// Reads connection strings.
#[derive(Clone, Copy)]
pub struct DsnReader<'r> {
    /// What libpq knows.
    pub table: &'r [Parameter],
    /// What libpq would have found around the process.
    pub surroundings: &'r Surroundings,
    /// A string that must be translated is refused.
    pub strict: bool,
}

impl DsnReader<'_> {
    /// Reads the string that the environment variable `name` holds, for `setting`.
    ///
    /// # Errors
    /// As [`DsnReader::read`], or when there is no such variable.
    pub fn read_variable(&self, setting: &str, name: &str) -> Result<Dsn, ConfigError> {
        // A connection string in the place of a variable's name would be shown by the message.
        let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_name {
            return Err(ConfigError::Missing(format!(
                "{setting}: expected the name of an environment variable that holds the DSN"
            )));
        }
        match variable(name) {
            Some(text) => self.read(&format!("{setting} ({name})"), &text),
            None => Err(ConfigError::Missing(format!("{setting}: the environment variable {name} is not set"))),
        }
    }

    /// Reads the string of `setting`. What had to be changed is logged, by the setting's name.
    ///
    /// # Errors
    /// [`ConfigError::Dsn`] when it is refused, [`ConfigError::Translated`] when it isn't libpq's and has to be.
    pub fn read(&self, setting: &str, text: &str) -> Result<Dsn, ConfigError> {
        let refused = |error| ConfigError::Dsn(setting.to_owned(), error);
        let reading = dsn::read(text, self.table).map_err(refused)?;
        let mut changes = Vec::new();
        let within = reading.dsn.within(self.surroundings, self.table, &mut changes);
        // A variable in effect, and a service that is looked up, are no other driver's words.
        let foreign =
            reading.changes.iter().chain(changes.iter().filter(|c| !["service", "variable"].contains(&c.name)));
        let foreign: Vec<&str> = foreign.map(|change| change.text.as_str()).collect();
        if self.strict && !foreign.is_empty() {
            return Err(ConfigError::Translated(setting.to_owned(), foreign.join("; "), reading.dsn.masked()));
        }
        if !reading.changes.is_empty() {
            let (driver, masked) = (reading.driver, reading.dsn.masked());
            log::warn!("{setting} was written for {driver}, and is read as {masked}");
        }
        let dsn = within.map_err(refused)?;
        for change in reading.changes.iter().chain(&changes) {
            log::info!("{setting}: {}", change.text);
        }
        let origin = Origin {
            driver: reading.driver,
            changes: reading.changes.iter().chain(&changes).map(|change| change.text.clone()).collect(),
            translated: !reading.changes.is_empty(),
        };
        Ok(dsn.understood(origin))
    }
}
