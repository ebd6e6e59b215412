//! `carrier_report`: the demo's example of a kind that a Rust developer writes: typed Diesel, several statements,
//! progress between them.
//!
//! It reads the demo's flights and returns one line for each carrier.

use diesel::prelude::*;
use serde::{Deserialize, Serialize};

use crate::queue::model::ProgressBasis;
use crate::work::context::WorkContext;
use crate::work::progress::Report;
use crate::work::{ArgError, Work, WorkError};

/// As much of the demo's tables as the report reads.
mod tables {
    diesel::table! {
        airlines (carrier) {
            carrier -> Text,
            name -> Text,
        }
    }

    diesel::table! {
        flights (year, month, day, carrier, flight) {
            year -> SmallInt,
            month -> SmallInt,
            day -> SmallInt,
            carrier -> Text,
            flight -> Integer,
            dep_time -> Nullable<SmallInt>,
            arr_delay -> Nullable<SmallInt>,
            distance -> SmallInt,
        }
    }

    diesel::allow_tables_to_appear_in_same_query!(airlines, flights);
}
use tables::{airlines, flights};

/// The arguments of a `carrier_report`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarrierReport {
    /// Only this month, 1 to 12; the whole year when absent.
    #[serde(default)]
    pub month: Option<i16>,
}

/// One carrier's year or month.
#[derive(Debug, Serialize, PartialEq, Eq)]
pub struct CarrierLine {
    /// The carrier's code.
    pub carrier: String,
    /// Its name.
    pub name: String,
    /// Flights planned.
    pub flights: i64,
    /// Flights that never left.
    pub cancelled: i64,
    /// Flights that arrived more than 15 minutes late.
    pub late: i64,
    /// Miles planned.
    pub miles: i64,
}

impl Work for CarrierReport {
    const KIND: &'static str = "carrier_report";
    const REPEATABLE: bool = true;
    const FENCED: bool = true;
    type Output = Vec<CarrierLine>;

    fn check(&self) -> Result<(), Vec<ArgError>> {
        match self.month {
            Some(month) if !(1..=12).contains(&month) => Err(vec![ArgError::new("/month", "expected 1 to 12")]),
            _ => Ok(()),
        }
    }

    fn run(&self, ctx: &mut WorkContext<'_>) -> Result<Vec<CarrierLine>, WorkError> {
        let mut connection = ctx.diesel()?;
        let carriers: Vec<(String, String)> = airlines::table
            .order(airlines::carrier)
            .select((airlines::carrier, airlines::name))
            .load(&mut *connection)?;
        let total = i64::try_from(carriers.len()).unwrap_or(i64::MAX);
        let mut lines = Vec::with_capacity(carriers.len());
        for (carrier, name) in carriers {
            ctx.check()?;
            lines.push(self.line(&mut connection, carrier, name)?);
            ctx.progress(Report {
                phase: "counting flights".to_owned(),
                done: i64::try_from(lines.len()).unwrap_or(i64::MAX),
                total: Some(total),
                unit: "carriers".to_owned(),
                basis: ProgressBasis::Exact,
            });
        }
        ctx.count(|statistics| statistics.rows_returned = total);
        Ok(lines)
    }
}

impl CarrierReport {
    fn line(&self, connection: &mut PgConnection, carrier: String, name: String) -> QueryResult<CarrierLine> {
        let mut all = flights::table.filter(flights::carrier.eq(carrier.clone())).into_boxed();
        let mut gone = flights::table.filter(flights::carrier.eq(carrier.clone())).into_boxed();
        let mut late = flights::table.filter(flights::carrier.eq(carrier.clone())).into_boxed();
        if let Some(month) = self.month {
            all = all.filter(flights::month.eq(month));
            gone = gone.filter(flights::month.eq(month));
            late = late.filter(flights::month.eq(month));
        }
        let (count, miles): (i64, Option<i64>) =
            all.select((diesel::dsl::count_star(), diesel::dsl::sum(flights::distance))).first(connection)?;
        Ok(CarrierLine {
            flights: count,
            miles: miles.unwrap_or(0),
            cancelled: gone.filter(flights::dep_time.is_null()).count().get_result(connection)?,
            late: late.filter(flights::arr_delay.gt(15)).count().get_result(connection)?,
            carrier,
            name,
        })
    }
}
