//! The calls into libpq, each wrapped once so that the rest of the room reads like Rust.
//!
//! A `PGconn` is used by one thread at a time (its owner has `&mut`); a `PGcancelConn` and a `PGresult` have memory
//! of their own.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pq_sys as pq;

use crate::dsn::Parameter;
use crate::pq::error::{Notice, PqError, PqErrorKind};
use crate::pq::line::{Line, Patience};
use crate::pq::socket;

/// SQLSTATE of a statement that was cancelled.
const QUERY_CANCELED: &str = "57014";
/// Notices that a session keeps until they are taken; more are dropped.
const MAX_NOTICES: usize = 1_000;

pub(super) fn version() -> i32 {
    // SAFETY: takes nothing and reads a constant.
    unsafe { pq::PQlibVersion() }
}

pub(super) fn parameter_table() -> Vec<Parameter> {
    // SAFETY: gives an array that ends with a null keyword, or null when memory is out; it is freed below.
    let options = unsafe { pq::PQconndefaults() };
    let mut table = Vec::new();
    let mut option = options;
    while !option.is_null() {
        // SAFETY: `option` points into the array, at or before its end mark.
        let (keyword, dispchar, variable) = unsafe { ((*option).keyword, (*option).dispchar, (*option).envvar) };
        if keyword.is_null() {
            break;
        }
        let keyword = text(keyword).unwrap_or_default();
        let secret = text(dispchar).is_some_and(|mark| mark == "*")
            || matches!(keyword.as_str(), "scram_client_key" | "scram_server_key");
        table.push(Parameter { keyword, secret, variable: text(variable) });
        // SAFETY: the end mark was not reached, so there is another element.
        option = unsafe { option.add(1) };
    }
    // SAFETY: from PQconndefaults above; null is allowed.
    unsafe { pq::PQconninfoFree(options) };
    table
}

/// The SQLSTATE with which a server refuses a connection, in whatever language. `None` when it doesn't, or not in time.
pub(super) fn refusal(conninfo: &CStr, within: Duration) -> Option<String> {
    // SAFETY: a NUL-terminated string.
    let pointer = NonNull::new(unsafe { pq::PQconnectStart(conninfo.as_ptr()) })?;
    let conn = Conn {
        pointer,
        notices: Box::default(),
        line: Line::new("slowlane", Patience::Endless),
        cancelled: Cell::default(),
    };
    let micros = i64::try_from(within.as_micros()).unwrap_or(i64::MAX / 2);
    // SAFETY: the connection lives; libpq then says the state alone.
    let until = unsafe {
        pq::PQsetErrorVerbosity(conn.as_ptr(), pq::PGVerbosity::PQERRORS_SQLSTATE);
        pq::PQgetCurrentTimeUSec().saturating_add(micros)
    };
    let mut wants = pq::PostgresPollingStatusType::PGRES_POLLING_WRITING;
    loop {
        let (reads, writes) = match wants {
            pq::PostgresPollingStatusType::PGRES_POLLING_READING => (1, 0),
            pq::PostgresPollingStatusType::PGRES_POLLING_WRITING => (0, 1),
            _ => break,
        };
        // SAFETY: the connection lives; the socket is its own.
        if unsafe { pq::PQsocketPoll(pq::PQsocket(conn.as_ptr()), reads, writes, until) } <= 0 {
            return None;
        }
        // SAFETY: the connection lives and is ours.
        wants = unsafe { pq::PQconnectPoll(conn.as_ptr()) };
    }
    let is_state = |word: &&str| word.len() == 5 && word.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
    conn.error_message().split_whitespace().rev().find(is_state).map(str::to_owned)
}

/// A C string's text; `None` for null.
fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: libpq's strings end with NUL and live at least as long as the object that the caller holds.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}

/// Where notices go as they arrive.
pub type NoticeSink = Box<dyn FnMut(Notice) + Send>;

#[derive(Default)]
struct Notices {
    kept: Vec<Notice>,
    sink: Option<NoticeSink>,
}

/// Why no connection came about step by step.
pub(super) enum Progress {
    /// libpq's raw text.
    Failed(String),
    /// It took too long.
    TimedOut,
}

/// A connection.
pub(super) struct Conn {
    pointer: NonNull<pq::PGconn>,
    /// Where the notice receiver writes; boxed so that its address stays.
    notices: Box<Mutex<Notices>>,
    /// Outlives the connection's end, which may wait as well.
    line: Line,
    /// When the server said last that it cancelled a statement.
    cancelled: Cell<Option<Instant>>,
}

// SAFETY: a PGconn may move between threads; it is only used through `&mut self` or for reads of plain fields.
unsafe impl Send for Conn {}

impl Conn {
    /// Connects, for at most the string's `connect_timeout` for each host. The error is libpq's raw text.
    pub fn connect(conninfo: &CStr, line: Line) -> Result<Conn, String> {
        // SAFETY: a NUL-terminated string.
        let pointer = NonNull::new(unsafe { pq::PQconnectdb(conninfo.as_ptr()) }).ok_or("out of memory")?;
        let conn = Conn { pointer, notices: Box::default(), line, cancelled: Cell::default() };
        if !conn.is_ok() {
            return Err(conn.error_message());
        }
        Ok(conn.made_ready())
    }

    /// As [`Conn::connect`], step by step, for at most `patience`. `entered` is told each status that it comes to.
    pub fn connect_in_steps(
        conninfo: &CStr,
        line: Line,
        patience: Duration,
        mut entered: impl FnMut(pq::ConnStatusType),
    ) -> Result<Conn, Progress> {
        // SAFETY: a NUL-terminated string.
        let pointer = NonNull::new(unsafe { pq::PQconnectStart(conninfo.as_ptr()) });
        let pointer = pointer.ok_or_else(|| Progress::Failed("out of memory".to_owned()))?;
        let conn = Conn { pointer, notices: Box::default(), line, cancelled: Cell::default() };
        let micros = i64::try_from(patience.as_micros()).unwrap_or(i64::MAX / 2);
        // SAFETY: takes nothing and reads a clock.
        let until = unsafe { pq::PQgetCurrentTimeUSec() }.saturating_add(micros);
        let mut wants = pq::PostgresPollingStatusType::PGRES_POLLING_WRITING;
        loop {
            // SAFETY: the connection lives.
            let (status, socket) = unsafe { (pq::PQstatus(conn.as_ptr()), pq::PQsocket(conn.as_ptr())) };
            entered(status);
            // Such as a socket that isn't there: then there is nothing to wait for.
            if status == pq::ConnStatusType::CONNECTION_BAD || socket < 0 {
                return Err(Progress::Failed(conn.error_message()));
            }
            let (reads, writes) = match wants {
                pq::PostgresPollingStatusType::PGRES_POLLING_READING => (1, 0),
                pq::PostgresPollingStatusType::PGRES_POLLING_WRITING => (0, 1),
                pq::PostgresPollingStatusType::PGRES_POLLING_OK => return Ok(conn.made_ready()),
                _ => return Err(Progress::Failed(conn.error_message())),
            };
            // SAFETY: the connection lives; the socket is its own.
            match unsafe { pq::PQsocketPoll(socket, reads, writes, until) } {
                1.. => {}
                // A signal came, such as one that has something read again.
                code if code < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {
                    continue;
                }
                _ => return Err(Progress::TimedOut),
            }
            // SAFETY: the connection lives and is ours.
            wants = unsafe { pq::PQconnectPoll(conn.as_ptr()) };
        }
    }

    /// A connection that came about, with what belongs to it.
    fn made_ready(self) -> Conn {
        let conn = self;
        let notices: *const Mutex<Notices> = &raw const *conn.notices;
        // SAFETY: the box lives as long as the connection, and is only reached through its mutex.
        unsafe { pq::PQsetNoticeReceiver(conn.as_ptr(), Some(receive_notice), notices.cast_mut().cast::<c_void>()) };
        // SAFETY: the connection lives. Its socket stays open as long as it does.
        conn.line.attach(socket::duplicate(unsafe { pq::PQsocket(conn.as_ptr()) }));
        conn
    }

    fn as_ptr(&self) -> *mut pq::PGconn {
        self.pointer.as_ptr()
    }

    pub fn is_ok(&self) -> bool {
        // SAFETY: the connection lives.
        unsafe { pq::PQstatus(self.as_ptr()) == pq::ConnStatusType::CONNECTION_OK }
    }

    pub fn error_message(&self) -> String {
        // SAFETY: the connection lives; the text is copied at once.
        text(unsafe { pq::PQerrorMessage(self.as_ptr()) }).unwrap_or_default().trim().to_owned()
    }

    pub fn backend_pid(&self) -> i32 {
        // SAFETY: the connection lives.
        unsafe { pq::PQbackendPID(self.as_ptr()) }
    }

    pub fn server_version(&self) -> i32 {
        // SAFETY: the connection lives.
        unsafe { pq::PQserverVersion(self.as_ptr()) }
    }

    /// What the server reports of a setting or of itself; `None` for what it doesn't report.
    pub fn parameter(&self, name: &CStr) -> Option<String> {
        // SAFETY: the connection lives, and the name ends with NUL; the text is copied at once.
        text(unsafe { pq::PQparameterStatus(self.as_ptr(), name.as_ptr()) })
    }

    pub fn transaction_status(&self) -> pq::PGTransactionStatusType {
        // SAFETY: the connection lives.
        unsafe { pq::PQtransactionStatus(self.as_ptr()) }
    }

    /// The simple protocol: several statements may stand in one text.
    pub fn send_query(&mut self, sql: &CStr) -> Result<(), PqError> {
        self.line.begin();
        // SAFETY: the connection lives and is ours; the text ends with NUL.
        self.sent(unsafe { pq::PQsendQuery(self.as_ptr(), sql.as_ptr()) })
    }

    pub fn send_query_params(&mut self, sql: &CStr, params: &[Option<CString>]) -> Result<(), PqError> {
        let (count, values) = pointers(params)?;
        self.line.begin();
        // SAFETY: `values` has `count` elements, each null or NUL-terminated and alive until the call returns.
        let sent = unsafe {
            let (conn, none) = (self.as_ptr(), ptr::null());
            pq::PQsendQueryParams(conn, sql.as_ptr(), count, none, values.as_ptr(), ptr::null(), ptr::null(), 0)
        };
        self.sent(sent)
    }

    pub fn send_prepare(&mut self, sql: &CStr, types: &[u32]) -> Result<(), PqError> {
        let count = c_int::try_from(types.len()).map_err(|_| PqError::of(PqErrorKind::Usage, "too many parameters"))?;
        self.line.begin();
        // SAFETY: `types` has `count` elements; both texts end with NUL.
        self.sent(unsafe { pq::PQsendPrepare(self.as_ptr(), c"".as_ptr(), sql.as_ptr(), count, types.as_ptr()) })
    }

    pub fn send_describe(&mut self) -> Result<(), PqError> {
        self.line.begin();
        // SAFETY: the connection lives; the unnamed statement's name is the empty text.
        self.sent(unsafe { pq::PQsendDescribePrepared(self.as_ptr(), c"".as_ptr()) })
    }

    pub fn send_execute(&mut self, params: &[Option<CString>], rows_per_chunk: i32) -> Result<(), PqError> {
        let (count, values) = pointers(params)?;
        self.line.begin();
        // SAFETY: as in `send_query_params`.
        let sent = unsafe {
            let (conn, name) = (self.as_ptr(), c"".as_ptr());
            pq::PQsendQueryPrepared(conn, name, count, values.as_ptr(), ptr::null(), ptr::null(), 0)
        };
        self.sent(sent)?;
        // SAFETY: called right after sending, as libpq asks for.
        self.sent(unsafe { pq::PQsetChunkedRowsMode(self.as_ptr(), rows_per_chunk) })
    }

    /// Sends some bytes of a COPY that is under way. Waits while the server has no room for them.
    pub fn put_copy_data(&mut self, bytes: &[u8]) -> Result<(), PqError> {
        let length = c_int::try_from(bytes.len());
        let length = length.map_err(|_| PqError::of(PqErrorKind::Usage, "too many bytes at a time"))?;
        // SAFETY: the connection lives and is ours; the bytes live until the call returns.
        match unsafe { pq::PQputCopyData(self.as_ptr(), bytes.as_ptr().cast::<c_char>(), length) } {
            1 => Ok(()),
            _ => Err(self.lost()),
        }
    }

    /// Ends a COPY that is under way: with `why` it is to fail. What the server says follows as a result.
    pub fn put_copy_end(&mut self, why: Option<&CStr>) -> Result<(), PqError> {
        let why = why.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: the connection lives and is ours; the text is null or ends with NUL.
        match unsafe { pq::PQputCopyEnd(self.as_ptr(), why) } {
            1 => Ok(()),
            _ => Err(self.lost()),
        }
    }

    fn sent(&self, result: c_int) -> Result<(), PqError> {
        if result == 1 {
            return Ok(());
        }
        self.line.end();
        Err(self.lost())
    }

    /// How long answers are waited for.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// The error that a result is. One of libpq's own is our doing when the line was given up.
    pub fn error_of(&self, result: &PgResult) -> PqError {
        let error = result.error();
        if error.sqlstate.as_deref() == Some(QUERY_CANCELED) {
            self.cancelled.set(Some(Instant::now()));
        }
        if error.kind == PqErrorKind::ConnectionLost && self.line.given_up() { self.lost() } else { error }
    }

    /// When the server said last that it cancelled a statement. Asked for once.
    pub fn take_cancelled(&self) -> Option<Instant> {
        self.cancelled.take()
    }

    /// The error of a connection that libpq gave up.
    pub fn lost(&self) -> PqError {
        if self.line.given_up() {
            return PqError::of(PqErrorKind::ConnectionLost, self.line.silence());
        }
        let message = self.error_message();
        let kind = if self.is_ok() { PqErrorKind::Usage } else { PqErrorKind::ConnectionLost };
        PqError::of(kind, if message.is_empty() { "the connection was lost".to_owned() } else { message })
    }

    /// Waits for the next result of what was sent. `None` when there is no more.
    pub fn next_result(&mut self) -> Option<PgResult> {
        // SAFETY: the connection lives and is ours; the result is freed by its owner.
        let result = NonNull::new(unsafe { pq::PQgetResult(self.as_ptr()) }).map(PgResult);
        if result.is_none() {
            self.line.end();
        }
        result
    }

    /// Waits until the socket has something to read. `false` when `timeout` is over.
    pub fn wait_readable(&mut self, timeout: Duration) -> Result<bool, PqError> {
        let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX / 2);
        // SAFETY: the connection lives; the socket is its own.
        let ready = unsafe {
            let until = pq::PQgetCurrentTimeUSec().saturating_add(micros);
            pq::PQsocketPoll(pq::PQsocket(self.as_ptr()), 1, 0, until)
        };
        if ready < 0 { Err(self.lost()) } else { Ok(ready > 0) }
    }

    pub fn consume_input(&mut self) -> Result<(), PqError> {
        // SAFETY: the connection lives and is ours.
        if unsafe { pq::PQconsumeInput(self.as_ptr()) } == 1 { Ok(()) } else { Err(self.lost()) }
    }

    /// The next notification that has arrived: channel, payload, sender.
    pub fn notification(&mut self) -> Option<(String, String, i32)> {
        // SAFETY: the connection lives and is ours; the object is freed below.
        let notification = NonNull::new(unsafe { pq::PQnotifies(self.as_ptr()) })?;
        // SAFETY: libpq filled the object in; its texts live inside it.
        let (channel, payload, pid) = unsafe {
            let n = notification.as_ref();
            (text(n.relname), text(n.extra), n.be_pid)
        };
        // SAFETY: from PQnotifies, freed once.
        unsafe { pq::PQfreemem(notification.as_ptr().cast::<c_void>()) };
        Some((channel?, payload?, pid))
    }

    pub fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner).kept)
    }

    pub fn on_notice(&mut self, sink: Option<NoticeSink>) {
        self.notices.lock().unwrap_or_else(PoisonError::into_inner).sink = sink;
    }

    pub fn canceller(&self) -> Result<CancelConn, PqError> {
        // SAFETY: the connection lives; what is needed is copied out of it.
        NonNull::new(unsafe { pq::PQcancelCreate(self.as_ptr()) })
            .map(CancelConn)
            .ok_or_else(|| PqError::of(PqErrorKind::Usage, "out of memory"))
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // SAFETY: the pointer is ours and used no more.
        unsafe { pq::PQfinish(self.as_ptr()) };
    }
}

/// Called by libpq on the thread that reads from the connection.
// SAFETY: the signature is the one that PQsetNoticeReceiver wants; it is called with what was set there.
unsafe extern "C" fn receive_notice(arg: *mut c_void, result: *const pq::PGresult) {
    // SAFETY: `arg` is the boxed mutex that lives as long as the connection.
    let Some(notices) = (unsafe { arg.cast::<Mutex<Notices>>().as_ref() }) else {
        return;
    };
    let Some(result) = NonNull::new(result.cast_mut()) else {
        return;
    };
    let notice = Notice {
        severity: field(result, pq::PG_DIAG_SEVERITY_NONLOCALIZED).unwrap_or_default(),
        sqlstate: field(result, pq::PG_DIAG_SQLSTATE).unwrap_or_default(),
        message: field(result, pq::PG_DIAG_MESSAGE_PRIMARY).unwrap_or_default(),
        function: field(result, pq::PG_DIAG_SOURCE_FUNCTION).unwrap_or_default(),
        line: field(result, pq::PG_DIAG_SOURCE_LINE).unwrap_or_default(),
    };
    let mut notices = notices.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(sink) = &mut notices.sink {
        // A panic must not unwind into libpq.
        let _ = catch_unwind(AssertUnwindSafe(|| sink(notice)));
    } else if notices.kept.len() < MAX_NOTICES {
        notices.kept.push(notice);
    }
}

fn field(result: NonNull<pq::PGresult>, code: u8) -> Option<String> {
    // SAFETY: the result lives; the text is copied at once.
    text(unsafe { pq::PQresultErrorField(result.as_ptr(), c_int::from(code)) })
}

fn pointers(params: &[Option<CString>]) -> Result<(c_int, Vec<*const c_char>), PqError> {
    let count = c_int::try_from(params.len()).map_err(|_| PqError::of(PqErrorKind::Usage, "too many parameters"))?;
    let values = params.iter().map(|value| value.as_ref().map_or(ptr::null(), |text| text.as_ptr())).collect();
    Ok((count, values))
}

/// A result, freed when it goes.
pub(super) struct PgResult(NonNull<pq::PGresult>);

// SAFETY: a PGresult has memory of its own, and is only read.
unsafe impl Send for PgResult {}

impl PgResult {
    pub fn status(&self) -> pq::ExecStatusType {
        // SAFETY: the result lives.
        unsafe { pq::PQresultStatus(self.0.as_ptr()) }
    }

    /// The error that this result is.
    pub fn error(&self) -> PqError {
        let sqlstate = field(self.0, pq::PG_DIAG_SQLSTATE);
        let message = field(self.0, pq::PG_DIAG_MESSAGE_PRIMARY).unwrap_or_else(|| {
            // SAFETY: the result lives; the text is copied at once.
            text(unsafe { pq::PQresultErrorMessage(self.0.as_ptr()) }).unwrap_or_default().trim().to_owned()
        });
        PqError {
            // Without a SQLSTATE it is libpq's own: the connection broke.
            kind: if sqlstate.is_some() { PqErrorKind::Server } else { PqErrorKind::ConnectionLost },
            sqlstate,
            message,
            detail: field(self.0, pq::PG_DIAG_MESSAGE_DETAIL),
            hint: field(self.0, pq::PG_DIAG_MESSAGE_HINT),
            position: field(self.0, pq::PG_DIAG_STATEMENT_POSITION).and_then(|position| position.parse().ok()),
            context: field(self.0, pq::PG_DIAG_CONTEXT),
            schema: field(self.0, pq::PG_DIAG_SCHEMA_NAME),
            table: field(self.0, pq::PG_DIAG_TABLE_NAME),
            column: field(self.0, pq::PG_DIAG_COLUMN_NAME),
            constraint: field(self.0, pq::PG_DIAG_CONSTRAINT_NAME),
        }
    }

    pub fn rows(&self) -> usize {
        // SAFETY: the result lives.
        usize::try_from(unsafe { pq::PQntuples(self.0.as_ptr()) }).unwrap_or(0)
    }

    pub fn columns(&self) -> usize {
        // SAFETY: the result lives.
        usize::try_from(unsafe { pq::PQnfields(self.0.as_ptr()) }).unwrap_or(0)
    }

    /// A column's name, type and type modifier.
    pub fn column(&self, n: usize) -> Option<(String, u32, i32)> {
        if n >= self.columns() {
            return None;
        }
        let n = c_int::try_from(n).ok()?;
        let result = self.0.as_ptr();
        // SAFETY: the result lives and has that column.
        unsafe { Some((text(pq::PQfname(result, n))?, pq::PQftype(result, n), pq::PQfmod(result, n))) }
    }

    /// The types of a described statement's parameters.
    pub fn parameter_types(&self) -> Vec<u32> {
        let result = self.0.as_ptr();
        // SAFETY: the result lives, and each number is below the count.
        unsafe { (0..pq::PQnparams(result)).map(|n| pq::PQparamtype(result, n)).collect() }
    }

    /// A value's bytes; `None` for NULL, or where there is none.
    pub fn value(&self, row: usize, column: usize) -> Option<&[u8]> {
        if row >= self.rows() || column >= self.columns() {
            return None;
        }
        let (row, column, result) = (c_int::try_from(row).ok()?, c_int::try_from(column).ok()?, self.0.as_ptr());
        // SAFETY: the result has that value; its bytes live as long as the result, which the borrow holds.
        unsafe {
            if pq::PQgetisnull(result, row, column) == 1 {
                return None;
            }
            let length = usize::try_from(pq::PQgetlength(result, row, column)).ok()?;
            let value = pq::PQgetvalue(result, row, column).cast::<u8>().cast_const();
            Some(std::slice::from_raw_parts(value, length))
        }
    }

    /// What the server calls the finished command, such as `SELECT 3`.
    pub fn command_tag(&self) -> String {
        // SAFETY: the result lives; the text is copied at once.
        text(unsafe { pq::PQcmdStatus(self.0.as_ptr()) }).unwrap_or_default()
    }
}

impl Drop for PgResult {
    fn drop(&mut self) {
        // SAFETY: the pointer is ours and used no more.
        unsafe { pq::PQclear(self.0.as_ptr()) };
    }
}

/// What is needed to cancel a connection's statement, from any thread.
pub(super) struct CancelConn(NonNull<pq::PGcancelConn>);

// SAFETY: it shares nothing with the connection that it was made from, and is used through `&mut self`.
unsafe impl Send for CancelConn {}

impl CancelConn {
    /// Sends one cancel and waits until the server has taken it, for at most `connect_timeout`.
    pub fn cancel(&mut self) -> Result<(), PqError> {
        // SAFETY: the object lives and is ours; reset makes it fit for the next time.
        unsafe {
            let done = pq::PQcancelBlocking(self.0.as_ptr()) == 1;
            pq::PQcancelReset(self.0.as_ptr());
            // libpq's text names host and port only, but it is not needed either.
            if done { Ok(()) } else { Err(PqError::connection_lost("the cancel did not reach the server")) }
        }
    }
}

impl Drop for CancelConn {
    fn drop(&mut self) {
        // SAFETY: the pointer is ours and used no more.
        unsafe { pq::PQcancelFinish(self.0.as_ptr()) };
    }
}
