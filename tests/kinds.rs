//! Kinds of work, as far as they are the same whatever the kind.

mod tests {
    use diesel::connection::SimpleConnection;
    use diesel::prelude::*;
    use slowlane::WorkError;
    use slowlane::db::pool::Manager;
    use slowlane::pq::Session;

    use crate::support::postgres::Postgres;

    /// Code, SQLSTATE, and whether it is worth another attempt.
    fn told(error: WorkError) -> (String, Option<String>, bool) {
        match error {
            WorkError::Retry(error) if error.retryable => (error.code, error.sqlstate, true),
            WorkError::Fail(error) if !error.retryable => (error.code, error.sqlstate, false),
            other => panic!("{other:?}"),
        }
    }

    /// Each is begun on a session of its own.
    const FAILING: [(&str, &str, &str, bool); 22] = [
        ("SELECT * FROM public.secret", "permission_denied", "42501", false),
        ("ALTER TABLE public.secret ADD COLUMN m int", "permission_denied", "42501", false),
        ("BEGIN READ ONLY; INSERT INTO public.t VALUES (1)", "read_only", "25006", false),
        ("SET lock_timeout = 50; LOCK TABLE public.held", "lock_timeout", "55P03", true),
        ("BEGIN; LOCK TABLE public.held NOWAIT", "lock_timeout", "55P03", true),
        ("SET statement_timeout = 50; SELECT pg_sleep(60)", "cancelled_by_server", "57014", true),
        ("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)", "cancelled_by_server", "57014", true),
        ("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)", "connection_lost", "57P01", true),
        ("INSERT INTO public.t VALUES (7)", "sql_error", "23505", false),
        ("INSERT INTO public.t VALUES (NULL)", "sql_error", "23502", false),
        ("INSERT INTO public.t VALUES (-1)", "sql_error", "23514", false),
        ("INSERT INTO public.refers VALUES (8)", "sql_error", "23503", false),
        ("INSERT INTO public.apart VALUES ('[1,5)'), ('[2,3)')", "sql_error", "23P01", false),
        ("SELEC 1", "sql_error", "42601", false),
        ("SELECT 1 / 0", "sql_error", "22012", false),
        ("DO $$ BEGIN RAISE 'could not serialize access' USING ERRCODE = '40001'; END $$", "sql_error", "40001", true),
        ("DO $$ BEGIN RAISE 'deadlock detected' USING ERRCODE = '40P01'; END $$", "sql_error", "40P01", true),
        ("DO $$ BEGIN RAISE 'out of memory' USING ERRCODE = '53200'; END $$", "sql_error", "53200", false),
        (
            "DO $$ BEGIN RAISE 'sorry, too many clients already' USING ERRCODE = '53300'; END $$",
            "sql_error",
            "53300",
            true,
        ),
        (
            "DO $$ BEGIN RAISE 'the database system is shutting down' USING ERRCODE = '57P03'; END $$",
            "connection_lost",
            "57P03",
            true,
        ),
        (
            "DO $$ BEGIN RAISE 'terminating connection due to transaction timeout' USING ERRCODE = '25P04'; END $$",
            "transaction_timeout",
            "25P04",
            false,
        ),
        (
            "DO $$ BEGIN RAISE 'terminating connection due to idle-session timeout' USING ERRCODE = '57P05'; END $$",
            "connection_lost",
            "57P05",
            true,
        ),
    ];

    #[test]
    fn both_drivers_say_the_same() {
        let target = Postgres::shared().work();
        target.run(
            "CREATE TABLE public.secret (n int); CREATE TABLE public.held (n int);
             CREATE TABLE public.t (n int PRIMARY KEY CHECK (n > 0)); INSERT INTO public.t VALUES (7);
             CREATE TABLE public.refers (n int REFERENCES public.t);
             CREATE TABLE public.apart (r int4range, EXCLUDE USING gist (r WITH &&));
             GRANT ALL ON public.t, public.held, public.refers, public.apart TO slowlane_demo",
        );
        let mut holder = target.session();
        holder.execute_batch("BEGIN; LOCK TABLE public.held").unwrap();
        for (sql, code, sqlstate, retryable) in FAILING {
            let mut session = Session::connect(&target.dsn).unwrap();
            let by_libpq = told(session.execute_batch(sql).unwrap_err().into());
            let mut connection = Manager::work(&target.dsn, "SELECT 1").open().unwrap();
            let mut by_diesel = vec![told(connection.batch_execute(sql).unwrap_err().into())];
            assert_eq!(by_libpq, (code.to_owned(), Some(sqlstate.to_owned()), retryable), "libpq: {sql}");
            // The protocol for statements with parameters tells its errors in another way.
            if !sql.contains(';') || sql.starts_with("DO") {
                let mut connection = Manager::work(&target.dsn, "SELECT 1").open().unwrap();
                by_diesel.push(told(diesel::sql_query(sql).execute(&mut connection).unwrap_err().into()));
            }
            for (code, sqlstate, retryable) in by_diesel {
                // Of a session that is gone, libpq's last words hide the server's.
                let arrives = sqlstate.is_some() || !sql.contains("pg_terminate_backend");
                let sqlstate = if arrives { sqlstate } else { by_libpq.1.clone() };
                assert_eq!((code, sqlstate, retryable), by_libpq, "Diesel: {sql}");
            }
        }
    }
}
