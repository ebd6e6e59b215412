//! The right to write about a job, and the name by which a target's sessions show it.

use uuid::Uuid;

/// The right to write about a job: it ends when somebody else claims the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The job.
    pub job_id: Uuid,
    /// Grows with every claim of this job and never repeats.
    pub number: i64,
    /// The process that claimed it.
    pub worker_id: Uuid,
}

impl Lease {
    /// The `application_name` of the sessions that this attempt opens on its target.
    pub fn application_name(&self) -> String {
        Lease::application_name_of(self.job_id, self.number)
    }

    /// As [`Lease::application_name`], of the lease of this number, whoever had it.
    pub fn application_name_of(job_id: Uuid, number: i64) -> String {
        format!("slowlane:{job_id}:{number}")
    }

    /// The job whose attempt has this `application_name`; `None` when it is nobody's.
    pub fn job_of(application_name: &str) -> Option<Uuid> {
        let (job, lease) = application_name.strip_prefix("slowlane:")?.split_once(':')?;
        lease.parse::<i64>().ok()?;
        job.parse().ok()
    }
}
