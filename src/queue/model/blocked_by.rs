//! Who held a lock that a job waited for in vain, as the job's error names them.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A session that held a lock which a job waited for in vain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockedBy {
    /// Its server process; 0 for a prepared transaction.
    pub pid: i32,
    /// Its name; `None` where there is none, or no such session any more.
    pub application_name: Option<String>,
    /// The job that it worked for, where its name is that of a session of a job.
    pub job_id: Option<Uuid>,
}

impl fmt::Display for BlockedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, &self.job_id, &self.application_name) {
            (0, ..) => f.write_str("a prepared transaction"),
            (pid, Some(job), _) => write!(f, "process {pid} of job {job}"),
            (pid, None, Some(name)) => write!(f, "process {pid} ({name})"),
            (pid, None, None) => write!(f, "process {pid}"),
        }
    }
}
