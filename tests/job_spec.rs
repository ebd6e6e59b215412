//! Each field of a spec is a column of both tables and an argument of `slowlane.enqueue`, and comes back as it went in.

use std::collections::BTreeSet;

use diesel::connection::SimpleConnection;
use serde_json::{Value, json};
use slowlane::queue::intake::insert::{self, Inserted};
use slowlane::queue::intake::request::{Principal, Submission};
use slowlane::queue::lifecycle::cancel;
use slowlane::queue::model::{Labels, SPEC, carried};
use slowlane::queue::record::read;
use slowlane::queue::{self, Job, JobSpec, RawJson};
use uuid::Uuid;

use crate::support::postgres::{Database, Postgres};

fn names(queue: &Database, sql: &str) -> BTreeSet<String> {
    let rows = queue.session().query(sql, &[]).unwrap();
    (0..rows.len()).map(|n| rows.get(n, 0).unwrap().to_owned()).collect()
}

/// Names and types, but for those that only one of the tables may have NULLs in.
fn columns(queue: &Database, table: &str) -> BTreeSet<String> {
    names(
        queue,
        &format!(
            "SELECT format('%s %s', attname, format_type(atttypid, atttypmod)) FROM pg_attribute
              WHERE attrelid = 'slowlane.{table}'::regclass AND attnum > 0 AND NOT attisdropped"
        ),
    )
}

fn owned(names: impl IntoIterator<Item = &'static str>) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

#[test]
fn the_list_of_columns_is_the_catalogs() {
    let queue = Postgres::shared().queue();
    let (live, finished) = (columns(&queue, "jobs"), columns(&queue, "finished_jobs"));
    let shared: BTreeSet<String> =
        live.intersection(&finished).filter_map(|column| Some(column.split_once(' ')?.0.to_owned())).collect();
    // What a job has when it ends is written anew; all else is carried over.
    let mut expected = owned(carried());
    expected.extend(owned(["state", "interruptions", "version", "error"]));
    assert_eq!(shared, expected);
    let arguments = names(
        &queue,
        "SELECT unnest(proargnames) FROM pg_proc WHERE proname = 'enqueue' AND pronamespace = 'slowlane'::regnamespace",
    );
    let mut expected = owned(SPEC.iter().copied());
    expected.insert("notify".to_owned());
    assert_eq!(arguments, expected);
    let fields = serde_json::to_value(JobSpec::default()).unwrap();
    assert_eq!(fields.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>(), owned(SPEC.iter().copied()));
}

/// A spec in which no field has its default.
fn unusual(upload: Uuid) -> JobSpec {
    let spec = JobSpec {
        kind: "query".to_owned(),
        args: RawJson::of(&json!({"sql": "SELECT 1"})).unwrap(),
        target: "warehouse".to_owned(),
        queue: "reports".to_owned(),
        priority: 2,
        run_at: Some("2999-01-01T00:00:00Z".parse().unwrap()),
        timeout_ms: 12_345,
        max_attempts: 7,
        labels: Labels::from([("team", "x")]),
        result_ttl_ms: 54_321,
        time_zone: Some("Europe/Berlin".to_owned()),
        lock_timeout_ms: Some(678),
        upload: Some(upload),
    };
    let (given, default) = (json_of(&spec), json_of(&JobSpec::default()));
    for field in SPEC {
        assert_ne!(given[field], default[field], "{field}");
    }
    spec
}

fn json_of(spec: &JobSpec) -> Value {
    serde_json::to_value(spec).unwrap()
}

#[test]
fn every_field_comes_back_as_it_went_in() {
    let queue = Postgres::shared().queue();
    let mut connection = queue.service();
    let upload = Uuid::now_v7();
    queue.run(&format!(
        "INSERT INTO uploads (id, state, content_type, content_encoding, bytes, parts, created_at, expires_at)
         VALUES ('{upload}', 'ready', 'text/csv', 'identity', 0, 0, now(), now() + interval '1 day')"
    ));
    let spec = unusual(upload);
    let by_json: JobSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(json_of(&by_json), json_of(&spec));
    let accept = Submission::new(Principal::default(), spec.clone());
    let inserted = insert::insert(&mut connection, &[&accept]).unwrap();
    let [Inserted::Created(told)] = inserted.as_slice() else { panic!("{inserted:?}") };
    assert_eq!(json_of(&told.spec), json_of(&spec));
    let mut owner = queue.owner();
    owner.batch_execute("SET search_path = slowlane").unwrap();
    let enqueued = queue::insert(&mut owner, &spec).unwrap();
    for id in [accept.id, enqueued] {
        let mut look = || -> Job { read::job(&mut connection, id).unwrap().unwrap() };
        assert_eq!(json_of(&look().spec), json_of(&spec), "while it waits");
        cancel::request(&mut queue.service(), id).unwrap();
        assert_eq!(json_of(&look().spec), json_of(&spec), "when it has ended");
    }
}

#[test]
fn a_field_that_is_unknown_or_of_another_type_is_no_spec() {
    let plain: JobSpec = serde_json::from_str(r#"{"kind": "query", "args": {"n": 1.10}}"#).unwrap();
    assert_eq!((plain.args.text(), plain.queue.as_str(), plain.max_attempts), (r#"{"n": 1.10}"#, "default", 3));
    assert!(plain.check().is_ok());
    assert_eq!(serde_json::from_str::<JobSpec>("{}").unwrap().check().unwrap_err().field, "kind");
    for wrong in [r#"{"kind": "query", "principal": "root"}"#, r#"{"kind": "query", "priority": "5"}"#] {
        assert!(serde_json::from_str::<JobSpec>(wrong).is_err(), "{wrong}");
    }
}
