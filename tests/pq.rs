//! The libpq session: streams that end early are errors, cancels arrive, notifications are waited for.

use std::time::Duration;

use slowlane::pq::{PqErrorKind, Session, TransactionStatus};

use crate::support::postgres::Postgres;

fn session() -> Session {
    Session::connect(&Postgres::shared().work().dsn).unwrap()
}

#[test]
fn rows_of_any_shape_are_streamed() {
    let mut session = session();
    let statement =
        session.prepare("SELECT g AS id, NULL AS nothing, $1::text AS t FROM generate_series(1, 1000) g", &[]).unwrap();
    assert_eq!(statement.params, [25]);
    assert_eq!(
        statement.columns.iter().map(|c| (c.name.as_str(), c.type_oid)).collect::<Vec<_>>(),
        [("id", 23), ("nothing", 25), ("t", 25)]
    );
    let mut rows = 0;
    let mut stream = session.stream(&[Some(c"x".to_owned())]).unwrap();
    while let Some(chunk) = stream.next_chunk().unwrap() {
        for row in 0..chunk.rows() {
            rows += 1;
            assert_eq!(chunk.value(row, 0), Some(rows.to_string().as_bytes()));
            assert_eq!((chunk.value(row, 1), chunk.value(row, 2), chunk.value(row, 3)), (None, Some(&b"x"[..]), None));
        }
    }
    assert_eq!((rows, stream.command_tag()), (1000, Some("SELECT 1000")));
    assert!(session.is_idle());
}

#[test]
fn a_stream_that_breaks_off_is_an_error() {
    let mut session = session();
    session.prepare("SELECT 1 / (5000 - g) FROM generate_series(1, 10000) g", &[]).unwrap();
    let mut stream = session.stream(&[]).unwrap();
    let error = loop {
        match stream.next_chunk() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it looked complete"),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind, error.sqlstate.as_deref()), (PqErrorKind::Server, Some("22012")));
    assert!(session.is_idle());
    // A session that is dropped in mid-stream isn't idle.
    session.prepare("SELECT * FROM generate_series(1, 1000000)", &[]).unwrap();
    let mut stream = session.stream(&[]).unwrap();
    stream.next_chunk().unwrap();
    assert!(!session.is_idle());
}

#[test]
fn a_lost_connection_is_an_error_and_shows() {
    let database = Postgres::shared().work();
    let mut session = Session::connect(&database.dsn).unwrap();
    let kill = format!("SELECT pg_terminate_backend({})", session.backend_pid());
    database.run(&kill);
    let error = session.query("SELECT 1", &[]).err().unwrap();
    assert!(error.retryable(), "{error:?}");
    assert!(session.is_broken());
}

#[test]
fn one_statement_only_and_no_copy() {
    let mut session = session();
    assert_eq!(session.prepare("SELECT 1; SELECT 2", &[]).unwrap_err().sqlstate.as_deref(), Some("42601"));
    let error = session.execute_batch("COPY (SELECT 1) TO STDOUT").unwrap_err();
    assert_eq!(error.kind, PqErrorKind::Copy);
    assert!(!session.is_idle());
}

#[test]
fn a_cancel_arrives_from_another_thread() {
    let mut session = session();
    let mut canceller = session.canceller().unwrap();
    let pid = session.backend_pid();
    std::thread::scope(|scope| {
        let sleeps = scope.spawn(|| session.query("SELECT pg_sleep(600)", &[]).err().unwrap());
        let watch = Postgres::shared().work();
        crate::support::eventually("it sleeps", || {
            watch.count(&format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'"))
                == 1
        });
        canceller.cancel().unwrap();
        assert_eq!(sleeps.join().unwrap().sqlstate.as_deref(), Some("57014"));
    });
    assert_eq!(session.transaction_status(), TransactionStatus::Idle);
    canceller.cancel().unwrap();
    assert_eq!(session.query("SELECT 1", &[]).map(|rows| rows.len()).unwrap_or(1), 1);
}

#[test]
fn notifications_are_waited_for() {
    let database = Postgres::shared().work();
    let mut session = Session::connect(&database.dsn).unwrap();
    session.execute_batch("LISTEN lane").unwrap();
    assert_eq!(session.wait_notification(Duration::from_millis(10)).unwrap(), None);
    database.run("SELECT pg_notify('lane', 'hello')");
    let notification = session.wait_notification(crate::support::PATIENCE).unwrap().unwrap();
    assert_eq!((notification.channel.as_str(), notification.payload.as_str()), ("lane", "hello"));
}

#[test]
fn notices_are_kept() {
    let mut session = session();
    session.execute_batch("DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$").unwrap();
    let notices: Vec<String> = session.take_notices().into_iter().map(|notice| notice.message).collect();
    assert_eq!(notices, ["one", "two"]);
    assert!(session.take_notices().is_empty());
}

#[test]
fn libpqs_own_table_is_known() {
    let table = slowlane::pq::parameters();
    let is_secret = |keyword: &str| table.iter().find(|p| p.keyword == keyword).unwrap().secret;
    assert!(is_secret("password") && !is_secret("host") && table.len() > 30);
}

#[test]
fn bytes_are_copied_into_a_table_as_a_whole_or_not() {
    let mut session = session();
    session.execute_batch("CREATE TABLE t (a int)").unwrap();
    let rows =
        |session: &mut Session| session.query("SELECT count(*) FROM t", &[]).unwrap().get(0, 0).unwrap().to_owned();
    let mut copy = session.copy_in("COPY t FROM STDIN").unwrap();
    // Values in two pieces, and more of them than are handed to libpq at a time.
    copy.send(b"1\n2").unwrap();
    copy.send("3\n".repeat(1_000_000).as_bytes()).unwrap();
    assert_eq!(copy.finish().unwrap(), 1_000_001);
    assert!(session.is_idle());
    // An error comes at the end, with the line; the session goes on.
    let mut copy = session.copy_in("COPY t FROM STDIN").unwrap();
    copy.send(b"1\nx\n").unwrap();
    copy.send("3\n".repeat(1_000_000).as_bytes()).unwrap();
    let error = copy.finish().unwrap_err();
    assert_eq!((error.kind, error.sqlstate.as_deref()), (PqErrorKind::Server, Some("22P02")));
    assert_eq!(error.context.as_deref(), Some("COPY t, line 2, column a: \"x\""));
    // One that is given up has no error of its own, or the one that it had before.
    assert!(session.copy_in("COPY t FROM STDIN").unwrap().abandon().unwrap().is_none());
    let mut copy = session.copy_in("COPY t FROM STDIN").unwrap();
    copy.send(b"1\nx\n").unwrap();
    assert_eq!(copy.abandon().unwrap().unwrap().sqlstate.as_deref(), Some("22P02"));
    assert!(session.is_idle());
    assert_eq!(rows(&mut session), "1000001");
    // What takes no data is refused.
    assert_eq!(session.copy_in("COPY nothing FROM STDIN").err().unwrap().sqlstate.as_deref(), Some("42P01"));
    assert_eq!(session.copy_in("SELECT 1").err().unwrap().kind, PqErrorKind::Usage);
    assert!(session.is_idle());
    // One that is left in the middle shows.
    session.copy_in("COPY t FROM STDIN").unwrap().send(b"1\n").unwrap();
    assert!(!session.is_idle());
}

#[test]
fn a_copy_that_waits_is_cancelled() {
    let mut session = session();
    session
        .execute_batch(
            "CREATE TABLE t (a int); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN NEW; END $$;
             CREATE TRIGGER f BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
        )
        .unwrap();
    let mut canceller = session.canceller().unwrap();
    let (pid, database) = (session.backend_pid(), Postgres::shared().superuser());
    let cancels = std::thread::spawn(move || {
        let mut looks = Session::connect(&database).unwrap();
        let sleeps = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'PgSleep'");
        crate::support::eventually("it waits", || looks.query(&sleeps, &[]).unwrap().get(0, 0) == Some("1"));
        canceller.cancel().unwrap();
    });
    let mut copy = session.copy_in("COPY t FROM STDIN").unwrap();
    // Far more than what has room on the way to a server that doesn't read.
    copy.send("1\n".repeat(20_000_000).as_bytes()).unwrap();
    assert_eq!(copy.finish().unwrap_err().sqlstate.as_deref(), Some("57014"));
    cancels.join().unwrap();
    assert!(session.is_idle());
}
