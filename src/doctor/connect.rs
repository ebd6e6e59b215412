//! The way to a session, each step with its time, and what stands in between.

use std::time::Instant;

use crate::doctor::look::{Look, MayGoOn};
use crate::doctor::report::{Explained, Finding, FindingCode, Report, Severity, Step};
use crate::dsn::Dsn;
use crate::pq::{self, ConnectFailure, Patience, Session};
use crate::target::sessions;

/// How long an answer may take.
const ANSWER: std::time::Duration = std::time::Duration::from_secs(10);
/// What each session of the doctor is set to: it changes nothing, and waits for nobody.
const SETUP: &str = "SET default_transaction_read_only = on; SET lock_timeout = 1000; SET statement_timeout = 8000;
    SET search_path = pg_catalog; SET TimeZone = 'UTC'; SET DateStyle = 'ISO'";

/// How a string was understood. One that had to be translated is a finding.
pub fn explain(report: &mut Report, dsn: &Dsn) {
    report.connection = Explained {
        dsn: dsn.masked(),
        written_for: dsn.origin().map(|origin| origin.driver.to_string()),
        changes: dsn.origin().map(|origin| origin.changes.clone()).unwrap_or_default(),
    };
    let translated = dsn.origin().filter(|origin| origin.translated);
    if let Some(origin) = translated {
        let asynchronous = match origin.driver.asynchronous() {
            Some(true) => ", which is asynchronous,",
            _ => "",
        };
        let detail = format!("the string was written for {}{asynchronous} and is translated", origin.driver);
        let fix = format!("nothing has to be done; libpq's own would be {}", dsn.masked());
        report.find(Finding::new(FindingCode::DsnTranslated, Severity::Info, detail, fix));
    }
}

/// The name of the doctor's sessions where nobody gives them another.
pub const NAME: &str = "slowlane doctor";

/// Opens a session by `dsn`, notes each step, and looks for a pooler in between. `None` when there is none that more
/// could be asked of: then a finding says why. Addresses are tried for as long as `may_go_on` says yes.
pub fn connect(report: &mut Report, dsn: &Dsn, name: &str, may_go_on: MayGoOn<'_>) -> Option<Session> {
    let dsn = dsn.clone().for_connecting().with("application_name", name);
    let trace = pq::trace_connect(&dsn, may_go_on);
    report.steps = trace.steps.iter().map(|(name, took)| Step { name, ms: ms(*took) }).collect();
    let mut session = match trace.outcome {
        Ok(session) => session,
        Err(failure) => {
            unreachable(report, &dsn, failure);
            return None;
        }
    };
    session.allow(Patience::Each(ANSWER));
    let version = session.server_version();
    report.fact("server_version", format!("{}.{}", version / 10_000, version % 10_000));
    if (1..sessions::OLDEST_SERVER).contains(&version) {
        let detail = format!("the server is of version {}, and nothing more is asked of it", version / 10_000);
        let fix = ConnectFailure::ServerTooOld.text();
        report.find(Finding::new(FindingCode::ServerTooOld, Severity::Error, detail, fix));
        return None;
    }
    let began = Instant::now();
    if let Err(error) = session.query("SELECT 1", &[]) {
        // A pooler logs in where it leads to with the first statement.
        unreachable(report, &dsn, ConnectFailure::of(&error.message));
        return None;
    }
    report.steps.push(Step { name: "first_statement", ms: ms(began.elapsed()) });
    // Before anything is set: what is set on a session that is shared would be set for others.
    if !pooler(report, &dsn, &mut session) {
        return None;
    }
    if let Err(error) = session.execute_batch(SETUP) {
        let detail = format!("the session could not be set up: {error}");
        report.find(Finding::new(
            FindingCode::Unreachable,
            Severity::Error,
            detail,
            "see the server's log, and run it again",
        ));
        return None;
    }
    encryption(report, &dsn, &mut session);
    Some(session)
}

fn ms(took: std::time::Duration) -> f64 {
    (took.as_secs_f64() * 100_000.0).round() / 100.0
}

fn unreachable(report: &mut Report, dsn: &Dsn, failure: ConnectFailure) {
    report.fact("failure", failure.word());
    let code = if failure == ConnectFailure::Pooler { FindingCode::Pooler } else { FindingCode::Unreachable };
    report.find(Finding::new(code, Severity::Error, failure.explain(dsn), failure.text()));
}

/// The session is one that stays: more may be asked of it.
fn pooler(report: &mut Report, dsn: &Dsn, session: &mut Session) -> bool {
    match sessions::in_between(dsn, session) {
        Ok(sessions::InBetween::Nothing) => report.fact("pooler", "none"),
        Ok(sessions::InBetween::KeepsSessions) => {
            report.fact("pooler", "session");
            let detail =
                "a pooler is in between that keeps sessions: each connection of slowlane takes one of its slots";
            let fix = "connect to the server itself, or give the pooler as many slots as slowlane opens connections";
            report.find(Finding::new(FindingCode::PoolerSessions, Severity::Info, detail, fix));
        }
        Ok(sessions::InBetween::ChangesSessions) => {
            report.fact("pooler", "transaction");
            let failure = ConnectFailure::Pooler;
            let detail = "a pooler is in between that gives each transaction another session";
            report.find(Finding::new(FindingCode::Pooler, Severity::Error, detail, failure.text()));
            return false;
        }
        Err(error) => {
            let lost = session.is_broken();
            let (code, severity) = match lost {
                true => (FindingCode::Unreachable, Severity::Error),
                false => (FindingCode::NotLookedAt, Severity::Warning),
            };
            let detail = format!("could not look for a pooler in between, and nothing more is looked at: {error}");
            let fix = match lost {
                true => {
                    "see the log of the server, or of what is in between, for why it ended the session, and run it again"
                }
                false => {
                    "run it again; a pooler that has no slot left holds a second session up: give it more, or connect to the server itself"
                }
            };
            report.find(Finding::new(code, severity, detail, fix));
            return false;
        }
    }
    true
}

/// Where the server declined TLS, asking for it was a part of connecting.
fn leave_tls_out(steps: &mut Vec<Step>) {
    let asked: f64 = steps.iter().filter(|step| step.name == "tls").map(|step| step.ms).sum();
    steps.retain(|step| step.name != "tls");
    if let Some(connect) = steps.iter_mut().find(|step| step.name == "connect") {
        connect.ms = ((connect.ms + asked) * 100.0).round() / 100.0;
    }
}

fn encryption(report: &mut Report, dsn: &Dsn, session: &mut Session) {
    let mut look = Look::new(session, report, &|| true);
    let sql = "SELECT s.ssl, s.version, s.cipher, a.client_addr IS NOT NULL,
                      coalesce(a.client_addr << '127.0.0.0/8' OR a.client_addr = '::1' OR a.client_addr = inet_server_addr(), true)
                 FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid) WHERE s.pid = pg_backend_pid()";
    let Some(answer) = look.ask("the encryption of the connection", sql, &[]) else { return };
    let encrypted = answer.is(0, 0);
    look.fact("tls", if encrypted { answer.text(0, 1) } else { "off" });
    if !encrypted {
        leave_tls_out(&mut look.report.steps);
    }
    let local = !answer.is(0, 3) || answer.is(0, 4);
    if !encrypted && !local {
        let detail =
            "the connection crosses a network and isn't encrypted: passwords of callers' data can be read on the way";
        let host = dsn.get("host").unwrap_or("the server");
        let fix = format!("say sslmode=verify-full with sslrootcert for {host}, or sslmode=require at least");
        look.find(FindingCode::TlsOff, Severity::Warning, detail, fix);
    }
}
