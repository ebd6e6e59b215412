//! A program that embeds slowlane, with a kind of work of its own: delays by carrier and month over the demo's flights,
//! written into a table one month at a time. It shows how far it is, and goes on where it was after a crash.
//!
//! `slowlane dev` makes the databases, and leaves their addresses in the file that it names at its start:
//!
//! ```sh
//! set -a; . ~/.local/share/slowlane/dev/urls.env; set +a
//! cargo run --example custom_kind
//! curl -i localhost:8081/v1/jobs -H 'content-type: application/json' -d '{"kind":"delay_statistics","args":{}}'
//! ```

use std::error::Error;
use std::net::SocketAddr;

use diesel::connection::SimpleConnection;
use diesel::dsl::{count, count_star, sum};
use diesel::prelude::*;
use serde::{Deserialize, Serialize};
use slowlane::queue::model::ProgressBasis;
use slowlane::queue::record::log::LogLevel;
use slowlane::work::progress::Report;
use slowlane::{ArgError, DatabaseUrl, Server, Work, WorkContext, WorkError};

diesel::table! {
    flights (carrier, month) {
        carrier -> Text,
        month -> SmallInt,
        arr_delay -> Nullable<SmallInt>,
    }
}

diesel::table! {
    delay_statistics (carrier, month) {
        carrier -> Text,
        month -> SmallInt,
        flights -> BigInt,
        arrived -> BigInt,
        late -> BigInt,
        delay_minutes -> Nullable<BigInt>,
    }
}

const TABLE: &str =
    "CREATE TABLE IF NOT EXISTS delay_statistics (carrier text, month smallint, flights bigint NOT NULL,
    arrived bigint NOT NULL, late bigint NOT NULL, delay_minutes bigint, PRIMARY KEY (carrier, month))";

/// The arguments, which are the kind itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DelayStatistics {
    /// The first month, 1 to 12.
    from_month: i16,
    /// The last one.
    to_month: i16,
}

impl Default for DelayStatistics {
    fn default() -> Self {
        DelayStatistics { from_month: 1, to_month: 12 }
    }
}

/// The checkpoint: what the next attempt needs to know, should this one not come to its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Cursor {
    next_month: i16,
    rows: usize,
}

/// What the job shows as its output.
#[derive(Debug, Serialize)]
struct Written {
    rows: usize,
    /// The first month of the attempt that came to the end.
    began_at: i16,
}

impl Work for DelayStatistics {
    const KIND: &'static str = "delay_statistics";
    // A month that is written again is the same.
    const REPEATABLE: bool = true;
    type Output = Written;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        let mut errors = Vec::new();
        if !(1..=12).contains(&self.from_month) {
            errors.push(ArgError::new("/from_month", "expected 1 to 12"));
        }
        if !(self.from_month..=12).contains(&self.to_month) {
            errors.push(ArgError::new("/to_month", "expected from_month to 12"));
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Written, WorkError> {
        let mut connection = ctx.diesel()?;
        connection.transaction(make_table)?;
        let mut cursor = ctx.checkpoint()?.unwrap_or(Cursor { next_month: self.from_month, rows: 0 });
        let began_at = cursor.next_month;
        if began_at > self.from_month {
            ctx.log(LogLevel::Info, &format!("going on with month {began_at}"));
        }
        while cursor.next_month <= self.to_month {
            // Between two steps is the place to stop at when somebody asks for it.
            ctx.check()?;
            let rows = connection.transaction(|connection| write_month(connection, cursor.next_month))?;
            // Saved after the month's COMMIT: a crash between the two repeats that month, and that is harmless.
            cursor = Cursor { next_month: cursor.next_month + 1, rows: cursor.rows + rows };
            ctx.save_checkpoint(&cursor)?;
            ctx.progress(Report {
                phase: "writing statistics".to_owned(),
                done: i64::from(cursor.next_month - self.from_month),
                total: Some(i64::from(self.to_month - self.from_month + 1)),
                unit: "months".to_owned(),
                basis: ProgressBasis::Exact,
            });
        }
        Ok(Written { rows: cursor.rows, began_at })
    }
}

/// Two at once would both find that there is none, and one would fail.
fn make_table(connection: &mut PgConnection) -> QueryResult<()> {
    diesel::sql_query("SELECT pg_advisory_xact_lock(hashtext('delay_statistics'))").execute(connection)?;
    connection.batch_execute(TABLE)
}

/// Writes one month's rows in place of those that are there. Says how many.
fn write_month(connection: &mut PgConnection, month: i16) -> QueryResult<usize> {
    // Two jobs may be at the same month: the second waits for the first, and writes it once more.
    diesel::sql_query("SELECT pg_advisory_xact_lock(hashtext('delay_statistics'))").execute(connection)?;
    diesel::delete(delay_statistics::table.filter(delay_statistics::month.eq(month))).execute(connection)?;
    flights::table
        .filter(flights::month.eq(month))
        .group_by((flights::carrier, flights::month))
        .select((
            flights::carrier,
            flights::month,
            count_star(),
            count(flights::arr_delay),
            // One that never arrived isn't counted: NULL is no match for a filter.
            count(flights::month).aggregate_filter(flights::arr_delay.assume_not_null().gt(15)),
            sum(flights::arr_delay),
        ))
        .insert_into(delay_statistics::table)
        .execute(connection)
}

fn main() -> Result<(), Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let listen: SocketAddr = std::env::var("LISTEN").unwrap_or("127.0.0.1:8081".to_owned()).parse()?;
    Server::builder()
        .queue(DatabaseUrl::env("SLOWLANE_DATABASE_URL"))
        .target("default", DatabaseUrl::env("SLOWLANE_DEMO_URL"))
        .kind::<DelayStatistics>()
        .workers(2)
        .listen(listen)
        .run()?;
    Ok(())
}
