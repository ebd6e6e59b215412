//! How a connection string of a setting is read: for whomever it was written, by name, and with what stands around it.

use crate::config::ConfigError;
use crate::dsn::{self, Dsn, Parameter, Surroundings};

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
        Ok(dsn)
    }
}
