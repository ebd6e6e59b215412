//! The heavy statements of the demo.

use serde::Serialize;

/// A heavy statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Statement {
    /// Waits in the server for 2 s, and costs nothing.
    Sleep,
    /// Waits for 1 s.
    ShortSleep,
    /// Keeps a core busy: medians over every flight.
    Cpu,
}

impl Statement {
    /// The statement.
    pub fn sql(self) -> &'static str {
        match self {
            Statement::Sleep => "SELECT pg_sleep(2)",
            Statement::ShortSleep => "SELECT pg_sleep(1)",
            Statement::Cpu => {
                "SELECT carrier, percentile_cont(0.5) WITHIN GROUP (ORDER BY arr_delay), \
                 stddev(distance / nullif(air_time, 0)) FROM flights GROUP BY 1"
            }
        }
    }

    /// What it is called in a table.
    pub fn name(self) -> &'static str {
        match self {
            Statement::Sleep => "pg_sleep(2)",
            Statement::ShortSleep => "pg_sleep(1)",
            Statement::Cpu => "aggregate",
        }
    }
}
