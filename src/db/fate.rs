//! What became of a transaction on a target: how it is marked before its COMMIT, and what the server says of it afterwards.
//!
//! A transaction's number alone proves nothing. One whose WAL was never flushed is handed out again after a crash, and
//! another server may have had one of the same number: so the mark is written into the WAL, and names the system and
//! its timeline. Knows no job.

use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::{Bool, Nullable, Text};

use crate::db::DbError;

/// Gives the transaction a number, and writes `$1` into the WAL under it. Says the number, the system, and the name of
/// the WAL's current file. Every name is qualified: the session is one on which others chose the `search_path`.
pub const MARK_SQL: &str = "SELECT pg_catalog.pg_current_xact_id()::pg_catalog.text AS xid,
        c.system_identifier::pg_catalog.text AS system,
        pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) AS wal_file,
        pg_catalog.pg_logical_emit_message(true, 'slowlane', $1)::pg_catalog.text AS written
   FROM pg_catalog.pg_control_system() c";

macro_rules! safe_commit {
    ($transaction_alone:literal) => {
        concat!(
            "SELECT pg_catalog.set_config('synchronous_commit', CASE WHEN pg_catalog.current_setting('synchronous_commit')
                 OPERATOR(pg_catalog.=) 'remote_apply' THEN 'remote_apply' ELSE 'on' END, ",
            $transaction_alone,
            ")"
        )
    };
}

/// Makes the COMMIT of this transaction wait for the disk, and for a synchronous standby, whatever its session says.
/// Set even where it is strong enough: a reload of the server's settings would weaken what isn't set here.
pub const SAFE_COMMIT_SQL: &str = safe_commit!("true");
/// As [`SAFE_COMMIT_SQL`], for every transaction of the session.
pub const SAFE_COMMITS_SQL: &str = safe_commit!("false");

/// Which server, and which of its lives: what is promoted or restored begins another timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerLife {
    /// The system identifier of the cluster.
    pub system: String,
    /// The timeline, as the first eight digits of its WAL files' names: the control file may lag behind.
    pub timeline: String,
}

impl ServerLife {
    /// From the system identifier and the name of the WAL's current file.
    pub fn new(system: &str, wal_file: &str) -> ServerLife {
        ServerLife { system: system.to_owned(), timeline: wal_file.chars().take(8).collect() }
    }
}

/// One transaction of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionMark {
    /// Its 64-bit number.
    pub xid: String,
    /// Where it runs.
    pub server: ServerLife,
}

impl TransactionMark {
    /// Of what [`MARK_SQL`] says.
    pub fn new(xid: &str, system: &str, wal_file: &str) -> TransactionMark {
        TransactionMark { xid: xid.to_owned(), server: ServerLife::new(system, wal_file) }
    }
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It took effect.
    Committed,
    /// It didn't, and never will.
    RolledBack,
    /// Its session is still there.
    InProgress,
    /// The server can't tell, for this reason.
    Unknown(String),
}

#[derive(QueryableByName)]
struct Server {
    #[diesel(sql_type = Text)]
    system: String,
    #[diesel(sql_type = Bool)]
    standby: bool,
    #[diesel(sql_type = Nullable<Text>)]
    wal_file: Option<String>,
}

#[derive(QueryableByName)]
struct Status {
    #[diesel(sql_type = Nullable<Text>)]
    status: Option<String>,
}

/// Asks the server, and says which one that was. `synchronous`: what was promoted has every flushed commit of what was
/// before it.
///
/// # Errors
/// When the server can't be asked, or is a standby: that one takes what it doesn't know for what never was.
pub(crate) fn ask(
    connection: &mut PgConnection,
    mark: &TransactionMark,
    synchronous: bool,
) -> Result<(Fate, ServerLife), DbError> {
    let server: Server = diesel::sql_query(
        "SELECT system_identifier::text AS system, pg_catalog.pg_is_in_recovery() AS standby,
                CASE WHEN NOT pg_catalog.pg_is_in_recovery()
                     THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END AS wal_file
           FROM pg_catalog.pg_control_system()",
    )
    .get_result(connection)?;
    if server.standby {
        return Err(DbError::Unavailable("the server is a standby, which can't tell".to_owned()));
    }
    let now = ServerLife::new(&server.system, server.wal_file.as_deref().unwrap_or_default());
    if now.system != mark.server.system {
        return Ok((Fate::Unknown("the target is another database cluster by now".to_owned()), now));
    }
    if now.timeline != mark.server.timeline && !synchronous {
        let why = format!(
            "the target was promoted or restored meanwhile (timeline {} became {}), and may have lost it",
            mark.server.timeline, now.timeline
        );
        return Ok((Fate::Unknown(why), now));
    }
    // A number of our own tells those that were never given out: the server refuses to be asked about them.
    let Status { status } = diesel::sql_query(
        "WITH now AS MATERIALIZED (SELECT pg_catalog.pg_current_xact_id() AS xid)
         SELECT CASE WHEN $1::xid8 >= now.xid THEN 'aborted' ELSE pg_catalog.pg_xact_status($1::xid8) END AS status
           FROM now",
    )
    .bind::<Text, _>(&mark.xid)
    .get_result(connection)?;
    let fate = match status.as_deref() {
        Some("committed") => Fate::Committed,
        Some("aborted") => Fate::RolledBack,
        Some(_) => Fate::InProgress,
        None => Fate::Unknown("it is too long ago for the server to remember".to_owned()),
    };
    Ok((fate, now))
}
