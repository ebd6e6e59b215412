//! Waiting while the database is away, for threads that have time: written once for all who do.
//!
//! Knows no job. When to give up is the caller's to say.

use std::sync::Arc;

use diesel::pg::PgConnection;

use crate::db::DbError;
use crate::db::pool::Pool;

/// A pool whose statements are sent again while the database can't be reached, is busy, or refuses for a reason that passes.
#[derive(Clone)]
pub struct RetryingPool {
    pool: Pool,
    wait: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl RetryingPool {
    /// `wait` is called between two tries: it waits a little, and says whether another try is wanted.
    pub fn new(pool: Pool, wait: impl Fn() -> bool + Send + Sync + 'static) -> RetryingPool {
        RetryingPool { pool, wait: Arc::new(wait) }
    }

    /// Runs `work`, which must do no harm when it is run again.
    ///
    /// # Errors
    /// The last error, when it says something about the statement, or no other try is wanted. That of a connection that can't be
    /// had names no host.
    pub fn run<T>(&self, mut work: impl FnMut(&mut PgConnection) -> Result<T, DbError>) -> Result<T, DbError> {
        loop {
            // Why the queue can't be reached is nothing for those who read an attempt's error.
            let connection = self.pool.get().map_err(|_| DbError::Unavailable("no connection".to_owned()));
            match connection.and_then(|mut connection| work(&mut connection)) {
                Err(error) if may_pass(&error) && (self.wait)() => {}
                outcome => return outcome,
            }
        }
    }
}

fn may_pass(error: &DbError) -> bool {
    matches!(error, DbError::Unavailable(_) | DbError::Busy(_)) || error.passes()
}
