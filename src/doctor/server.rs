//! What holds of every server: clocks, limits, durability, and transactions that have been open for long.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::doctor::look::{Look, span};
use crate::doctor::report::{Finding, FindingCode, Severity, Subject};
use crate::pq::quote::{identifier, literal};
use crate::queue::model::MAX_TIMEOUT_MS;

/// A difference of clocks that is worth a word, and one that breaks things.
const CLOCK: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3_600));
/// A transaction that is worth a word, and one that is too old, in seconds.
const OPEN: (i64, i64) = (600, 3_600);
/// What a standby holds back is worth a word from so many transactions on.
const FEEDBACK_AGE: u32 = 200_000;
/// Transactions, slots and the like that are named.
const NAMED: usize = 5;
/// Below this, checkpoints come while a result is stored: 512 MB, in MB.
const MAX_WAL_SIZE_MB: i64 = 512;
/// Idle sessions and transactions live at least so long, in milliseconds.
const IDLE_MS: i64 = 60_000;

/// Connections that one process may open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Connections {
    /// To the database that is looked at.
    pub here: u32,
    /// To other databases of the same server.
    pub beside: u32,
}

/// Looks at the server's settings, and at what so many processes need of it.
pub(super) fn look(look: &mut Look<'_>, connections: Connections, processes: usize) {
    let queue = look.report.subject == Subject::Queue;
    let sees_all = see_others(look);
    clock(look);
    durability(look, queue);
    slots(look, connections, processes);
    timeouts(look, queue);
    vacuum(look, queue);
    oldest_transactions(look, queue, sees_all);
    standbys(look, queue);
    prepared_transactions(look);
    replication_slots(look);
    if look.session.execute_batch("RESET ROLE").is_err() {
        log::debug!("the doctor's session was lost");
    }
}

/// Takes the role on that sees the sessions of others, where the login is a member of it: with NOINHERIT it has to.
/// `false` when it can't see them at all.
fn see_others(look: &mut Look<'_>) -> bool {
    // From 16 on there are members that may not become it.
    let becomes = if look.session.server_version() >= 160_000 { "SET" } else { "MEMBER" };
    let sql =
        format!("SELECT pg_has_role('pg_read_all_stats', 'USAGE'), pg_has_role('pg_read_all_stats', '{becomes}')");
    let Some(answer) = look.ask("who may see sessions", &sql, &[]) else { return false };
    answer.is(0, 0) || answer.is(0, 1) && look.session.execute_batch("SET ROLE pg_read_all_stats").is_ok()
}

fn clock(look: &mut Look<'_>) {
    let before = Utc::now();
    let sql = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let Some(answer) = look.ask("the server's clock", sql, &[]) else { return };
    let after = Utc::now();
    let Ok(server) = answer.text(0, 0).parse::<DateTime<Utc>>() else { return };
    // In between, as far as can be told; half of the way there and back is what it may be off.
    let here = before + (after - before) / 2;
    let difference = (server - here).abs().to_std().unwrap_or_default().saturating_sub(Duration::from_millis(1));
    look.fact("clock_difference_ms", (server - here).num_milliseconds());
    if difference < CLOCK.0 {
        return;
    }
    let severity = if difference >= CLOCK.1 { Severity::Error } else { Severity::Warning };
    let which = if server > here { "ahead of" } else { "behind" };
    let detail = format!(
        "the server's clock is {} {which} this machine's: ids carry the time of the process that made them, and \
         `run_at` is compared with the server's; from a day on jobs are refused",
        humantime::format_duration(Duration::from_secs(difference.as_secs()))
    );
    look.find(FindingCode::ClockDifference, severity, detail, "set both clocks by NTP");
}

/// Notes a setting as this session has it.
pub(super) fn setting(look: &mut Look<'_>, name: &str) -> Option<String> {
    let answer = look.ask(&format!("the setting {name}"), "SELECT current_setting($1, true)", &[Some(name)])?;
    let value = answer.text(0, 0).to_owned();
    look.fact(name, value.clone());
    Some(value)
}

fn durability(look: &mut Look<'_>, queue: bool) {
    for name in ["fsync", "full_page_writes"] {
        if setting(look, name).as_deref() == Some("off") {
            let severity = if queue { Severity::Error } else { Severity::Warning };
            let detail =
                format!("{name} is off: a crash of the server's machine may damage or lose what was committed");
            let finding = Finding::new(FindingCode::UnsafeSettings, severity, detail, "turn it on");
            look.report.find(finding.sql(format!("ALTER SYSTEM SET {name} = on")).sql("SELECT pg_reload_conf()"));
        }
    }
    // Of the session before anything was set, which is what the role and the database say.
    let sql = "SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'";
    let commit = look.ask("synchronous_commit", sql, &[]).map(|answer| answer.text(0, 0).to_owned());
    if let Some(commit) = commit {
        look.fact("synchronous_commit", commit.clone());
        if commit == "off" {
            let detail = "synchronous_commit is off by default here: slowlane raises it for its own commits, and what applications \
                          enqueue by SQL is as durable as their transactions";
            let fix = "nothing for slowlane; turn it on where jobs are enqueued by SQL that a crash must not lose";
            look.find(FindingCode::SynchronousCommit, Severity::Info, detail, fix);
        }
    }
    for name in ["wal_level", "synchronous_standby_names", "wal_compression", "max_connections"] {
        setting(look, name);
    }
    let sql =
        "SELECT setting::bigint * CASE unit WHEN 'MB' THEN 1 ELSE 16 END FROM pg_settings WHERE name = 'max_wal_size'";
    let size = look.ask("max_wal_size", sql, &[]).and_then(|answer| answer.number(0, 0));
    if let Some(size) = size {
        look.fact("max_wal_size_mb", size);
        if queue && size < MAX_WAL_SIZE_MB {
            let detail = format!(
                "max_wal_size is {size} MB: each result and upload is written to the WAL once, so a large one forces checkpoints"
            );
            let finding = Finding::new(FindingCode::MaxWalSize, Severity::Warning, detail, "raise it to 1 GB or more");
            look.report.find(finding.sql("ALTER SYSTEM SET max_wal_size = '2GB'").sql("SELECT pg_reload_conf()"));
        }
    }
}

fn slots(look: &mut Look<'_>, connections: Connections, processes: usize) {
    let sql = "SELECT current_setting('max_connections')::int,
            current_setting('superuser_reserved_connections')::int + coalesce(current_setting('reserved_connections', true)::int, 0),
            (SELECT count(*) FROM pg_stat_activity
              WHERE (backend_type = 'client backend' OR backend_type IS NULL AND usename IS NOT NULL) AND application_name !~ '^slowlane( |:|$)'),
            rolconnlimit, rolname, datconnlimit, datname
       FROM pg_roles, pg_database WHERE rolname = session_user AND datname = current_database()";
    let Some(answer) = look.ask("connection slots", sql, &[]) else { return };
    let number = |column| answer.number(0, column).unwrap_or(0);
    let (most, reserved, others) = (number(0), number(1), number(2));
    let times = i64::try_from(processes.max(1)).unwrap_or(i64::MAX);
    let here = (i64::from(connections.here), i64::from(connections.here).saturating_mul(times));
    let one = i64::from(connections.here.saturating_add(connections.beside));
    let all = one.saturating_mul(times);
    look.fact("connections_of_one_process", here.0);
    look.fact("connections_of_all_processes", here.1);
    look.fact("connections_of_all_processes_on_the_server", all);
    look.fact("connections_of_others", others);
    let free = most - reserved;
    let fix = "raise max_connections (which needs a restart), lower workers, api_connections or result_connections, or run fewer processes";
    if one > free {
        let detail = format!(
            "one process may open {one} connections to this server, and it has {free} slots for all ({most}, {reserved} of them reserved)"
        );
        look.find(FindingCode::ConnectionsShort, Severity::Error, detail, fix);
    } else if all + others > free {
        let detail = format!(
            "{} processes may open {all} connections to this server beside {others} of others, and it has {free} slots ({most}, {reserved} of them reserved)",
            processes.max(1)
        );
        look.find(FindingCode::ConnectionsShort, Severity::Warning, detail, fix);
    }
    let limits = [("ROLE", "the role", 3, 4), ("DATABASE", "the database", 5, 6)];
    for (object, what, limit, name) in limits {
        let (limit, name) = (number(limit), answer.text(0, name).to_owned());
        let (one, all) = here;
        if limit >= 0 && limit < all {
            let severity = if limit < one { Severity::Error } else { Severity::Warning };
            let detail = format!(
                "{what} {name} may have {limit} connections, and slowlane may open {all} ({one} for each process)"
            );
            let fix = "raise the limit";
            let finding = Finding::new(FindingCode::ConnectionLimit, severity, detail, fix);
            look.report.find(finding.sql(format!("ALTER {object} {} CONNECTION LIMIT -1", identifier(&name))));
        }
    }
}

fn timeouts(look: &mut Look<'_>, queue: bool) {
    // As the role and the database have them, and not as this session was set.
    let sql = "SELECT name, reset_val::bigint, session_user FROM pg_settings
                WHERE name IN ('idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout',
                               'statement_timeout', 'lock_timeout') ORDER BY name";
    let Some(answer) = look.ask("timeouts of idle sessions", sql, &[]) else { return };
    for row in 0..answer.len() {
        let (name, value, role) =
            (answer.text(row, 0).to_owned(), answer.number(row, 1).unwrap_or(0), answer.text(row, 2).to_owned());
        look.fact(&name, value);
        // The queue's sessions have limits of their own. On a target the smaller ones of statements and locks count, as
        // whoever set them wants it: the error of a job that ends so says it.
        let replaced = ["statement_timeout", "lock_timeout"].contains(&name.as_str())
            || (queue && name == "idle_in_transaction_session_timeout");
        let (enough, severity, cost) = match (name.as_str(), queue) {
            ("transaction_timeout", true) => (IDLE_MS, Severity::Error, "it ends transactions of the queue"),
            ("transaction_timeout", false) => (
                MAX_TIMEOUT_MS,
                Severity::Error,
                "it ends the transactions of jobs that run longer, whatever their timeout_ms",
            ),
            ("idle_in_transaction_session_timeout", _) => {
                let cost = "it ends a job's session while its worker waits for the queue before a COMMIT";
                (IDLE_MS, Severity::Warning, cost)
            }
            _ => {
                (IDLE_MS, Severity::Warning, "it ends sessions that lie in a pool, which are opened again for each job")
            }
        };
        if value == 0 || replaced || value >= enough {
            continue;
        }
        let detail = format!("{name} is {value} ms for this role: {cost}");
        let finding = Finding::new(FindingCode::IdleTimeout, severity, detail, "set it to 0 for this role");
        look.report.find(finding.sql(format!("ALTER ROLE {} SET {name} = 0", identifier(&role))));
    }
}

fn vacuum(look: &mut Look<'_>, queue: bool) {
    if setting(look, "autovacuum").as_deref() == Some("off") {
        let severity = if queue { Severity::Error } else { Severity::Warning };
        let detail = "autovacuum is off: dead rows are never taken away, and tables grow without end";
        let finding = Finding::new(FindingCode::AutovacuumOff, severity, detail, "turn it on");
        look.report.find(finding.sql("ALTER SYSTEM SET autovacuum = on").sql("SELECT pg_reload_conf()"));
    }
    setting(look, "autovacuum_naptime");
}

/// What a transaction of another database costs.
const ELSEWHERE: &str = "it keeps dead rows of its own database, and of the catalogs that all databases share";

/// What keeps vacuum from taking dead rows away.
fn cost(queue: bool) -> &'static str {
    match queue {
        true => {
            "vacuum can't take away what it may still see: the queue's tables and indexes grow, and lists and counts slow down"
        }
        false => "vacuum can't take away what it may still see: tables that jobs change grow",
    }
}

fn oldest_transactions(look: &mut Look<'_>, queue: bool, sees_all: bool) {
    let sql = "SELECT a.pid, coalesce(a.usename, ''), coalesce(a.application_name, ''), coalesce(a.state, ''), coalesce(a.datname, ''),
                      extract(epoch FROM clock_timestamp() - a.xact_start)::bigint,
                      greatest(age(a.backend_xmin), age(a.backend_xid)), coalesce(a.client_addr::text, 'this machine'),
                      coalesce(a.datname = current_database(), true) OR a.backend_xid IS NOT NULL
                 FROM pg_stat_activity a
                WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
                  AND a.xact_start IS NOT NULL AND a.backend_type = 'client backend'
                ORDER BY a.xact_start LIMIT 20";
    let Some(answer) = look.ask("open transactions", sql, &[]) else { return };
    look.fact("oldest_transaction_s", answer.number(0, 5).unwrap_or(0));
    for row in (0..answer.len()).take(NAMED) {
        let seconds = answer.number(row, 5).unwrap_or(0);
        if seconds < OPEN.0 {
            continue;
        }
        let (pid, user, name, state) =
            (answer.text(row, 0), answer.text(row, 1), answer.text(row, 2), answer.text(row, 3));
        // A job may run for hours, as its caller wanted: what that costs is worth knowing.
        let job = name.strip_prefix("slowlane:").and_then(|rest| rest.split(':').next());
        // What only reads in another database keeps no row of this one's. One that has changed something is in every
        // snapshot.
        let here = answer.is(row, 8);
        let severity = match (job, queue) {
            (Some(_), false) => Severity::Info,
            _ if !here => Severity::Info,
            (None, true) if seconds >= OPEN.1 => Severity::Error,
            _ => Severity::Warning,
        };
        let detail = format!(
            "process {pid} of role {user} ({}, {state}, from {}, database {}) has had a transaction open for {}, {} transactions long: {}",
            if name.is_empty() { "no application_name" } else { name },
            answer.text(row, 7),
            answer.text(row, 4),
            span(seconds),
            answer.text(row, 6),
            if here { cost(queue) } else { ELSEWHERE }
        );
        let finding = match job {
            Some(job) => {
                let fix = format!(
                    "it is a job: let it end, or POST /v1/jobs/{job}/cancel; a backfill does the same in short transactions"
                );
                Finding::new(FindingCode::OldTransaction, severity, detail, fix)
            }
            None => {
                let fix = "have its application end it, or end the session; idle_in_transaction_session_timeout keeps it from happening again";
                let finding = Finding::new(FindingCode::OldTransaction, severity, detail, fix);
                finding.sql(format!("SELECT pg_terminate_backend({pid})"))
            }
        };
        look.report.find(finding);
    }
    let login = look.ask("the role's name", "SELECT session_user", &[]);
    if let Some(login) = login.filter(|_| !sees_all) {
        let detail = "this role sees the transactions of its own sessions only: another's old one isn't found, and progress doesn't name \
                      who blocks a job";
        let finding =
            Finding::new(FindingCode::ProgressLimited, Severity::Info, detail, "let it read the statistics of others");
        look.report.find(finding.sql(format!("GRANT pg_read_all_stats TO {}", identifier(login.text(0, 0)))));
    }
}

/// Standbys with `hot_standby_feedback` hold rows back for their own queries. Nothing here says for how long, but for
/// how many transactions.
fn standbys(look: &mut Look<'_>, queue: bool) {
    let sql = "SELECT r.application_name, coalesce(r.client_addr::text, 'this machine'), age(coalesce(s.xmin, r.backend_xmin)), s.slot_name
                 FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
                WHERE age(coalesce(s.xmin, r.backend_xmin)) >= $1::int ORDER BY 3 DESC LIMIT 20";
    let Some(answer) = look.ask("standbys", sql, &[Some(&FEEDBACK_AGE.to_string())]) else { return };
    for row in (0..answer.len()).take(NAMED) {
        let by = match answer.text(row, 3) {
            "" => String::new(),
            slot => format!(", by the slot {slot}"),
        };
        let detail = format!(
            "the standby {} (from {}{by}) holds back what was deleted in the last {} transactions, for a query of its own: {}",
            answer.text(row, 0),
            answer.text(row, 1),
            answer.text(row, 2),
            cost(queue)
        );
        let fix = "end the long query or the idle transaction there, or turn hot_standby_feedback off on it";
        look.find(FindingCode::OldTransaction, Severity::Warning, detail, fix);
    }
}

fn prepared_transactions(look: &mut Look<'_>) {
    let sql = "SELECT gid, owner, database, extract(epoch FROM clock_timestamp() - prepared)::bigint, database = current_database()
                 FROM pg_prepared_xacts ORDER BY prepared LIMIT 20";
    let Some(answer) = look.ask("prepared transactions", sql, &[]) else { return };
    look.fact("prepared_transactions", i64::try_from(answer.len()).unwrap_or(0));
    for row in (0..answer.len()).take(NAMED) {
        let seconds = answer.number(row, 3).unwrap_or(0);
        if seconds < OPEN.0 {
            continue;
        }
        let gid = answer.text(row, 0);
        let detail = format!(
            "the transaction {gid} of role {} in database {} was prepared {} ago, and waits for its end: it holds its locks, through restarts \
             too, and vacuum can't take away what it may still see",
            answer.text(row, 1),
            answer.text(row, 2),
            span(seconds)
        );
        let fix = "ask its transaction manager what it is to be; rolled back in its database by its role";
        let severity = if answer.is(row, 4) { Severity::Error } else { Severity::Warning };
        let finding = Finding::new(FindingCode::PreparedTransaction, severity, detail, fix);
        look.report.find(finding.sql(format!("ROLLBACK PREPARED {}", literal(gid))));
    }
}

fn replication_slots(look: &mut Look<'_>) {
    // Slots that are kept in step with a primary's (Postgres 17) are never active, and stay.
    let sql = "SELECT slot_name, slot_type, pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                          ELSE pg_current_wal_lsn() END, restart_lsn)::bigint, xmin IS NOT NULL OR catalog_xmin IS NOT NULL,
                      wal_status = 'lost'
                 FROM pg_replication_slots s
                WHERE NOT active AND NOT coalesce((to_jsonb(s)->>'synced')::boolean, false) ORDER BY 3 DESC NULLS LAST LIMIT 20";
    let Some(answer) = look.ask("replication slots", sql, &[]) else { return };
    for row in (0..answer.len()).take(NAMED) {
        let name = answer.text(row, 0);
        let kept = answer.number(row, 2).unwrap_or(0);
        let rows = if answer.is(row, 3) { ", and dead rows that vacuum can't take away" } else { "" };
        let costs = match answer.is(row, 4) {
            true => "it has lost the WAL that its reader would need, and is good for nothing any more".to_owned(),
            false => format!("it keeps {} of WAL on the disk{rows}", crate::doctor::look::bytes(kept)),
        };
        let detail = format!("nobody reads from the {} replication slot {name}: {costs}", answer.text(row, 1));
        let fix = "bring its reader back, or drop the slot";
        let finding = Finding::new(FindingCode::ReplicationSlot, Severity::Warning, detail, fix);
        look.report.find(finding.sql(format!("SELECT pg_drop_replication_slot({})", literal(name))));
    }
}
