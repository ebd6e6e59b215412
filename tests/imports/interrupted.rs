//! Imports that are stopped in the middle: nothing of them is left, and another try does all of it once.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{CSV, app_with, counts, error, job, job_of, make, upload_as};
use crate::support::child::Server;
use crate::support::eventually;
use crate::support::postgres::Postgres;

/// A table that holds up whoever brings it the row 5000, for as long as another one says.
const SLOW: &str = "CREATE TABLE public.nap (seconds int); INSERT INTO public.nap VALUES (600);
    CREATE TABLE public.t (a int);
    CREATE FUNCTION public.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.a = 5000 THEN PERFORM pg_sleep(seconds) FROM public.nap; END IF; RETURN NEW; END $$;
    CREATE TRIGGER f BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.f()";
const SLEEPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()";

fn many_rows() -> String {
    "a\n".to_owned() + &(0..2_000_000).map(|n| format!("{n}\n")).collect::<String>()
}

#[test]
fn a_cancel_or_a_deadline_in_the_middle_leaves_nothing() {
    let app = app_with(SLOW);
    let upload = upload_as(&app, CSV, "identity", many_rows().as_bytes());
    for args in [json!({"table": "t"}), json!({"table": "t", "reject_limit": 3})] {
        let id = job_of(&app, &upload, CSV, &args);
        eventually("it is held up", || app.target.count(SLEEPING) == 1);
        assert_eq!(app.post(&format!("/v1/jobs/{id}/cancel"), &json!({})).status, 202);
        let job = app.ended(&id);
        assert_eq!((&job["state"], &job["error"]), (&json!("cancelled"), &Value::Null), "{job}");
        assert_eq!(app.target.count("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'slowlane:%' AND datname = current_database() AND state <> 'idle'"), 0);
        let args = json!({"upload": upload, "format": "csv", "table": "t"});
        let id = app.submit(&json!({"kind": "import", "args": args, "timeout_ms": 700}));
        assert_eq!(error(&app.ended(&id)).0, "timeout");
    }
    assert_eq!(app.target.count("SELECT count(*) FROM t"), 0);
    // The upload is there for another try.
    make(&app.target, "UPDATE nap SET seconds = 0");
    let id = job_of(&app, &upload, CSV, &json!({"table": "t"}));
    assert_eq!(app.ended(&id)["output"], counts(2_000_000, 2_000_000, 0, 0, 0));
}

#[test]
fn a_worker_that_is_killed_in_the_middle_is_followed_by_one_that_does_it_once() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    make(&target, SLOW);
    let api = Server::api(&queue, &[]);
    let mut doomed = Server::worker(&queue, &target, &[]);
    let id = job(&api.client, CSV, many_rows().as_bytes(), &json!({"table": "t"}));
    eventually("it is held up", || target.count(SLEEPING) == 1);
    doomed.signal(Signal::SIGKILL);
    doomed.wait();
    make(&target, "UPDATE nap SET seconds = 0");
    let _heir = Server::worker(&queue, &target, &[]);
    let pid = doomed.pid();
    queue.run(&format!("DELETE FROM workers WHERE pid = {pid}"));
    let job = api.client.ended(&id);
    assert_eq!(job["output"], counts(2_000_000, 2_000_000, 0, 0, 0), "{job}");
    assert_eq!(job["interruptions"], 1);
    assert_eq!(target.text("SELECT count(*) || ' ' || count(DISTINCT a) FROM t"), "2000000 2000000");
}
