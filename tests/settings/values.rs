//! Values: what is stored and read is what psql stores and reads with the same login.

use std::sync::Arc;

use serde_json::{Value, json};

use slowlane::target::{SessionAsks, SessionLoan, Target, TargetSettings, TargetSpec};

use super::{as_operator, login_has, result};
use crate::support::app::TestApp;
use crate::support::eventually;
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;

/// A table, a view of it, and settings of the login under which the same texts mean something else than elsewhere.
fn with_tables() -> TestApp {
    let app = TestApp::start();
    app.target.run(
        "CREATE SCHEMA app AUTHORIZATION slowlane_demo; CREATE SCHEMA other AUTHORIZATION slowlane_demo;
         CREATE TABLE app.t (id int PRIMARY KEY, day date, at timestamptz, took interval, bits bytea, size float8);
         CREATE TABLE app.copied (LIKE app.t); CREATE TABLE other.t (id int);
         CREATE TABLE app.texts (id int PRIMARY KEY, by_kind text, by_login text, day date);
         CREATE MATERIALIZED VIEW app.days AS SELECT at::date AS day, md5(concat_ws('|', day, at, took, bits, size)) AS form FROM app.t;
         ALTER TABLE app.t OWNER TO slowlane_demo; ALTER TABLE app.copied OWNER TO slowlane_demo;
         ALTER TABLE app.texts OWNER TO slowlane_demo; ALTER TABLE other.t OWNER TO slowlane_demo;
         ALTER MATERIALIZED VIEW app.days OWNER TO slowlane_demo; GRANT ALL ON SCHEMA public TO slowlane_demo",
    );
    login_has(
        &app.target,
        &[
            ("TimeZone", "'Europe/Berlin'"),
            ("DateStyle", "'SQL, DMY'"),
            ("IntervalStyle", "iso_8601"),
            ("bytea_output", "escape"),
            ("extra_float_digits", "-15"),
            ("search_path", "app"),
        ],
    );
    app
}

const FILE: &str = "id,day,at,took,bits,size\n1,03/04/2024,2024-06-01 00:30,1 day 02:00,\\x00ff,0.1\n2,31/12/2023,2024-01-01 00:10,-5 min,abc,1e22\n";
const FORM: &str = "md5(concat_ws('|', day, at, took, bits, size))";

fn stored(app: &TestApp, table: &str) -> String {
    // By a login of other settings: what is there, and not how it looks.
    app.target.text(&format!(
        "SELECT string_agg(t::text, ' ' ORDER BY id) FROM (SELECT id, to_char(day, 'YYYY-MM-DD') AS day, extract(epoch FROM at) AS at,
                extract(epoch FROM took) AS took, encode(bits, 'hex') AS bits, size FROM {table}) t"
    ))
}

fn run(app: &TestApp, job: &Value) -> Value {
    let job = app.ended(&app.submit(job));
    assert_eq!(job["state"], "succeeded", "{job}");
    job
}

#[test]
fn every_kind_stores_what_psql_stores_with_the_same_login() {
    let app = with_tables();
    let mut operator = as_operator(&app.target);
    // The reference: the same file by the login's own COPY.
    let mut copy = operator.copy_in("COPY copied FROM STDIN (FORMAT csv, HEADER)").unwrap();
    copy.send(FILE.as_bytes()).unwrap();
    copy.finish().unwrap();
    let expected = stored(&app, "app.copied");
    assert!(expected.contains("2024-04-03") && expected.contains("1717194600"), "{expected}");
    let upload = app.send("POST", "/v1/uploads", &[("content-type", "text/csv")], FILE.as_bytes()).json();
    let import = |more: Value| {
        let mut args = json!({"upload": upload["id"], "format": "csv", "table": "t"});
        args.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        run(&app, &json!({"kind": "import", "args": args, "max_attempts": 1}))
    };
    import(json!({}));
    assert_eq!(stored(&app, "app.t"), expected);
    for more in [json!({"reject_limit": 1}), json!({"on_conflict": "update"})] {
        app.target.run("TRUNCATE app.t");
        import(more);
        assert_eq!(stored(&app, "app.t"), expected);
    }
    let rows: Vec<Value> = vec![
        json!({"id": 1, "day": "03/04/2024", "at": "2024-06-01 00:30", "took": "1 day 02:00", "bits": "\\x00ff", "size": 0.1}),
    ];
    let lines = rows.iter().map(|row| row.to_string() + "\n").collect::<String>();
    let ndjson = app.send("POST", "/v1/uploads", &[("content-type", "application/x-ndjson")], lines.as_bytes()).json();
    app.target.run("DELETE FROM app.t WHERE id = 1");
    run(&app, &json!({"kind": "import", "args": {"upload": ndjson["id"], "format": "ndjson", "table": "t"}}));
    assert_eq!(stored(&app, "app.t"), expected);
    // A view and a text of every value: form becomes value.
    let by_login = |operator: &mut slowlane::pq::Session, sql: &str| {
        operator.query(sql, &[]).unwrap().get(0, 0).unwrap().to_owned()
    };
    let days = "SELECT string_agg(extract(epoch FROM day) || form, ' ' ORDER BY day, form) FROM app.days";
    operator.execute_batch("REFRESH MATERIALIZED VIEW days").unwrap();
    let view = app.target.text(days);
    app.target.run("REFRESH MATERIALIZED VIEW app.days WITH NO DATA");
    run(&app, &json!({"kind": "refresh", "args": {"view": "days"}}));
    assert_eq!(app.target.text(days), view);
    let texts = by_login(&mut operator, &format!("SELECT string_agg({FORM} || at::date, ' ' ORDER BY id) FROM t"));
    let insert = format!("INSERT INTO texts (id, by_kind) SELECT id, {FORM} || at::date FROM t");
    run(&app, &json!({"kind": "execute", "args": {"statements": [{"sql": insert}]}}));
    let kept = "SELECT string_agg(by_kind, ' ' ORDER BY id) FROM app.texts";
    assert_eq!(app.target.text(kept), texts);
    // A parameter is read as a literal of psql's is.
    let update = json!({"sql": "UPDATE texts SET day = $1", "params": ["01/02/2024"]});
    run(&app, &json!({"kind": "execute", "args": {"statements": [update]}}));
    assert_eq!(app.target.text("SELECT DISTINCT day = '2024-02-01' FROM app.texts"), "t");
    app.target.run("TRUNCATE app.texts; INSERT INTO app.texts (id) SELECT id FROM app.t");
    let value = format!("(SELECT {FORM} || t.at::date FROM t WHERE t.id = texts.id)");
    let backfill = json!({"table": "texts", "set": {"by_kind": value, "day": "'01/02/2024'::date"}, "where": "'01/02/2024'::date = $1", "params": ["1/2/2024"]});
    run(&app, &json!({"kind": "backfill", "args": backfill}));
    assert_eq!(app.target.text(kept), texts);
    assert_eq!(app.target.text("SELECT DISTINCT day = '2024-02-01' FROM app.texts"), "t");
    let index = json!({"action": "create_index", "table": "t", "name": "t_day", "columns": [{"column": "day"}]});
    run(&app, &json!({"kind": "maintain", "args": index}));
    assert_eq!(app.target.count("SELECT count(*) FROM pg_indexes WHERE schemaname = 'app' AND indexname = 't_day'"), 1);
    // A query's texts are of one form, and mean the same: the order of days and months is the login's.
    let job = app.query(
        "SELECT '01/02/2024'::date AS d, at, took, bits, size, '3/4/24'::date FROM t WHERE id = $1 AND day = $2",
        &json!([1, "3/4/2024"]),
    );
    assert_eq!(
        result(&app, &job, "csv"),
        "d,at,took,bits,size,date\n2024-02-01,2024-06-01 00:30:00+02,1 day 02:00:00,\\x00ff,0.1,2024-04-03\n"
    );
    let insert = "INSERT INTO texts VALUES (9, md5('2024-02-01'::date::text))";
    let validated =
        app.post("/v1/jobs/validate", &json!({"kind": "query", "args": {"sql": "SELECT '31/12/2024'::date"}}));
    assert_eq!(validated.json()["valid"], true, "{}", validated.text());
    let validated = app.post("/v1/jobs/validate", &json!({"kind": "execute", "args": {"statements": [{"sql": insert}, {"sql": "UPDATE texts SET day = '31/12/2024'"}]}}));
    assert_eq!(validated.json()["valid"], true, "{}", validated.text());
}

/// What is pinned in a query, as psql would be told it.
const PINNED: &str = "SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; SET extra_float_digits = 1; SET xmlbinary = 'base64';";

const MANY_TYPES: &str = "SELECT g AS n, '01/02/2024'::date + g AS day, timestamptz '2024-03-30 23:30:00.125+00' + g * interval '1 hour 0.5 s' AS at,
    timestamp '2024-03-31 02:30' + g * interval '7 months' AS local, timetz '12:00:00.5+05:30' AS tz, time '23:59:59.999999' AS t,
    g * interval '1 year -2 months 3 days -04:05:06.7' AS took, decode(lpad(to_hex(g), 4, '0'), 'hex') AS bits, (1.0 / 3 + g)::float8 AS f8,
    (1.0 / 3 + g)::float4 AS f4, 1e23::float8 * g AS large, 'NaN'::float8 AS nan, '-infinity'::float8 AS low, 12.5::numeric::money AS cash,
    ARRAY[timestamptz '2024-06-01 00:30+00', 'infinity'] AS many, tstzrange('2024-06-01 00:30+00', '2024-06-02 00:30+00') AS span,
    daterange('2024-06-01', '2024-07-01') AS days, ROW(date '2024-06-01', interval '-1 day', '\\xff'::bytea, 0.1::float8) AS record,
    xmlelement(name a, xmlattributes('\\x00ff'::bytea AS b)) AS x, jsonb '{\"a\": [1, 2.50]}' AS j, 12345678901234567890.1234::numeric AS big,
    point(1.1, 2.2) AS p, ARRAY[0.1::float8, 1e300] AS floats, int4range(1, 5) AS ints, inet '10.0.0.1/8' AS net, true AS yes, 'ä\"\n,x' AS txt,
    date '0044-03-15 BC' AS old, timestamptz '1800-06-01 12:00+00' AS older, 'infinity'::timestamptz AS never, '12345-01-01'::date AS far,
    to_char(timestamptz '2024-06-01 00:30+00', 'TMMonth YYYY HH24') AS spelt, (timestamptz '2024-06-01 23:30+00')::date AS its_day,
    age(timestamptz '2024-06-01 00:30+00', '2024-01-31 12:00+00') AS age, date_trunc('day', timestamptz '2024-03-31 12:00+00') AS midnight,
    md5((timestamptz '2024-06-01 00:30+00')::text) AS form FROM generate_series(-2, 2) g ORDER BY g";

#[test]
fn a_result_is_byte_for_byte_what_psql_writes_with_the_same_login() {
    let app = TestApp::start();
    let database = app.target.name().to_owned();
    let sets: [&[(&str, &str)]; 6] = [
        &[],
        &[("TimeZone", "'Europe/Berlin'"), ("DateStyle", "'SQL, DMY'")],
        &[
            ("TimeZone", "'America/St_Johns'"),
            ("DateStyle", "'German'"),
            ("IntervalStyle", "iso_8601"),
            ("bytea_output", "escape"),
        ],
        &[
            ("TimeZone", "'Asia/Kathmandu'"),
            ("DateStyle", "'Postgres, DMY'"),
            ("IntervalStyle", "sql_standard"),
            ("extra_float_digits", "0"),
        ],
        &[
            ("TimeZone", "'Australia/Lord_Howe'"),
            ("DateStyle", "'ISO, DMY'"),
            ("IntervalStyle", "postgres_verbose"),
            ("extra_float_digits", "-15"),
            ("xmlbinary", "hex"),
        ],
        &[
            ("TimeZone", "'<+03>-3'"),
            ("DateStyle", "'SQL, MDY'"),
            ("lc_monetary", "'C'"),
            ("extra_float_digits", "3"),
            ("xmloption", "document"),
        ],
    ];
    for settings in sets {
        app.target.run(&format!("ALTER ROLE slowlane_demo IN DATABASE {database} RESET ALL"));
        login_has(&app.target, settings);
        let mut psql = app.target.program("psql", &app.target.dsn);
        // Nothing but the login says what it is set to.
        psql.env_remove("PGTZ").env("PGCLIENTENCODING", "UTF8");
        let output =
            psql.args(["-X", "-q", "--csv", "-v", "ON_ERROR_STOP=1", "-c", PINNED, "-c", MANY_TYPES]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let job = app.query(MANY_TYPES, &json!([]));
        assert_eq!(result(&app, &job, "csv"), String::from_utf8(output.stdout).unwrap(), "{settings:?}");
    }
}

#[test]
fn times_in_json_are_what_to_json_writes() {
    let app = TestApp::start();
    let database = app.target.name().to_owned();
    let sql = "SELECT at, to_json(at)::text AS at_json, local, to_json(local)::text AS local_json, at::date AS day, to_json(at::date)::text AS day_json,
               many, many::text AS many_text, span, to_json(span)::text AS span_json, record, record::text AS record_text
          FROM (SELECT at, at::timestamp AS local, ARRAY[at, NULL] AS many, tstzrange(at, NULL) AS span, ROW(at, 1) AS record
                  FROM (SELECT timestamptz '2024-03-30 22:30:00.125+00' + g * interval '30 minutes' AS at FROM generate_series(0, 8) g
                        UNION ALL VALUES ('1800-06-01 12:00:00.5+00'::timestamptz), ('infinity'), ('-infinity'), ('0044-03-15 12:00+00 BC'),
                               ('12345-06-07 08:09:10+00'), ('0001-01-01 12:00:00+00')) x) y";
    for zone in
        ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Kathmandu", "Pacific/Apia", "Africa/Monrovia", "Etc/GMT+12"]
    {
        app.target.run(&format!("ALTER ROLE slowlane_demo IN DATABASE {database} SET TimeZone = '{zone}'"));
        let job = app.query(sql, &json!([]));
        let data = result(&app, &job, "ndjson");
        assert_eq!(data.lines().count(), 15);
        for line in data.lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            for column in ["at", "local", "day", "span"] {
                let by_server: Value = serde_json::from_str(row[format!("{column}_json")].as_str().unwrap()).unwrap();
                assert_eq!(row[column], by_server, "{zone}: {line}");
            }
            // Within an array or a composite the server's own texts stay.
            assert_eq!((&row["many"], &row["record"]), (&row["many_text"], &row["record_text"]), "{zone}: {line}");
        }
    }
}

#[test]
fn a_backfill_goes_by_keys_that_are_the_same_whatever_the_login_writes() {
    let app = TestApp::start();
    let keys = [
        ("date", "'2024-01-01'::date + g"),
        ("timestamptz", "'2024-10-27 00:00:00.123456+00'::timestamptz + g * interval '11 minutes 0.000001 s'"),
        ("timestamp", "'2024-10-27 00:00:00.123456'::timestamp + g * interval '1 day'"),
        ("interval", "(g - 30) * interval '1 month -3 days 04:05:06.789'"),
        ("bytea", "decode(lpad(to_hex(g * 7919), 8, '0'), 'hex')"),
        ("float8", "g / 7.0::float8 + 1e15"),
        ("float4", "g / 7.0::float4"),
        ("money", "(g * 1234.56)::numeric::money"),
        ("timetz", "timetz '00:00:00+05:30' + g * interval '1 minute'"),
        ("tstzrange", "tstzrange('2024-10-27 00:00+00'::timestamptz + g * interval '1 h', NULL)"),
        ("date[]", "ARRAY['2024-01-01'::date + g, '2024-02-03']"),
    ];
    for (n, (kind, _)) in keys.iter().enumerate() {
        let value = keys[n].1;
        app.target.run(&format!(
            "CREATE TABLE public.k{n} (k {kind}, part int, n int NOT NULL DEFAULT 0, seen text, PRIMARY KEY (k, part));
             INSERT INTO public.k{n} (k, part) SELECT {value}, g % 2 FROM generate_series(1, 60) g;
             ALTER TABLE public.k{n} OWNER TO slowlane_demo"
        ));
    }
    for (style, zone, order) in
        [("sql_standard", "America/St_Johns", "German"), ("postgres_verbose", "Africa/Monrovia", "SQL, DMY")]
    {
        login_has(
            &app.target,
            &[
                ("TimeZone", &format!("'{zone}'")),
                ("DateStyle", &format!("'{order}'")),
                ("IntervalStyle", style),
                ("bytea_output", "escape"),
                ("extra_float_digits", "-15"),
            ],
        );
        for (n, (kind, _)) in keys.iter().enumerate() {
            let table = format!("public.k{n}");
            let args =
                json!({"table": table, "set": {"n": "n + 1", "seen": "k::text"}, "batch_rows": 7, "max_rate": 7000});
            let job = app.ended(&app.submit(&json!({"kind": "backfill", "args": args, "max_attempts": 1})));
            assert_eq!(
                (&job["state"], &job["output"]["rows_affected"]),
                (&json!("succeeded"), &json!(60)),
                "{kind}: {job}"
            );
            assert!(job["output"]["batches"].as_i64().unwrap() > 2, "{kind}: {job}");
            // What the caller's expression makes of a key is written as the login writes it.
            let unlike = format!("SELECT count(*) FROM {table} WHERE seen <> k::text");
            assert_eq!(as_operator(&app.target).query(&unlike, &[]).unwrap().get(0, 0), Some("0"), "{kind}");
        }
    }
    for (n, (kind, _)) in keys.iter().enumerate() {
        let times = format!("SELECT string_agg(DISTINCT n::text, ',') FROM public.k{n}");
        assert_eq!(app.target.text(&times), "2", "{kind}");
    }
}

#[test]
fn a_backfill_goes_on_where_it_was_after_the_login_was_changed() {
    let app = TestApp::start();
    app.target.run(
        "CREATE TABLE public.k (k timestamptz PRIMARY KEY, n int NOT NULL DEFAULT 0);
         INSERT INTO public.k (k) SELECT '2024-10-27 00:00+00'::timestamptz + g * interval '20 minutes' FROM generate_series(1, 40) g;
         ALTER TABLE public.k OWNER TO slowlane_demo",
    );
    login_has(&app.target, &[("DateStyle", "'SQL, DMY'"), ("TimeZone", "'Europe/Berlin'")]);
    // One batch of ten in each second.
    let args = json!({"table": "public.k", "set": {"n": "n + 1"}, "batch_rows": 10, "max_rate": 10});
    let id = app.submit(&json!({"kind": "backfill", "args": args}));
    eventually("a batch is done", || app.target.count("SELECT count(*) FROM public.k WHERE n > 0") > 0);
    assert!(app.post(&format!("/v1/jobs/{id}/pause"), &json!({})).status < 300);
    eventually("it is paused", || app.job(&id)["state"] == "paused");
    let cursor = app.queue.text("SELECT cursor::text FROM job_checkpoints");
    assert!(cursor.contains("2024-10-27 ") && cursor.contains("+00"), "{cursor}");
    login_has(&app.target, &[("DateStyle", "'German'"), ("TimeZone", "'America/New_York'")]);
    assert!(app.post(&format!("/v1/jobs/{id}/resume"), &json!({})).status < 300);
    let job = app.ended(&id);
    assert_eq!((&job["state"], &job["output"]["rows_affected"]), (&json!("succeeded"), &json!(40)), "{job}");
    assert_eq!(app.target.text("SELECT string_agg(DISTINCT n::text, ',') FROM public.k"), "1");
}

/// One that was opened for somebody who got another one lies in the pool, and nobody has had it yet.
#[test]
fn a_session_that_was_never_lent_is_closed_too_when_the_logins_settings_have_changed() {
    let work = Postgres::shared().work();
    login_has(&work, &[("TimeZone", "'Asia/Tokyo'")]);
    // A session is ready a second after it has read its login's settings.
    let proxy = Proxy::before(&work.dsn);
    let dsn = proxy.dsn(&work.dsn).with("options", "-c post_auth_delay=1");
    let settings = TargetSettings { dsn, spec: TargetSpec::default() };
    let target = Target::new("slow", settings, 2, &Arc::default());
    target.verify().unwrap();
    let lend = || target.session("test", crate::support::PATIENCE, &SessionAsks::default()).unwrap().0;
    let zone = |loan: &mut SessionLoan| super::shown(&mut loan.inner, "current_setting('TimeZone')");
    let first = lend();
    let begun = proxy.accepted();
    let second = std::thread::scope(|scope| {
        let second = scope.spawn(lend);
        eventually("another one is opened", || proxy.accepted() > begun);
        drop(first);
        second.join().unwrap()
    });
    let mine = "SELECT count(*) FROM pg_stat_activity
         WHERE usename = 'slowlane_demo' AND datname = current_database() AND application_name NOT LIKE 'slowlane %'";
    eventually("it lies in the pool", || work.count(mine) == 2);
    login_has(&work, &[("TimeZone", "'America/New_York'")]);
    drop(second);
    let mut both = [lend(), lend()];
    assert_eq!(both.each_mut().map(zone), ["America/New_York", "America/New_York"]);
}
