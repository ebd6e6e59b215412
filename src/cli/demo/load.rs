//! `slowlane demo load`: nycflights13, shipped compressed in the program, loaded once and whole.

use std::io::{Read, Write};
use std::time::Duration;

use diesel::connection::SimpleConnection;
use diesel::pg::{CopyFormat, CopyHeader, PgConnection};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};

use crate::cli::{Failure, plain_dsn_reader};
use crate::config;
use crate::db::pool::Manager;
use crate::dsn::Dsn;

pub(super) const SCHEMA: &str = include_str!("../../../demo/schema.sql");
/// Each table's file: those that others refer to first.
pub(super) const FILES: [(&str, &[u8]); 5] =
    [("airlines", AIRLINES), ("airports", AIRPORTS), ("planes", PLANES), ("weather", WEATHER), ("flights", FLIGHTS)];
const AIRLINES: &[u8] = include_bytes!("../../../demo/airlines.csv.zst");
const AIRPORTS: &[u8] = include_bytes!("../../../demo/airports.csv.zst");
const PLANES: &[u8] = include_bytes!("../../../demo/planes.csv.zst");
const WEATHER: &[u8] = include_bytes!("../../../demo/weather.csv.zst");
const FLIGHTS: &[u8] = include_bytes!("../../../demo/flights.csv.zst");
/// Two that load at once take turns.
pub(super) const LOCK_KEY: i64 = 0x736c_6f77_6465_6d6f;
/// How many tables the demo has.
const TABLES: i64 = 5;
/// How long loading may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(300);

mod tables {
    diesel::table! {
        airlines (carrier) { carrier -> Text, name -> Text, }
    }
    diesel::table! {
        airports (faa) {
            faa -> Text, name -> Text, lat -> Double, lon -> Double, alt -> Integer, tz -> Nullable<SmallInt>,
            dst -> Nullable<Text>, tzone -> Nullable<Text>,
        }
    }
    diesel::table! {
        planes (tailnum) {
            tailnum -> Text, year -> Nullable<SmallInt>, #[sql_name = "type"] type_ -> Text, manufacturer -> Text,
            model -> Text, engines -> SmallInt, seats -> SmallInt, speed -> Nullable<SmallInt>, engine -> Text,
        }
    }
    diesel::table! {
        weather (origin, time_hour) {
            origin -> Text, year -> SmallInt, month -> SmallInt, day -> SmallInt, hour -> SmallInt,
            temp -> Nullable<Double>, dewp -> Nullable<Double>, humid -> Nullable<Double>,
            wind_dir -> Nullable<SmallInt>, wind_speed -> Nullable<Double>, wind_gust -> Nullable<Double>,
            precip -> Nullable<Double>, pressure -> Nullable<Double>, visib -> Nullable<Double>,
            time_hour -> Timestamptz,
        }
    }
    diesel::table! {
        flights (time_hour, carrier, flight) {
            year -> SmallInt, month -> SmallInt, day -> SmallInt, dep_time -> Nullable<SmallInt>,
            sched_dep_time -> SmallInt, dep_delay -> Nullable<SmallInt>, arr_time -> Nullable<SmallInt>,
            sched_arr_time -> SmallInt, arr_delay -> Nullable<SmallInt>, carrier -> Text, flight -> Integer,
            tailnum -> Nullable<Text>, origin -> Text, dest -> Text, air_time -> Nullable<SmallInt>,
            distance -> SmallInt, hour -> SmallInt, minute -> SmallInt, time_hour -> Timestamptz,
        }
    }
}

/// Copies one file into its table; `NA` is NULL. Says how many rows it had.
macro_rules! copy {
    ($connection:expr, $table:ident, $file:expr) => {
        diesel::copy_from(tables::$table::table)
            .from_raw_data(tables::$table::table, |out| decompress($file, out))
            .with_format(CopyFormat::Csv)
            .with_header(CopyHeader::Set(true))
            .with_null("NA")
            .execute($connection)?
    };
}

/// The arguments of `slowlane demo load`.
#[derive(clap::Args)]
pub struct Load {
    /// The demo's database, without a password; one with a password belongs into SLOWLANE_DEMO_URL
    #[arg(long, value_name = "DSN")]
    database_url: Option<String>,
}

impl Load {
    /// Loads the data, unless they are there.
    ///
    /// # Errors
    /// When the database can't be used, or holds tables of the same names that aren't the demo's.
    pub fn run(self) -> Result<(), Failure> {
        let target = config::demo_database(self.database_url.as_deref(), plain_dsn_reader(&config::File::default())?)?;
        match load(&target)? {
            Some(rows) => println!("loaded {rows} rows"),
            None => println!("already there"),
        }
        Ok(())
    }
}

/// Loads the data, unless it is there. All of it is there, or nothing. Says how many rows were loaded; `None` when
/// there was nothing to do.
///
/// # Errors
/// When the database fails, or has some of the tables only: they are somebody else's then.
pub fn load(target: &Dsn) -> Result<Option<usize>, Failure> {
    let setup = format!("SET statement_timeout = {}; SET search_path = public", TIMEOUT.as_millis());
    let mut connection = Manager::work(target, &setup).open()?;
    let rows = connection.transaction::<_, Failure, _>(|connection| {
        connection.batch_execute(&format!("SELECT pg_advisory_xact_lock({LOCK_KEY})"))?;
        if is_there(connection)? { Ok(None) } else { fill(connection).map(Some) }
    })?;
    if let Some(rows) = rows {
        log::info!(rows = rows; "loaded the demo's data");
    }
    Ok(rows)
}

#[derive(QueryableByName)]
struct Present {
    #[diesel(sql_type = BigInt)]
    tables: i64,
    #[diesel(sql_type = Nullable<Text>)]
    names: Option<String>,
}

pub(super) fn is_there(connection: &mut PgConnection) -> Result<bool, Failure> {
    let present = diesel::sql_query(
        "SELECT count(*) AS tables, string_agg(name, ', ' ORDER BY name) AS names
           FROM unnest(ARRAY['airlines', 'airports', 'planes', 'weather', 'flights']) AS name
          WHERE to_regclass('public.' || name) IS NOT NULL",
    )
    .get_result::<Present>(connection)?;
    match (present.tables, present.names) {
        (0, _) => Ok(false),
        (TABLES, _) => Ok(true),
        (_, names) => Err(format!(
            "the database has tables of the demo's names that aren't the demo's ({}): name another database",
            names.unwrap_or_default()
        )
        .into()),
    }
}

fn fill(connection: &mut PgConnection) -> Result<usize, Failure> {
    connection.batch_execute(SCHEMA)?;
    let rows = copy!(connection, airlines, AIRLINES)
        + copy!(connection, airports, AIRPORTS)
        + copy!(connection, planes, PLANES)
        + copy!(connection, weather, WEATHER)
        + copy!(connection, flights, FLIGHTS);
    connection.batch_execute("ANALYZE airlines, airports, planes, weather, flights")?;
    Ok(rows)
}

fn decompress(file: &[u8], out: &mut dyn Write) -> diesel::QueryResult<()> {
    let failed = |error: std::io::Error| diesel::result::Error::SerializationError(Box::new(error));
    let mut reader = zstd::Decoder::new(file).map_err(failed)?;
    let mut buffer = vec![0_u8; 64 * 1024];
    loop {
        match reader.read(&mut buffer).map_err(failed)? {
            0 => return Ok(()),
            read => out.write_all(buffer.get(..read).unwrap_or_default()).map_err(failed)?,
        }
    }
}
