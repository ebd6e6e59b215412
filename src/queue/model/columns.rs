//! The columns that hold a job's spec, listed once: what inserts, reads, claims, ends and enqueues jobs takes them from here.
//!
//! Knows no statement. A test compares the list with the catalog.

use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_types::{Array, BigInt, Integer, Json, Jsonb, Nullable, SmallInt, Text, Timestamptz, Uuid};

use crate::db::prepared::Statement;
use crate::queue::model::JobSpec;

/// From one list: the names of the columns, and how a statement is given one spec or many.
macro_rules! spec_columns {
    (|$spec:ident| $($name:ident: $sql_type:ty = $value:expr;)+) => {
        /// The columns of `jobs` and `finished_jobs` that hold a [`JobSpec`]. `slowlane.enqueue` has arguments of the same names.
        pub const SPEC: &[&str] = &[$(stringify!($name)),+];

        /// Gives a statement an array of values for each column of [`SPEC`], in that order.
        pub fn bind_specs<'s>(statement: Statement<'s>, specs: &[&'s JobSpec]) -> Statement<'s> {
            statement$(.bind::<Array<$sql_type>, _>(specs.iter().map(|$spec| $value).collect::<Vec<_>>()))+
        }

        /// Gives a statement one value for each column of [`SPEC`], in that order.
        pub(in crate::queue) fn bind_spec<'s>(query: BoundQuery<'s>, $spec: &'s JobSpec) -> BoundQuery<'s> {
            query$(.bind::<$sql_type, _>($value))+
        }
    };
}

/// A statement that isn't kept prepared, with its values.
pub(in crate::queue) type BoundQuery<'s> = BoxedSqlQuery<'s, Pg, SqlQuery>;

spec_columns! { |spec|
    kind: Text = spec.kind.as_str();
    args: Json = &spec.args;
    target: Text = spec.target.as_str();
    queue: Text = spec.queue.as_str();
    priority: SmallInt = spec.priority;
    run_at: Nullable<Timestamptz> = spec.run_at;
    timeout_ms: BigInt = spec.timeout_ms;
    max_attempts: Integer = spec.max_attempts;
    labels: Jsonb = &spec.labels;
    result_ttl_ms: BigInt = spec.result_ttl_ms;
    time_zone: Nullable<Text> = spec.time_zone.as_deref();
    lock_timeout_ms: Nullable<BigInt> = spec.lock_timeout_ms;
    upload: Nullable<Uuid> = spec.upload;
}

/// What [`carried`] has beside the spec.
const OF_THE_LAST_ATTEMPT: &[&str] = &[
    "id",
    "retry_of",
    "created_at",
    "attempt",
    "lease",
    "worker_id",
    "started_at",
    "deadline_at",
    "backend_pid",
    "backend_start",
    "cancel_requested_at",
    "statement_version",
];

/// The columns that `finished_jobs` takes over from a row of `jobs`: its spec, and what is known of its last attempt.
pub fn carried() -> impl Iterator<Item = &'static str> {
    OF_THE_LAST_ATTEMPT.iter().chain(SPEC).copied()
}

/// Names as a list of SQL, each with `before` in front: `j.` makes columns of the table `j`.
pub fn sql_list(names: impl IntoIterator<Item = &'static str>, before: &str) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("{before}{name}")).collect();
    names.join(", ")
}

/// `count` parameters of a statement from `$first` on, as a list of SQL.
pub fn sql_parameters(first: usize, count: usize) -> String {
    let numbers: Vec<String> = (first..first + count).map(|number| format!("${number}")).collect();
    numbers.join(", ")
}
