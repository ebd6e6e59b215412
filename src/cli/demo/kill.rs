//! One kill of one server: what it had accepted when it was told to end, and what becomes of that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Text};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::cli::Failure;
use crate::cli::demo::child::{Dialect, Observed};
use crate::cli::demo::measure::{Contestant, Environment, milliseconds};
use crate::cli::demo::statement::Statement;
use crate::cli::demo::triggers::{Prepared, RECOVERY_TIMEOUT, database_path};
use crate::db::pool::{ANSWER_SLACK, Manager};

/// When a server is killed, after the first request was sent.
const KILL_AFTER: Duration = Duration::from_secs(1);
/// When the sessions are counted that a killed server left at work: a server process notices a closed connection
/// when it has something to say to it.
const LOOK_AFTER_KILL: Duration = Duration::from_millis(500);
/// How long a server that was asked to stop may take before it is killed after all.
const STOP_TIMEOUT: Duration = Duration::from_secs(150);
/// How long a server that remembers nothing is listened to for signs of the opposite, after its last session ended.
const SILENCE: Duration = Duration::from_secs(3);
/// Between two looks at the sessions.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The longest look at them.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// What a kill of a server loses.
#[derive(Clone, Debug, Serialize)]
pub struct Kill {
    /// The server's name.
    pub server: String,
    /// The heavy statement.
    pub work: Statement,
    /// `SIGKILL` or `SIGTERM`.
    pub signal: &'static str,
    /// Requests that were sent at once.
    pub sent: usize,
    /// Those that had been answered with success when the server ended.
    pub accepted: usize,
    /// Those of them that were done before it ended.
    pub done_before: usize,
    /// Those of them that were done after it was started again.
    pub done_after: usize,
    /// Those of them that nobody did or will do.
    pub lost: usize,
    /// Of all, how many were done more than once.
    pub repeated: usize,
    /// From the signal to the end of the process, in milliseconds.
    pub stopped_after_ms: f64,
    /// It went on, and had to be killed.
    pub had_to_be_killed: bool,
    /// Sessions that were still at work half a second after its end.
    pub sessions_left: i64,
}

/// Starts a server, gives it so much work at once, and sends it a signal one second later; then starts it again, and
/// counts what is done in the end.
///
/// # Errors
/// When it doesn't start, or the sessions can't be counted.
pub fn kill(
    environment: &Environment,
    contestant: &Contestant,
    statement: Statement,
    at_once: usize,
    signal: Signal,
) -> Result<Kill, Failure> {
    let mut observer = observer(environment)?;
    let server = contestant.start(environment, statement)?;
    // As for a run: what an earlier one left isn't counted here.
    database_path(&server, contestant.dialect, &environment.queue)?;
    let prepared = Prepared::new(&server, contestant.dialect, statement, &environment.queue, at_once)?;
    let triggers = prepared.send(0);
    std::thread::sleep(KILL_AFTER.saturating_sub(triggers.began.elapsed()));
    let stopped = server.signal_and_wait(signal, STOP_TIMEOUT)?;
    let had_to_be_killed = stopped.is_none();
    let stopped_after_ms = milliseconds(stopped.unwrap_or(STOP_TIMEOUT));
    if had_to_be_killed {
        server.signal_and_wait(Signal::SIGKILL, STOP_TIMEOUT)?;
    }
    let ended = Instant::now();
    server.wait_until(SILENCE, Observed::has_ended);
    let answers = triggers.answers()?;
    let accepted: Vec<&String> = answers.iter().filter_map(|answer| answer.accepted.as_ref()).collect();
    let mut done = server.observed().done.clone();
    let done_before = accepted.iter().filter(|id| done.contains_key(**id)).count();
    std::thread::sleep(LOOK_AFTER_KILL.saturating_sub(ended.elapsed()));
    let sessions_left = sessions(&mut observer, statement)?;
    drop(server);

    let next = contestant.start(environment, statement)?;
    let is_done = |more: &BTreeMap<String, u32>, id: &String| done.contains_key(id) || more.contains_key(id);
    let patience = match contestant.dialect {
        // A server that keeps no record can only be waited for until nothing of its work runs any more.
        Dialect::Events => {
            let until = Instant::now() + RECOVERY_TIMEOUT;
            while sessions(&mut observer, statement)? > 0 && Instant::now() < until {
                std::thread::sleep(LOOK_EVERY);
            }
            SILENCE
        }
        Dialect::SlowlaneLog => RECOVERY_TIMEOUT,
    };
    next.wait_until(patience, |observed| observed.has_ended() || accepted.iter().all(|id| is_done(&observed.done, id)));
    for (id, times) in &next.observed().done {
        *done.entry(id.clone()).or_default() += times;
    }
    let done_at_last = accepted.iter().filter(|id| done.contains_key(**id)).count();
    Ok(Kill {
        server: contestant.name.clone(),
        work: statement,
        signal: signal.as_str(),
        sent: at_once,
        accepted: accepted.len(),
        done_before,
        done_after: done_at_last - done_before,
        lost: accepted.len() - done_at_last,
        repeated: done.values().filter(|times| **times > 1).count(),
        stopped_after_ms,
        had_to_be_killed,
        sessions_left,
    })
}

/// How many sessions run this work now.
fn sessions(connection: &mut PgConnection, statement: Statement) -> Result<i64, Failure> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let sql = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state = 'active' AND query = $1";
    let count: Count = diesel::sql_query(sql).bind::<Text, _>(statement.sql()).get_result(connection)?;
    Ok(count.count)
}

fn observer(environment: &Environment) -> Result<PgConnection, Failure> {
    let setup = format!("SET statement_timeout = {}", LOOK_TIMEOUT.as_millis());
    let manager = Manager::work(&environment.databases.demo, &setup);
    Ok(manager.answering_within(LOOK_TIMEOUT + ANSWER_SLACK).open()?)
}
