//! Diesel connections whose silence is noticed: each notes its statements on a [`Line`].
//!
//! Diesel tells of its statements by events. BEGIN, COMMIT and ROLLBACK are statements as well; its events for
//! transactions come beside theirs and are not needed. What is read after a statement of `COPY … TO` is not told of:
//! [`Patience::Within`] covers that as well. Two connections are not watched: one over a Unix
//! socket, where no network can swallow anything, and one whose string says `keepalives=0`, because libpq sets no
//! `tcp_user_timeout` then.

use std::sync::Once;
use std::time::Duration;

use diesel::connection::{Connection, Instrumentation, InstrumentationEvent};
use diesel::pg::PgConnection;
use diesel::result::ConnectionError;

use crate::db::error::tells_of_loss;
use crate::dsn::Dsn;
use crate::pq::{self, ConnectFailure, Line, Mark, Patience};

/// libpq's `connect_timeout` bounds each address; what Diesel asks right after isn't bounded by it.
const AFTER_CONNECTING: Duration = Duration::from_secs(5);
/// Where `connect_timeout` is switched off.
const CONNECTING: Duration = Duration::from_secs(60);

/// Tells a line of a connection's statements.
struct Watch {
    line: Line,
    /// Statements in statements: Diesel looks up unknown types while it prepares one.
    depth: u32,
    /// A statement found the connection gone. Diesel itself only notices some of the ways in which it can go.
    lost: bool,
}

impl Watch {
    /// No statement is under way. Diesel says that one begins and never that it ends when one of its values has no form
    /// that can be sent.
    fn rest(&mut self) {
        self.depth = 0;
        self.line.end();
    }
}

impl Instrumentation for Watch {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        match event {
            InstrumentationEvent::StartQuery { .. } => {
                self.depth += 1;
                self.line.begin();
            }
            InstrumentationEvent::FinishQuery { error, .. } => {
                self.lost |= error.is_some_and(tells_of_loss);
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 { self.line.end() } else { self.line.begin() }
            }
            _ => {}
        }
    }
}

/// Opens a connection that waits no longer for answers than `patience` says.
///
/// # Errors
/// The class of what is in the way.
pub(crate) fn establish(dsn: &Dsn, patience: Patience) -> Result<PgConnection, ConnectFailure> {
    let dsn = &pq::with_addresses(dsn)?;
    let name = dsn.get("application_name").unwrap_or("slowlane");
    let connecting = Patience::Within(connecting(dsn));
    let (line, mut connection) = if is_local(dsn) {
        let line = Line::new(name, connecting);
        (line, connect(dsn)?)
    } else {
        let mark = Mark::fresh();
        let line = Line::marked(name, mark, connecting);
        let marked = dsn.clone().with("tcp_user_timeout", &mark.millis().to_string());
        let connection = connect(&marked)?;
        if !line.settle(Duration::from_millis(number(dsn, "tcp_user_timeout").unwrap_or(0))) {
            say_once();
        }
        (line, connection)
    };
    line.allow(patience);
    connection.set_instrumentation(Watch { line, depth: 0, lost: false });
    Ok(connection)
}

fn connect(dsn: &Dsn) -> Result<PgConnection, ConnectFailure> {
    PgConnection::establish(dsn.conninfo().expose()).map_err(|error| match error {
        ConnectionError::BadConnection(text) => pq::connect_failure(dsn, &text),
        // What Diesel asks right after.
        ConnectionError::CouldntSetupConfiguration(_) => ConnectFailure::Closed,
        _ => ConnectFailure::Other,
    })
}

/// From now on `connection` waits for answers so long. `false` when somebody put their own instrumentation in the
/// place of ours: nobody watches it then.
pub(crate) fn allow(connection: &mut PgConnection, patience: Patience) -> bool {
    let Some(watch) = connection.instrumentation().downcast_mut::<Watch>() else { return false };
    watch.rest();
    watch.line.allow(patience);
    true
}

/// The connection was given back: whatever it was told last is over.
pub(crate) fn rest(connection: &mut PgConnection) {
    if let Some(watch) = connection.instrumentation().downcast_mut::<Watch>() {
        watch.rest();
    }
}

/// A statement found the connection gone: it must not be used again.
pub(crate) fn is_lost(connection: &mut PgConnection) -> bool {
    connection.instrumentation().downcast_ref::<Watch>().is_some_and(|watch| watch.lost)
}

fn is_local(dsn: &Dsn) -> bool {
    let host = dsn.get("hostaddr").or_else(|| dsn.get("host")).unwrap_or_default();
    host.split(',').all(|host| host.is_empty() || host.starts_with(['/', '@']))
}

/// The longest that connecting takes by libpq's own rules, which give each address its time.
fn connecting(dsn: &Dsn) -> Duration {
    let addresses = dsn.get("hostaddr").or_else(|| dsn.get("host")).unwrap_or_default().split(',').count();
    match number(dsn, "connect_timeout") {
        Some(seconds @ 1..) => {
            let each = Duration::from_secs(seconds);
            each.saturating_mul(u32::try_from(addresses).unwrap_or(u32::MAX)).saturating_add(AFTER_CONNECTING)
        }
        _ => CONNECTING,
    }
}

fn number(dsn: &Dsn, keyword: &str) -> Option<u64> {
    dsn.get(keyword)?.trim().parse().ok()
}

fn say_once() {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        log::warn!(
            "the sockets of database connections can't be found in /proc/self/fd: one that swallows everything is noticed late"
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connecting_is_bounded_by_the_strings_own_timeout() {
        let dsn = |text: &str| Dsn::parse(text, crate::pq::parameters()).unwrap();
        let bound = |text: &str| connecting(&dsn(text).for_connecting()).as_secs();
        assert_eq!(bound("host=a"), 10);
        assert_eq!(bound("host=a,b connect_timeout=3"), 11);
        assert_eq!(bound("host=a connect_timeout=0"), 60);
        assert!(is_local(&dsn("host=/tmp")) && !is_local(&dsn("host=a,/tmp")));
    }
}
