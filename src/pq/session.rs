//! One session: connect, ask, prepare, listen, cancel.

use std::ffi::CString;
use std::time::{Duration, Instant};

use pq_sys::{ExecStatusType, PGTransactionStatusType};

use crate::dsn::Dsn;
use crate::pq::copy::CopyIn;
use crate::pq::error::{Notice, PqError, PqErrorKind};
use crate::pq::failure::ConnectFailure;
use crate::pq::line::{Line, Patience};
use crate::pq::raw::{self, CancelConn, Conn, NoticeSink, PgResult};
use crate::pq::resolve::with_addresses;
use crate::pq::stream::{RowStream, copy_error};

/// How long a server that refused a connection has to say so again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Where a session is in a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// In none.
    Idle,
    /// A statement is under way.
    Active,
    /// In one that can go on.
    InTransaction,
    /// In one that can only be rolled back.
    InError,
    /// The connection is bad.
    Unknown,
}

/// A column as the server describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name, not necessarily unique.
    pub name: String,
    /// Its type.
    pub type_oid: u32,
    /// Its type's modifier, -1 for none.
    pub type_modifier: i32,
}

/// A prepared statement as the server describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The types of its parameters.
    pub params: Vec<u32>,
    /// Its columns; none when it returns no rows.
    pub columns: Vec<Column>,
}

/// A notification that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// The channel.
    pub channel: String,
    /// What was sent.
    pub payload: String,
    /// The server process that sent it.
    pub pid: i32,
}

/// A small result, all in memory.
pub struct Rows(PgResult);

impl Rows {
    /// How many rows.
    pub fn len(&self) -> usize {
        self.0.rows()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A value as text; `None` for NULL, or where there is none.
    pub fn get(&self, row: usize, column: usize) -> Option<&str> {
        self.0.value(row, column).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }
}

/// A session with a server. Closed when it is dropped.
pub struct Session {
    pub(super) conn: Conn,
}

impl Session {
    /// Connects, for at most the string's `connect_timeout` for each address, 5 s where it says nothing. Answers are
    /// waited for without end, until [`Session::allow`] says otherwise.
    ///
    /// # Errors
    /// [`PqErrorKind::Connect`] with a text that names host, database and user, and never the password.
    pub fn connect(dsn: &Dsn) -> Result<Session, PqError> {
        let refused = |failure: ConnectFailure| PqError::refused(failure, dsn);
        let reachable = with_addresses(&dsn.clone().with_default("connect_timeout", "5")).map_err(refused)?;
        let conninfo = c_string(reachable.conninfo().expose())?;
        let line = Line::new(dsn.get("application_name").unwrap_or("slowlane"), Patience::Endless);
        let conn = Conn::connect(&conninfo, line).map_err(|raw| refused(connect_failure(&reachable, &raw)))?;
        Ok(Session { conn })
    }

    /// From now on answers are waited for so long. A session that gets none in time is lost.
    pub fn allow(&self, patience: Patience) {
        self.conn.line().allow(patience);
    }

    /// The server process' id.
    pub fn backend_pid(&self) -> i32 {
        self.conn.backend_pid()
    }

    /// Such as 150018.
    pub fn server_version(&self) -> i32 {
        self.conn.server_version()
    }

    /// The server is a standby, as it reports without being asked.
    pub fn is_on_standby(&self) -> bool {
        self.conn.parameter(c"in_hot_standby").as_deref() == Some("on")
    }

    /// Where it is in a transaction.
    pub fn transaction_status(&self) -> TransactionStatus {
        match self.conn.transaction_status() {
            PGTransactionStatusType::PQTRANS_IDLE => TransactionStatus::Idle,
            PGTransactionStatusType::PQTRANS_ACTIVE => TransactionStatus::Active,
            PGTransactionStatusType::PQTRANS_INTRANS => TransactionStatus::InTransaction,
            PGTransactionStatusType::PQTRANS_INERROR => TransactionStatus::InError,
            PGTransactionStatusType::PQTRANS_UNKNOWN => TransactionStatus::Unknown,
        }
    }

    /// It can be used for something else: no transaction, no statement, a good connection.
    pub fn is_idle(&self) -> bool {
        !self.is_broken() && self.transaction_status() == TransactionStatus::Idle
    }

    /// When the server said last that it cancelled a statement. Asked for once.
    pub fn take_cancelled(&self) -> Option<Instant> {
        self.conn.take_cancelled()
    }

    /// The connection is bad.
    pub fn is_broken(&self) -> bool {
        !self.conn.is_ok()
    }

    /// Runs statements of our own that return nothing worth having.
    ///
    /// # Errors
    /// The first failure; what follows it in `sql` isn't run.
    pub fn execute_batch(&mut self, sql: &str) -> Result<(), PqError> {
        self.conn.send_query(&c_string(sql)?)?;
        self.last_result().map(drop)
    }

    /// Runs one statement of our own. Says what the server calls it, such as `COMMIT`.
    ///
    /// # Errors
    /// When the server refuses it or the connection is lost.
    pub fn command(&mut self, sql: &str) -> Result<String, PqError> {
        self.conn.send_query(&c_string(sql)?)?;
        self.last_result().map(|result| result.command_tag())
    }

    /// Has the server answer, and nothing else: a line that is quiet by nature is found to be dead by this alone.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn ping(&mut self) -> Result<(), PqError> {
        self.execute_batch("")
    }

    /// Runs one statement and keeps its rows in memory: for small results. Replaces the unnamed statement.
    ///
    /// # Errors
    /// When the server refuses it or the connection is lost.
    pub fn query(&mut self, sql: &str, params: &[Option<&str>]) -> Result<Rows, PqError> {
        let params = params.iter().map(|value| value.map(c_string).transpose()).collect::<Result<Vec<_>, _>>()?;
        self.conn.send_query_params(&c_string(sql)?, &params)?;
        self.last_result().map(Rows)
    }

    /// Parses `sql`, exactly as it is, as the one unnamed statement, and has the server describe it. `types` are
    /// those of its first parameters; 0, or none, leaves the choice to the server.
    ///
    /// # Errors
    /// The server's, with the position in `sql`.
    pub fn prepare(&mut self, sql: &str, types: &[u32]) -> Result<Statement, PqError> {
        self.conn.send_prepare(&c_string(sql)?, types)?;
        self.last_result()?;
        self.conn.send_describe()?;
        let described = self.last_result()?;
        let columns = (0..described.columns())
            .filter_map(|n| described.column(n))
            .map(|(name, type_oid, type_modifier)| Column { name, type_oid, type_modifier })
            .collect();
        Ok(Statement { params: described.parameter_types(), columns })
    }

    /// Runs the unnamed statement, and gives its rows as they come. Until the stream has ended, or after it was
    /// dropped early, the session isn't idle.
    ///
    /// # Errors
    /// When it can't be sent. What the server says comes with the rows.
    pub fn stream(&mut self, params: &[Option<CString>]) -> Result<RowStream<'_>, PqError> {
        self.conn.send_execute(params, RowStream::ROWS_PER_CHUNK)?;
        Ok(RowStream::new(&mut self.conn))
    }

    /// Begins a `COPY … FROM STDIN` of our own. Until [`CopyIn::finish`] has come back, the session isn't idle.
    ///
    /// # Errors
    /// When the server refuses it, or it is no such statement.
    pub fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>, PqError> {
        self.conn.send_query(&c_string(sql)?)?;
        let Some(result) = self.conn.next_result() else { return Err(self.conn.lost()) };
        match result.status() {
            ExecStatusType::PGRES_COPY_IN => Ok(CopyIn::new(&mut self.conn)),
            ExecStatusType::PGRES_COPY_OUT | ExecStatusType::PGRES_COPY_BOTH => Err(copy_error()),
            status => {
                let good = matches!(status, ExecStatusType::PGRES_COMMAND_OK | ExecStatusType::PGRES_TUPLES_OK);
                let error = self.conn.error_of(&result);
                while self.conn.next_result().is_some() {}
                Err(if good { PqError::of(PqErrorKind::Usage, "the statement takes no data") } else { error })
            }
        }
    }

    /// What cancels this session's statement, from any thread, as often as needed.
    ///
    /// # Errors
    /// When memory is out.
    pub fn canceller(&self) -> Result<Canceller, PqError> {
        self.conn.canceller().map(Canceller)
    }

    /// Waits for a notification on a channel that the session listens to. `None` when `timeout` is over.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn wait_notification(&mut self, timeout: Duration) -> Result<Option<Notification>, PqError> {
        let until = Instant::now() + timeout;
        loop {
            if let Some((channel, payload, pid)) = self.conn.notification() {
                return Ok(Some(Notification { channel, payload, pid }));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.conn.wait_readable(left)? {
                return Ok(None);
            }
            self.conn.consume_input()?;
        }
    }

    /// Hands every notice to `sink` as it arrives, instead of keeping it; `None` keeps them again. Called on the thread
    /// that reads from the session: it must not block.
    pub fn on_notice(&mut self, sink: Option<NoticeSink>) {
        self.conn.on_notice(sink);
    }

    /// The notices since the last call, the first thousand of them.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        self.conn.take_notices()
    }

    /// Reads every result of what was sent, and gives the last one or the first error.
    fn last_result(&mut self) -> Result<PgResult, PqError> {
        let mut last = Err(self.conn.lost());
        let mut failed = None;
        while let Some(result) = self.conn.next_result() {
            match result.status() {
                ExecStatusType::PGRES_COPY_IN | ExecStatusType::PGRES_COPY_OUT | ExecStatusType::PGRES_COPY_BOTH => {
                    return Err(copy_error());
                }
                ExecStatusType::PGRES_COMMAND_OK
                | ExecStatusType::PGRES_TUPLES_OK
                | ExecStatusType::PGRES_EMPTY_QUERY => last = Ok(result),
                _ => {
                    failed.get_or_insert(self.conn.error_of(&result));
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None => last,
        }
    }
}

/// The class of a failed connect by this string, from libpq's text. Where the server says it in a language that isn't
/// understood, it is asked once more, for its SQLSTATE.
pub fn connect_failure(dsn: &Dsn, raw: &str) -> ConnectFailure {
    match ConnectFailure::of(raw) {
        ConnectFailure::Other => {
            let state = CString::new(dsn.conninfo().expose()).ok().and_then(|text| raw::refusal(&text, ASK_AGAIN));
            state.map_or(ConnectFailure::Other, |state| ConnectFailure::of_sqlstate(&state))
        }
        class => class,
    }
}

fn c_string(text: &str) -> Result<CString, PqError> {
    CString::new(text).map_err(|_| PqError::of(PqErrorKind::Usage, "a text holds a NUL, which Postgres can't take"))
}

/// Cancels the statement of the session that it was made from.
pub struct Canceller(CancelConn);

impl Canceller {
    /// Sends one cancel. Harmless when no statement is under way; may be repeated.
    ///
    /// # Errors
    /// When the server can't be reached within `connect_timeout`.
    pub fn cancel(&mut self) -> Result<(), PqError> {
        self.0.cancel()
    }
}
