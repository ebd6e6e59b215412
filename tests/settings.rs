//! What the sessions of a target are set to: as the operator's login has it, but for what a job or its target asks for,
//! and for the form of the rows that a `query` keeps. And what is told when a limit of theirs ends a job.

mod limits;
mod values;

use serde_json::{Value, json};
use slowlane::pq::Session;
use slowlane::queue::model::{MAX_LOCK_TIMEOUT_MS, is_time_zone};
use slowlane::{DatabaseUrl, Server, Target};

use crate::support::app::TestApp;
use crate::support::postgres::{Database, Postgres};

/// Settings of the work role in this database alone: other tests share the role.
fn login_has(target: &Database, settings: &[(&str, &str)]) {
    for (name, value) in settings {
        let sql = format!("ALTER ROLE slowlane_demo IN DATABASE {} SET {name} = {value}", target.name());
        target.run(&sql);
    }
}

/// A session of the work role, as its operator would open one.
fn as_operator(target: &Database) -> Session {
    Session::connect(&target.dsn).unwrap()
}

fn shown(session: &mut Session, sql: &str) -> String {
    session.query(&format!("SELECT ({sql})::text"), &[]).unwrap().get(0, 0).unwrap_or_default().to_owned()
}

/// What an expression is on a session of a job: the job, when it has ended.
fn show(app: &TestApp, sql: &str, diesel: bool, further: &Value) -> Value {
    let mut job = json!({"kind": "shows", "args": {"sql": sql, "diesel": diesel}, "max_attempts": 1});
    job.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
    app.ended(&app.submit(&job))
}

fn result(app: &TestApp, job: &Value, format: &str) -> String {
    assert_eq!(job["state"], "succeeded", "{job}");
    app.get(&format!("/v1/jobs/{}/result/data?format={format}", job["id"].as_str().unwrap())).text()
}

const SETTINGS: &str = "concat_ws('; ', current_setting('TimeZone'), current_setting('DateStyle'),
    current_setting('IntervalStyle'), current_setting('bytea_output'), current_setting('extra_float_digits'),
    current_setting('xmlbinary'), current_setting('search_path'), current_setting('client_encoding'),
    current_setting('lc_monetary'), current_setting('default_transaction_isolation'), current_setting('lane.own', true))";

#[test]
fn a_session_is_as_the_operators_login_is_on_either_driver_before_and_after_others_used_it() {
    let app = TestApp::with(|config| config.workers = 1);
    let both = |further: &Value| [false, true].map(|diesel| show(&app, SETTINGS, diesel, further)["output"].clone());
    let plain = json!(shown(&mut as_operator(&app.target), SETTINGS));
    assert_eq!(both(&json!({})), [plain.clone(), plain]);
    // The sessions of these two lie in their pools by now.
    login_has(
        &app.target,
        &[
            ("TimeZone", "'Asia/Kathmandu'"),
            ("DateStyle", "'SQL, DMY'"),
            ("IntervalStyle", "iso_8601"),
            ("bytea_output", "escape"),
            ("extra_float_digits", "-3"),
            ("xmlbinary", "hex"),
            ("search_path", "app, public"),
            ("lc_monetary", "'C'"),
            ("default_transaction_isolation", "'repeatable read'"),
            ("lane.own", "'theirs'"),
        ],
    );
    let own = shown(&mut as_operator(&app.target), SETTINGS);
    assert!(own.starts_with("Asia/Kathmandu; SQL, DMY; iso_8601; escape; -3; hex; app, public; UTF8"), "{own}");
    let own = json!(own);
    assert_eq!(both(&json!({})), [own.clone(), own.clone()]);
    // What a job asks for, and what its statements leave behind, is gone with it.
    let zoned = both(&json!({"time_zone": "America/St_Johns"}));
    assert!(zoned.iter().all(|shown| shown.as_str().unwrap().starts_with("America/St_Johns; SQL, DMY")), "{zoned:?}");
    let leave = "set_config('DateStyle', 'German', false) || set_config('TimeZone', 'UTC', false) || set_config('client_encoding', 'LATIN1', false)";
    for diesel in [false, true] {
        assert_eq!(show(&app, leave, diesel, &json!({}))["state"], "succeeded");
    }
    assert_eq!(both(&json!({})), [own.clone(), own.clone()]);
    app.target.run(&format!("ALTER ROLE slowlane_demo IN DATABASE {} RESET ALL", app.target.name()));
    let plain = json!(shown(&mut as_operator(&app.target), SETTINGS));
    assert_eq!(both(&json!({})), [plain.clone(), plain]);
}

#[test]
fn a_login_that_takes_on_another_role_is_that_role() {
    // A cluster of its own: roles are shared by all databases of one.
    let cluster = Postgres::start();
    let app = TestApp::on(cluster.queue(), cluster.work(), |config| config.workers = 1);
    app.target.run("CREATE ROLE reports; GRANT reports TO slowlane_demo");
    login_has(&app.target, &[("role", "reports")]);
    for diesel in [false, true] {
        let job = show(&app, "current_user || ' ' || session_user", diesel, &json!({}));
        assert_eq!(job["output"], "reports slowlane_demo", "{job}");
        assert!(job["backend"]["backend_start"].as_str().unwrap().starts_with("20"), "{job}");
    }
}

#[test]
fn settings_of_a_connection_string_count() {
    let postgres = Postgres::shared();
    let (queue, target) = (postgres.queue(), postgres.work());
    login_has(&target, &[("TimeZone", "'Asia/Tokyo'"), ("DateStyle", "'ISO, MDY'")]);
    for options in [
        "TimeZone=Europe/Berlin&DateStyle=ISO%2CDMY",
        "options=-c%20TimeZone%3DEurope%2FBerlin%20-c%20DateStyle%3DISO%2CDMY",
    ] {
        let text = target.dsn.to_url().expose().to_owned();
        let url = format!("{text}{}{options}", if text.contains('?') { '&' } else { '?' });
        let server = Server::builder().queue(&queue.dsn).target("default", Target::at(DatabaseUrl::from(url)));
        let running = server
            .listen(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))
            .registry(crate::support::kinds::registry())
            .build()
            .unwrap()
            .start()
            .unwrap();
        let client = crate::support::client::Client::new(running.address().unwrap());
        let job = client.query(
            "SELECT current_setting('TimeZone') || ' ' || current_setting('DateStyle') AS x, '01/02/2024'::date AS d",
            &json!([]),
        );
        let id = job["id"].as_str().unwrap();
        assert_eq!(
            client.get(&format!("/v1/jobs/{id}/result/data")).text(),
            "x,d\n\"Europe/Berlin ISO, DMY\",2024-02-01\n",
            "{job}"
        );
        running.ask_to_stop();
        running.wait().unwrap();
    }
}

#[test]
fn a_job_a_saved_statement_and_a_target_may_name_a_time_zone() {
    let postgres = Postgres::shared();
    let folder = tempfile::tempdir().unwrap();
    let file = "-- kind = 'query'\n-- time_zone = 'Asia/Tokyo'\n-- lock_timeout = '7s'\nSELECT current_setting('TimeZone') AS zone, current_setting('lock_timeout') AS wait";
    std::fs::write(folder.path().join("zone.sql"), file).unwrap();
    let (queue, work) = (postgres.queue(), postgres.work());
    let mut target = Target::at(&work.dsn);
    target.spec.time_zone = Some("Europe/Berlin".to_owned());
    target.spec.lock_timeout_ms = Some(9_000);
    let config = slowlane::config::Config { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() };
    let server = Server::builder().config(config).queue(&queue.dsn).target("default", target).statements(folder.path());
    let running = server.registry(crate::support::kinds::registry()).build().unwrap().start().unwrap();
    let client = crate::support::client::Client::new(running.address().unwrap());
    let zone = |job: Value| {
        let id = client.submit(&job);
        let job = client.ended(&id);
        let data = client.get(&format!("/v1/jobs/{id}/result/data")).text();
        (data.lines().nth(1).unwrap_or_default().to_owned(), job)
    };
    let query = json!({"kind": "query", "args": {"sql": "SELECT current_setting('TimeZone'), current_setting('lock_timeout')"}});
    assert_eq!(zone(query.clone()).0, "Europe/Berlin,9s");
    let mut asks = query.clone();
    (asks["time_zone"], asks["lock_timeout_ms"]) = (json!("america/new_york"), json!(250));
    let (shown, job) = zone(asks.clone());
    assert_eq!(shown, "America/New_York,250ms");
    assert_eq!((&job["time_zone"], &job["lock_timeout_ms"]), (&json!("america/new_york"), &json!(250)));
    // A job that is being looked at is described under the same settings.
    let mut looked_at = asks.clone();
    looked_at["args"]["sql"] = json!("SELECT 1 WHERE current_setting('TimeZone') = 'x' LIMIT 1");
    assert_eq!(client.post("/v1/jobs/validate", &looked_at).json()["valid"], true);
    looked_at["time_zone"] = json!("Europe/Atlantis");
    let looked = client.post("/v1/jobs/validate", &looked_at);
    let found = looked.json();
    assert_eq!((&found["valid"], found["problems"].as_array().map(Vec::len)), (&json!(false), Some(1)), "{found}");
    assert_eq!(found["problems"][0]["pointer"], "/time_zone", "{found}");
    assert_eq!(found["problems"][0]["error"]["code"], "unknown_time_zone", "{found}");
    let saved = json!({"kind": "statement", "args": {"name": "zone"}});
    assert_eq!(zone(saved.clone()).0, "Asia/Tokyo,7s");
    let mut saved_asks = saved.clone();
    saved_asks["time_zone"] = json!("UTC");
    assert_eq!(zone(saved_asks).0, "UTC,7s");
    let listed = client.get("/v1/statements").json();
    assert_eq!(
        (&listed["statements"][0]["time_zone"], &listed["statements"][0]["lock_timeout_ms"]),
        (&json!("Asia/Tokyo"), &json!(7_000))
    );
    assert_eq!(client.get("/v1/targets/default").json()["settings"]["time_zone"], "Europe/Berlin");
    // A zone that no server knows ends the job, with the field's name; a retry asks for the same.
    let mut unknown = query;
    unknown["time_zone"] = json!("Europe/Atlantis");
    let (_, job) = zone(unknown);
    assert_eq!(
        (&job["state"], &job["error"]["code"], &job["attempt"]),
        (&json!("failed"), &json!("unknown_time_zone"), &json!(1))
    );
    assert!(job["error"]["message"].as_str().unwrap().starts_with("time_zone: "), "{job}");
    let again = client.post(&format!("/v1/jobs/{}/retry", job["id"].as_str().unwrap()), &json!({}));
    assert_eq!(again.json()["time_zone"], "Europe/Atlantis", "{}", again.text());
    running.ask_to_stop();
    running.wait().unwrap();
}

#[test]
fn a_saved_statement_is_checked_under_its_time_zone() {
    use slowlane::kinds::saved_statements::check;
    use slowlane::statements::file::Statement;
    let target = Postgres::shared().work();
    let mut session = as_operator(&target);
    let zoned = |zone: &str| {
        Statement::read("z.sql", &format!("-- kind = 'query'\n-- time_zone = '{zone}'\nSELECT now()")).unwrap()
    };
    assert!(check(&mut session, &zoned("Asia/Tokyo"), false).unwrap().is_valid());
    assert_eq!(shown(&mut session, "current_setting('TimeZone')"), "Asia/Tokyo");
    let refused = check(&mut session, &zoned("Europe/Atlantis"), false).unwrap();
    assert_eq!((refused.findings[0].line, refused.findings[0].error.code.as_str()), (2, "unknown_time_zone"));
}

#[test]
fn a_target_whose_settings_cant_be_is_refused_at_the_start() {
    let postgres = Postgres::shared();
    let (queue, work) = (postgres.queue(), postgres.work());
    let refused = |zone: Option<&str>, lock_timeout_ms: Option<i64>| {
        let mut target = Target::at(&work.dsn);
        target.spec.time_zone = zone.map(str::to_owned);
        target.spec.lock_timeout_ms = lock_timeout_ms;
        let config = slowlane::config::Config { listen: ([127, 0, 0, 1], 0).into(), ..Default::default() };
        let server = Server::builder().config(config).queue(&queue.dsn).target("default", target).build().unwrap();
        server.start().err().map(|error| error.to_string()).unwrap_or_default()
    };
    for (zone, limit, words) in [
        (Some("Europe/Atlantis"), None, "knows none called Europe/Atlantis"),
        (Some("UTC+2"), None, "time_zone: expected the name of a time zone"),
        (None, Some(0), "lock_timeout_ms: expected an integer from 1 to 3600000"),
        (None, Some(MAX_LOCK_TIMEOUT_MS + 1), "lock_timeout_ms: expected an integer"),
    ] {
        let error = refused(zone, limit);
        assert!(error.contains("target default") && error.contains(words), "{error}");
    }
}

#[test]
fn the_fields_are_checked_alike_by_http_by_sql_and_by_rust() {
    let app = TestApp::start();
    let mut session = app.queue.session();
    let mut by_sql = |arguments: &str| {
        let sql =
            format!("SELECT slowlane.enqueue('query', '{{\"sql\": \"SELECT 1\"}}', queue => 'nobodys', {arguments})");
        session.query(&sql, &[]).err().map(|error| error.message).unwrap_or_default()
    };
    let by_http = |field: &str, value: &Value| {
        let mut job = json!({"kind": "query", "args": {"sql": "SELECT 1"}});
        job[field] = value.clone();
        app.post("/v1/jobs", &job)
    };
    let all = app.target.session().query("SELECT name FROM pg_timezone_names", &[]).unwrap();
    let all: Vec<&str> = (0..all.len()).filter_map(|n| all.get(n, 0)).collect();
    assert!(all.len() > 300);
    for zone in &all {
        let is_none = zone.starts_with("posix/")
            || zone.starts_with("right/")
            || ["posixrules", "localtime", "Factory"].contains(zone);
        assert_eq!(is_time_zone(zone), !is_none, "{zone}");
        assert_eq!(by_sql(&format!("time_zone => '{zone}'")).is_empty(), !is_none, "{zone}");
    }
    for text in [
        "",
        "UTC+2",
        "UTC-2",
        "GMT+5",
        "Etc/GMT+13",
        "+02",
        "2",
        "<+02>-2",
        "Europe/Berlin1",
        "Europe/",
        "a b",
        "Zürich",
        "Etc/GMT+05",
        "-a",
        "localtime",
        "PosixRules",
        "factory",
        "posix/Europe/Berlin",
        "Right/UTC",
        "right/Etc/GMT+1",
    ] {
        assert!(!is_time_zone(text), "{text}");
        let expected = "time_zone: expected the name of a time zone, such as Europe/Berlin or UTC";
        assert_eq!(by_sql(&format!("time_zone => '{text}'")), format!("slowlane.enqueue: {expected}"), "{text}");
        let answer = by_http("time_zone", &json!(text));
        assert_eq!(answer.problem(), (422, "invalid_request".to_owned(), vec!["/time_zone".to_owned()]), "{text}");
    }
    assert_eq!(by_http("time_zone", &json!(7)).status, 422);
    assert_eq!(by_http("time_zone", &Value::Null).status, 202);
    for (value, good) in [
        (json!(0), false),
        (json!(1), true),
        (json!(MAX_LOCK_TIMEOUT_MS), true),
        (json!(MAX_LOCK_TIMEOUT_MS + 1), false),
        (json!("5s"), false),
        (json!(1.5), false),
    ] {
        assert_eq!(by_http("lock_timeout_ms", &value).status, if good { 202 } else { 422 }, "{value}");
        if value.is_i64() {
            assert_eq!(by_sql(&format!("lock_timeout_ms => {value}")).is_empty(), good, "{value}");
        }
    }
    let job = slowlane::JobSpec {
        time_zone: Some("Europe/Berlin".to_owned()),
        lock_timeout_ms: Some(77),
        queue: "nobodys".to_owned(),
        ..slowlane::JobSpec::new("query", slowlane::queue::RawJson::of(&json!({"sql": "SELECT 1"})).unwrap())
    };
    let id = slowlane::queue::insert(&mut app.queue.service(), &job).unwrap();
    let read = app.job(&id.to_string());
    assert_eq!((&read["time_zone"], &read["lock_timeout_ms"]), (&json!("Europe/Berlin"), &json!(77)));
    let wrong = slowlane::JobSpec { time_zone: Some("UTC+2".to_owned()), ..job };
    assert_eq!(wrong.check().unwrap_err().field, "time_zone");
}
