//! How far an attempt is: what the work says of itself, what its target's server says of its session, and both together.
//!
//! Knows no thread and no statement: it is told what was seen, and `queue/record/progress.rs` stores what it comes to.

use std::time::{Duration, Instant};

use chrono::Utc;

use crate::queue::Lease;
use crate::queue::model::{BlockedBy, JobProgress, ProgressBasis};
use crate::queue::record::log::cut;
use crate::target::activity::{Activity, Blocker, CommandProgress};

/// What is shown of an attempt whose work has said nothing.
const RUNNING: &str = "running";
/// Something unchanged is written again after so long: then it is known not to have changed.
const SAY_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// The longest phase or unit, in bytes. One statement stores those of all jobs: none may spoil it.
const MAX_WORD_BYTES: usize = 500;
/// A rate is one over at least so long.
const RATE_OVER: Duration = Duration::from_secs(1);

/// What a job says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it is doing.
    pub phase: String,
    /// How much is done, in `unit`.
    pub done: i64,
    /// How much there is, where that is known.
    pub total: Option<i64>,
    /// What is counted. Empty where the work counts nothing.
    pub unit: String,
    /// Whether `total` is known, estimated or neither.
    pub basis: ProgressBasis,
}

impl Report {
    /// A phase, without numbers of its own.
    pub fn phase(phase: impl Into<String>) -> Report {
        Report { phase: phase.into(), done: 0, total: None, unit: String::new(), basis: ProgressBasis::None }
    }

    fn counts(&self) -> bool {
        !self.unit.is_empty()
    }
}

/// How far an attempt is, from all that is known.
#[derive(Clone, Debug)]
pub struct Progress {
    began: Instant,
    report: Option<Report>,
    /// The server's numbers go before the report's, where it has any.
    coarse: bool,
    seen: Option<Activity>,
    /// It can't be looked at by now: what was seen is old.
    blind: bool,
    /// What earlier runs of the same work took, in milliseconds and in order.
    history: Vec<i64>,
    /// What was shown last: numbers don't go backwards within a phase.
    shown: Option<Report>,
    /// The work's own phase: its beginning, and what was done by then.
    phase_began: Option<(Instant, i64)>,
    untold: bool,
    told_at: Option<Instant>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress {
            began: Instant::now(),
            report: None,
            coarse: false,
            seen: None,
            blind: false,
            history: Vec::new(),
            shown: None,
            phase_began: None,
            untold: false,
            told_at: None,
        }
    }
}

impl Progress {
    /// A newer report of the work's own. `coarse`: finer numbers of the server's are shown in its place.
    pub fn report(&mut self, report: Report, coarse: bool) {
        let report =
            Report { phase: cut(&report.phase, MAX_WORD_BYTES), unit: cut(&report.unit, MAX_WORD_BYTES), ..report };
        let same = self.report.as_ref().is_some_and(|last| last.phase == report.phase && last.unit == report.unit);
        if !same {
            // What the server counted was of the step before.
            if let Some(seen) = &mut self.seen {
                seen.command = None;
            }
            self.phase_began = Some((Instant::now(), report.done));
        }
        self.untold |= self.report.as_ref() != Some(&report);
        self.coarse = coarse;
        self.report = Some(report);
    }

    /// What the server said of its session just now.
    pub fn seen(&mut self, activity: Activity) {
        self.untold |= self.blind
            || self.seen.as_ref() != Some(&activity)
            || self.told_at.is_none_or(|at| at.elapsed() >= SAY_AGAIN_AFTER);
        self.seen = Some(activity);
        self.blind = false;
    }

    /// The session could not be looked at, or is gone: what was seen of it is old.
    pub fn unseen(&mut self) {
        self.untold |= self.seen.is_some() && !self.blind;
        self.blind = true;
    }

    /// What earlier runs of the same work took, in milliseconds.
    pub fn took_before(&mut self, mut durations: Vec<i64>) {
        durations.sort_unstable();
        self.history = durations;
    }

    /// How long the attempt has been running.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// How far it is, if that was not taken before.
    pub fn take_untold(&mut self) -> Option<JobProgress> {
        if !std::mem::take(&mut self.untold) {
            return None;
        }
        self.told_at = Some(Instant::now());
        self.now()
    }

    /// How far it is.
    pub fn now(&mut self) -> Option<JobProgress> {
        let shown = never_backwards(self.merged()?, self.shown.as_ref());
        self.shown = Some(shown.clone());
        let eta_ms = self.eta_ms(&shown);
        let Report { phase, done, total, unit, basis } = shown;
        let seen = self.seen.as_ref().filter(|_| !self.blind);
        Some(JobProgress {
            phase,
            done,
            total,
            unit,
            basis,
            eta_ms,
            wait_event: seen.and_then(|seen| seen.wait_event.clone()),
            blocked_by: seen.map(|seen| seen.blocked_by.iter().cloned().map(BlockedBy::from).collect()),
            temp_bytes: seen.and_then(|seen| seen.temp_bytes),
            sampled_at: Utc::now(),
        })
    }

    /// As a job keeps it that has ended. Of one that succeeded what the work itself said last: the server was looked at
    /// some time before the end.
    pub fn for_history(&mut self, succeeded: bool) -> Option<JobProgress> {
        if succeeded {
            self.seen = None;
            self.shown = None;
            self.report.as_ref()?;
        }
        // What was seen last was long ago or not: it ended there.
        self.blind = false;
        Some(JobProgress { eta_ms: None, wait_event: None, blocked_by: None, ..self.now()? })
    }

    /// The work's numbers, or the server's where the work has none, or coarser ones.
    fn merged(&self) -> Option<Report> {
        let command = self.seen.as_ref().filter(|_| !self.blind).and_then(|seen| seen.command.as_ref());
        match (&self.report, command) {
            (Some(report), None) => Some(report.clone()),
            (Some(report), Some(_)) if report.counts() && !self.coarse => Some(report.clone()),
            (Some(report), Some(command)) => Some(of_server(command, Some(&report.phase))),
            (None, Some(command)) => Some(of_server(command, None)),
            (None, None) => self.seen.as_ref().map(|_| Report::phase(RUNNING)),
        }
    }

    /// By the rate of the work's own numbers; else by what the same work took before. The server's numbers are those of one
    /// phase, and tell nothing of the whole.
    fn eta_ms(&self, shown: &Report) -> Option<i64> {
        self.eta_by_rate(shown).or_else(|| {
            let age = i64::try_from(self.age().as_millis()).unwrap_or(i64::MAX);
            let median = self.history.get(self.history.len() / 2).filter(|median| **median > age);
            // Later than usual: as long as the next slower run, and unknown after the slowest.
            let expected = median.or_else(|| self.history.iter().find(|duration| **duration > age))?;
            Some(expected.saturating_sub(age))
        })
    }

    fn eta_by_rate(&self, shown: &Report) -> Option<i64> {
        let own = self.report.as_ref().is_some_and(|report| report.phase == shown.phase && report.unit == shown.unit);
        let total = shown.total.filter(|_| own && shown.basis != ProgressBasis::None)?;
        let (began, from) = self.phase_began?;
        let (took, done) = (began.elapsed(), shown.done.saturating_sub(from));
        if took < RATE_OVER || done <= 0 {
            return None;
        }
        let left = i128::from(total.saturating_sub(shown.done));
        let left_ms = left.saturating_mul(i128::try_from(took.as_millis()).ok()?) / i128::from(done);
        i64::try_from(left_ms).ok()
    }
}

fn of_server(command: &CommandProgress, phase: Option<&str>) -> Report {
    let phase = match phase {
        Some(phase) => format!("{phase}: {}", command.phase),
        None => command.phase.clone(),
    };
    let Some(done) = command.done else { return Report::phase(phase) };
    let basis = if command.total.is_some() { ProgressBasis::Exact } else { ProgressBasis::None };
    Report { phase, done, total: command.total, unit: command.unit.to_owned(), basis }
}

/// Within a phase nothing is undone, and there is no more than all of it. An estimate that was exceeded was none.
fn never_backwards(mut report: Report, last: Option<&Report>) -> Report {
    if let Some(last) = last.filter(|last| last.phase == report.phase && last.unit == report.unit) {
        report.done = report.done.max(last.done);
        if last.basis == ProgressBasis::None && last.counts() && report.basis == ProgressBasis::Estimated {
            (report.total, report.basis) = (None, ProgressBasis::None);
        }
    }
    if report.total.is_some_and(|total| report.done > total) {
        match report.basis {
            ProgressBasis::Exact => report.total = Some(report.done),
            _ => (report.total, report.basis) = (None, ProgressBasis::None),
        }
    }
    report
}

impl From<Blocker> for BlockedBy {
    fn from(blocker: Blocker) -> BlockedBy {
        let job_id = blocker.application_name.as_deref().and_then(Lease::job_of);
        BlockedBy { pid: blocker.pid, application_name: blocker.application_name, job_id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::TargetBackend;
    use uuid::Uuid;

    fn rows(done: i64, total: Option<i64>, basis: ProgressBasis) -> Report {
        Report { phase: "copying".to_owned(), done, total, unit: "rows".to_owned(), basis }
    }

    fn activity(command: Option<(&str, i64, i64)>) -> Activity {
        Activity {
            backend: TargetBackend { pid: 1, backend_start: chrono::DateTime::UNIX_EPOCH },
            wait_event: Some("Lock:relation".to_owned()),
            blocked_by: vec![Blocker { pid: 2, application_name: None }],
            temp_bytes: None,
            command: command.map(|(phase, done, total)| CommandProgress {
                phase: phase.to_owned(),
                done: Some(done),
                total: Some(total),
                unit: "blocks",
            }),
        }
    }

    fn shown(progress: &mut Progress) -> (String, i64, Option<i64>, ProgressBasis) {
        let now = progress.now().unwrap();
        (now.phase, now.done, now.total, now.basis)
    }

    #[test]
    fn a_blocker_of_ours_is_told_with_its_job() {
        let lease = Lease { job_id: Uuid::now_v7(), number: 7, worker_id: Uuid::now_v7() };
        for (name, job) in [
            (lease.application_name(), Some(lease.job_id)),
            ("psql".to_owned(), None),
            (format!("slowlane:{}", lease.job_id), None),
            (format!("slowlane:{}:x", lease.job_id), None),
            ("slowlane:nothing:1".to_owned(), None),
        ] {
            let mut progress = Progress::default();
            let blocker = Blocker { pid: 2, application_name: Some(name.clone()) };
            progress.seen(Activity { blocked_by: vec![blocker], ..activity(None) });
            assert_eq!(progress.now().unwrap().blocked_by.unwrap()[0].job_id, job, "{name}");
        }
    }

    #[test]
    fn nothing_is_shown_of_what_nobody_has_said_anything_about() {
        let mut progress = Progress::default();
        assert!(progress.take_untold().is_none() && progress.for_history(true).is_none());
        progress.seen(activity(None));
        let now = progress.take_untold().unwrap();
        assert_eq!((now.phase.as_str(), now.unit.as_str(), now.total), ("running", "", None));
        assert_eq!((now.wait_event.as_deref(), now.blocked_by.unwrap().len()), (Some("Lock:relation"), 1));
        progress.seen(activity(None));
        assert!(progress.take_untold().is_none(), "nothing has changed");
        // What can't be looked at any more isn't said to be so now.
        progress.seen(activity(Some(("scanning heap (t)", 3, 10))));
        progress.unseen();
        let now = progress.take_untold().unwrap();
        assert!(now.phase == "running" && now.wait_event.is_none() && now.blocked_by.is_none(), "{now:?}");
        progress.unseen();
        assert!(progress.take_untold().is_none(), "nothing has changed");
        assert!(progress.for_history(false).unwrap().phase.contains("scanning heap (t)"));
    }

    #[test]
    fn the_works_own_numbers_go_before_the_servers_but_for_coarse_ones() {
        let mut progress = Progress::default();
        progress.seen(activity(Some(("scanning heap (t)", 3, 10))));
        assert_eq!(shown(&mut progress), ("scanning heap (t)".into(), 3, Some(10), ProgressBasis::Exact));
        progress.report(rows(1, Some(4), ProgressBasis::Exact), false);
        assert_eq!(shown(&mut progress), ("copying".into(), 1, Some(4), ProgressBasis::Exact));
        // What the server counted in the step before is none of the next one's.
        progress.report(Report::phase("try 2"), false);
        assert_eq!(shown(&mut progress).0, "try 2");
        progress.seen(activity(Some(("scanning heap (t)", 3, 10))));
        assert_eq!(shown(&mut progress).0, "try 2: scanning heap (t)");
        progress.report(rows(1, Some(4), ProgressBasis::Exact), true);
        progress.seen(activity(Some(("scanning heap (t)", 3, 10))));
        assert_eq!(shown(&mut progress), ("copying: scanning heap (t)".into(), 3, Some(10), ProgressBasis::Exact));
        progress.seen(activity(None));
        assert_eq!(shown(&mut progress), ("copying".into(), 1, Some(4), ProgressBasis::Exact));
    }

    #[test]
    fn numbers_never_go_backwards_within_a_phase_and_never_beyond_the_whole() {
        let mut progress = Progress::default();
        for (done, expected) in [(5, 5), (3, 5), (7, 7)] {
            progress.report(rows(done, Some(10), ProgressBasis::Exact), false);
            assert_eq!(shown(&mut progress).1, expected);
        }
        progress.report(rows(11, Some(10), ProgressBasis::Exact), false);
        assert_eq!(shown(&mut progress).2, Some(11));
        // An estimate that was exceeded is none any more, and doesn't come back within its phase.
        let mut progress = Progress::default();
        for (done, total) in [(9, Some(10)), (11, None), (12, None)] {
            progress.report(rows(done, Some(10), ProgressBasis::Estimated), false);
            assert_eq!(shown(&mut progress).2, total);
        }
        progress.report(rows(12, Some(20), ProgressBasis::Estimated), false);
        assert_eq!(shown(&mut progress).2, None);
    }

    #[test]
    fn an_eta_comes_from_the_rate_or_from_earlier_runs() {
        let mut progress = Progress::default();
        progress.took_before(vec![30_000, 10_000, 20_000]);
        progress.seen(activity(Some(("scanning heap (t)", 3, 10))));
        let eta = progress.now().unwrap().eta_ms.unwrap();
        assert!((19_000..=20_000).contains(&eta), "{eta}: the median, and none by the rate of one phase");
        progress.began = Instant::now().checked_sub(Duration::from_secs(25)).unwrap();
        assert!(progress.now().unwrap().eta_ms.unwrap() <= 5_000, "the slowest");
        progress.began = Instant::now().checked_sub(Duration::from_secs(31)).unwrap();
        assert_eq!(progress.now().unwrap().eta_ms, None);
        progress.report(rows(0, Some(100), ProgressBasis::Exact), false);
        progress.phase_began = Some((Instant::now().checked_sub(Duration::from_secs(10)).unwrap(), 0));
        progress.report(rows(20, Some(100), ProgressBasis::Exact), false);
        let eta = progress.now().unwrap().eta_ms.unwrap();
        assert!((40_000..41_000).contains(&eta), "{eta}");
    }

    #[test]
    fn a_job_that_succeeded_keeps_what_the_work_said_last() {
        let mut progress = Progress::default();
        progress.seen(activity(Some(("scanning heap (t)", 3, 10))));
        assert!(progress.clone().for_history(true).is_none());
        assert!(progress.clone().for_history(false).unwrap().phase.contains("scanning heap"));
        progress.report(rows(4, Some(4), ProgressBasis::Exact), true);
        let kept = serde_json::to_value(progress.for_history(true).unwrap()).unwrap();
        assert_eq!((&kept["phase"], &kept["done"]), (&"copying".into(), &4.into()));
    }
}
