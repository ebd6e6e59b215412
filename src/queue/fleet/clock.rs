//! The database's clock, as far as a step of it is believed.
//!
//! What expires goes for good, and goes by the clock. A clock that is an hour ahead for a minute must not take an hour's worth
//! of it along: a step ahead is believed little by little, so that whoever sets the clock right has as long for it as the
//! step was. Knows no table.

use std::time::Instant;

use chrono::{DateTime, TimeDelta, Utc};
use diesel::pg::PgConnection;
use diesel::prelude::*;
use diesel::sql_types::Timestamptz;

use crate::db::DbError;

#[derive(QueryableByName)]
struct Clock {
    #[diesel(sql_type = Timestamptz)]
    at: DateTime<Utc>,
}

/// Time that never passes more than twice as fast as this machine counts it. The first time that it is asked, the clock is
/// believed.
#[derive(Debug, Default)]
pub struct CautiousClock {
    last: Option<(DateTime<Utc>, Instant)>,
}

impl CautiousClock {
    /// What the database's clock says, or an earlier time while the clock is ahead of what can have passed.
    ///
    /// # Errors
    /// When the database fails.
    pub fn now(&mut self, connection: &mut PgConnection) -> Result<DateTime<Utc>, DbError> {
        let said = diesel::sql_query("SELECT clock_timestamp() AS at").get_result::<Clock>(connection)?.at;
        Ok(self.believe(said, Instant::now()))
    }

    fn believe(&mut self, said: DateTime<Utc>, at: Instant) -> DateTime<Utc> {
        let latest = |(time, since): (DateTime<Utc>, Instant)| {
            let twice = at.saturating_duration_since(since).saturating_mul(2);
            time.checked_add_signed(TimeDelta::from_std(twice).unwrap_or(TimeDelta::MAX)).unwrap_or(said)
        };
        let now = self.last.map_or(said, |last| said.min(latest(last)));
        self.last = Some((now, at));
        now
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_step_ahead_is_believed_little_by_little_and_a_step_back_at_once() {
        let (start, began) = (Utc::now(), Instant::now());
        let mut clock = CautiousClock::default();
        // Minutes that have passed; by how many the database's clock is off; what is believed.
        for (passed, off, believed) in [
            (0, 0, 0),
            (1, 0, 1),
            (2, 60, 3),
            (3, 60, 5),
            // Set right again.
            (4, 0, 4),
            (5, -60, -55),
            (6, -60, -54),
            // Back again, which looks like a step ahead: caught up with in as long as it was.
            (7, 0, -52),
            (36, 0, 6),
            (90, 0, 90),
            (91, 0, 91),
        ] {
            let said = start + TimeDelta::minutes(passed + off);
            let at = began + Duration::from_secs(60 * u64::try_from(passed).unwrap());
            assert_eq!(clock.believe(said, at), start + TimeDelta::minutes(believed), "after {passed} minutes");
        }
    }
}
