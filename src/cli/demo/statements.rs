//! The demo's saved statements: those of the folder demo/statements, put where an operator would have his own.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::cli::Failure;

/// Each file's name and text.
const FILES: [(&str, &str); 3] = [
    ("clear_tail_numbers.sql", include_str!("../../../demo/statements/clear_tail_numbers.sql")),
    ("late_flights.sql", include_str!("../../../demo/statements/late_flights.sql")),
    ("report_delays.sql", include_str!("../../../demo/statements/report_delays.sql")),
];

/// The folder of saved statements within a folder of data. Made and filled when it isn't there: one that is there may
/// have been changed by whoever tries things out.
///
/// # Errors
/// When it can't be written.
pub fn set_up(data_dir: &Path) -> Result<PathBuf, Failure> {
    let folder = data_dir.join("statements");
    let failed = |path: &Path, error: std::io::Error| format!("{}: {error}", path.display());
    match fs::create_dir(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(folder),
        Err(error) => return Err(failed(&folder, error).into()),
    }
    for (name, text) in FILES {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| failed(&path, error))?;
    }
    Ok(folder)
}
